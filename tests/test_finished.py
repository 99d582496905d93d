"""Layers of an earlier run: what is no such layer is refused before any work, what does not fit with what differs."""

import dataclasses

import numpy as np
import pytest

from beacon_jax import QuantSpec, quantize
from beacon_jax.checkpoint import load_layer, save_layer
from beacon_jax.report import LayerReport

PARAMS = {"w": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)}
BATCHES = [np.random.default_rng(1).normal(size=(10, 6)).astype(np.float32)]
SPEC = QuantSpec(method="comq", alphabet="4")


def run(spec=SPEC, batches=BATCHES, **given):
    return quantize(lambda params, x: x @ params["w"], PARAMS, batches, spec, **given)


@pytest.fixture(scope="module")
def done():
    return run()


class Unread:
    """Batches that must not be read."""

    def __iter__(self):
        raise AssertionError("the calibration data was read")


@pytest.mark.parametrize(
    ("finished", "given"),
    [
        ({"w": 1}, "int for 'w'"),
        ({"w": (1, 2)}, r"\(int, int\) for 'w'"),
        ({"w": ()}, r"\(\) for 'w'"),
        ({"w": "ab"}, "str for 'w'"),
        ({"w": np.ones(2)}, "ndarray for 'w'"),
        ([1], "list"),
        (3, "int"),
    ],
)
def test_what_is_no_finished_layer(finished, given):
    said = rf"^finished is {{layer name: \(LayerReport, QuantizedMatrix\)}}, got {given}$"
    with pytest.raises(ValueError, match=said):
        run(batches=Unread(), finished=finished)


def test_report_and_result_the_wrong_way_round(done):
    pair = done.layers["w"], done.reports[0]
    with pytest.raises(ValueError, match=r"got \(QuantizedMatrix, LayerReport\) for 'w'"):
        run(batches=Unread(), finished={"w": pair})


@pytest.mark.parametrize(
    ("given", "said"),
    [(dict(on_layer=3), "on_layer is a function of .*, got int"), (dict(float_stats={}), "is a FloatStats, got dict")],
)
def test_other_arguments(given, said):
    with pytest.raises(ValueError, match=said):
        run(batches=Unread(), **given)


def test_a_stored_layer_of_other_options(tmp_path, done):
    (report,), matrix = done.reports, done.layers["w"]
    save_layer(tmp_path / "w", matrix, dataclasses.asdict(report))
    stored, fields = load_layer(tmp_path / "w")
    finished = {"w": (LayerReport(**fields | {"shape": tuple(fields["shape"])}), stored)}
    again = run(finished=finished)
    np.testing.assert_array_equal(again.params["w"], done.params["w"])
    # A default said aloud, and what decides rounding alone, are the same options.
    for options in (dict(sweeps=report.options["sweeps"]), dict(block_size=2)):
        run(dataclasses.replace(SPEC, options=options), finished=finished)
    sweeps = report.options["sweeps"] + 1
    other = dataclasses.replace(SPEC, options=dict(sweeps=sweeps, scale="lsq"))
    said = f"the finished layer w was made with .*sweeps={sweeps - 1} instead of {sweeps}"
    with pytest.raises(ValueError, match=said) as error:
        run(other, finished=finished)
    assert "scale='absmax' instead of 'lsq'" in str(error.value)
    unknown = dataclasses.replace(report, options=None)  # of a file written before options were kept
    run(other, finished={"w": (unknown, matrix)})
