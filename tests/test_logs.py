"""Results that are handed to TensorBoard and Weights & Biases."""

import contextlib
import struct
import sys
import types

import pytest

from beacon_jax import LayerReport
from beacon_jax.evaluate import Measured
from configs import base
from experiments.grid import Cell
from experiments.logs import numbers, open_logs
from experiments.reports.series import bits_of
from experiments.results import Result

REPORT = LayerReport("w", "dense", (8, 4), "rtn", "2", 0.25, 0.9, 0.9, 0, 16, 1.0, 2.0)


def result(alphabet="2", layers=(REPORT,), quant=True, top1=90.0):
    cell = Cell(
        "RTN", alphabet, 3, 8, {"method": "rtn"} if quant else None, None, f"settings {alphabet}", "quantized", {}
    )
    coverage = {"bits_per_parameter": 2.5} if layers else None
    return Result(cell, {"top1": Measured(top1, 1.0, 100)}, layers, coverage)


def config_of(out, *names):
    config = base.get_config()
    config.out, config.log = str(out), names
    return config


def test_what_is_logged():
    assert numbers(result()) == {"top1": 90.0, "layer_error": 0.25, "seconds": 2.0, "bits_per_parameter": 2.5}
    assert numbers(result(layers=(), quant=False)) == {"top1": 90.0}
    assert [bits_of(name) for name in ("2", "4", "int4", "mixed 3.5")] == [2, 4, 4, 3.5]
    assert bits_of("1.58") == pytest.approx(1.585, abs=1e-3)


@pytest.mark.parametrize(
    ("out", "names", "message"),
    [
        ("here", ("tensorbord",), r"unknown log 'tensorbord' in config\.log; expected some of tensorboard, wandb"),
        ("here", ("wandb", "wandb"), r"config\.log has 'wandb' twice"),
    ],
)
def test_mistakes(tmp_path, out, names, message):
    with pytest.raises(ValueError, match=message), open_logs(config_of(tmp_path / out, *names)):
        pass


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = rf"config\.log has {name}, which needs: pip install beacon-jax\[{name}\]"
    with pytest.raises(ImportError, match=said), open_logs(config_of(tmp_path, name)):
        pass


def test_nothing_is_logged_by_default(tmp_path):
    with open_logs(config_of(tmp_path)) as log:
        log(result())
    assert list(tmp_path.iterdir()) == []


def test_tensorboard(tmp_path):
    """Read back as TFRecords: each has its length, a checksum, an event, and a checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with open_logs(config_of(tmp_path, "tensorboard")) as log:
        log(result(top1=80.0))
        log(result("4"))
    found = []
    for path in (tmp_path / "tensorboard" / "RTN, seed 3").iterdir():
        held = path.read_bytes()
        while held:
            (size,) = struct.unpack("<Q", held[:8])
            event = event_pb2.Event.FromString(held[12 : 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            held = held[16 + size :]
    assert sorted(found) == sorted(
        (name, step, value)
        for step, top1 in ((200, 80.0), (400, 90.0))
        for name, value in {"top1": top1, "layer_error": 0.25, "seconds": 2.0, "bits_per_parameter": 2.5}.items()
    )


def test_weights_and_biases(tmp_path, monkeypatch):
    """By a module in place of the package: what it is given."""
    given = []

    def init(**options):
        given.append(options)
        return Run()

    class Run(contextlib.AbstractContextManager):
        def define_metric(self, *args, **options):
            given.append((args, options))

        def log(self, values):
            given.append(values)

        def __exit__(self, *_):
            given.append("ended")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with open_logs(config_of(tmp_path, "wandb")) as log:
        log(result())
    first, *_, logged, ended = given
    assert first["config"]["data"]["calibration_images"] == 256 and first["group"] == str(tmp_path)
    assert (("*",), {"step_metric": "bits"}) in given and ended == "ended"
    assert logged == {
        "bits": 2.0,
        "top1/RTN, seed 3": 90.0,
        "layer_error/RTN, seed 3": 0.25,
        "seconds/RTN, seed 3": 2.0,
        "bits_per_parameter/RTN, seed 3": 2.5,
    }
