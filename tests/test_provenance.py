"""A result is taken only where it was made of the same data, code and arithmetic; what differs is said."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS, Execution, make_mesh
from beacon_jax.evaluate import Mean
from configs import base
from experiments import grid
from experiments.provenance import Provenance, difference, taken
from experiments.task import Task

DATA = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)


def task_of(calibration=DATA, test=DATA[:6], batch=8, weights=1.0):
    def cut(x):
        return [{"x": x[i : i + batch]} for i in range(0, len(x), batch)]

    return Task(
        apply=lambda params, batch: batch["x"] @ params["w"],
        params={"w": weights * jnp.ones((2, 3))},
        calibration=lambda count, seed: cut(np.random.default_rng(seed).permutation(calibration)[:count]),
        test=cut(test),
        metrics={"mean": Mean(lambda outputs, batch, _: outputs.mean(1))},
        identity="mine",
    )


def cells_of(task=None, execution=Execution(), **changed):  # noqa: B008
    task = task or task_of()
    config = base.get_config()
    config.update_from_flattened_dict({"table.rows": ("beacon_ec",), "table.alphabets": ("2",)} | changed)
    config.norm_tuning.enabled = True
    return Provenance(task, execution, task.calibration).add_to(grid.cells(config, task.fingerprint()))


def changed_keys(cells, ours=None):
    """Which of the float model's, the quantized and the tuned cell have another key, and whether the layers have."""
    ours = ours or cells_of()
    assert [cell.settings for cell in cells] == [cell.settings for cell in ours]
    assert cells[1].quant_key == cells[2].quant_key
    keys = "".join("ft+"[i] for i, (a, b) in enumerate(zip(ours, cells, strict=True)) if a.key != b.key)
    return keys + ("L" if cells[1].quant_key != ours[1].quant_key else "")


class Raised(dict):
    """METHODS with beacon of a next version."""

    def __init__(self):
        super().__init__(METHODS, beacon=dataclasses.replace(METHODS["beacon"], version=METHODS["beacon"].version + 1))


def test_the_same_again():
    assert changed_keys(cells_of()) == ""


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (dict(task=task_of(-DATA)), "t+L"),
        (dict(task=task_of(test=-DATA[:6])), "ft+"),
        (dict(task=task_of(batch=4)), "ft+L"),
        (dict(task=task_of(weights=2.0)), "ft+L"),
        (dict(execution=Execution(mesh=make_mesh(4, 2))), "ft+L"),
        ({"quant.options.block_size": 3}, ""),  # the rows have options of their own
        ({"rows.beacon_ec.options.block_size": 3}, "t+L"),
        ({"rows.beacon_ec.options.channel_chunk": 3}, "t+L"),
    ],
)
def test_what_decides_a_result(given, keys):
    assert changed_keys(cells_of(**given)) == keys


def test_versions_decide_it(monkeypatch):
    ours = cells_of()
    monkeypatch.setattr("experiments.provenance.METHODS", Raised())
    assert changed_keys(cells_of(), ours) == "t+L"
    monkeypatch.setattr("experiments.provenance.METHODS", METHODS)
    monkeypatch.setattr("jax.__version__", "9.9.9")
    cells = cells_of()
    assert changed_keys(cells, ours) == "ft+L" and cells[0].made_with["jax"] == "9.9.9"


def test_the_processor_decides_it(monkeypatch):
    ours = cells_of()
    monkeypatch.setattr("experiments.provenance.processor", lambda: "AVX2, 64 cores")
    cells = cells_of()
    assert changed_keys(cells, ours) == "ft+L"
    said = difference(cells[0].made_with, ours[0].made_with)
    assert said == f"processor AVX2, 64 cores instead of {ours[0].made_with['processor']}"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert cells_of()[0].made_with["xla_flags"] == "--xla_cpu_enable_fast_math=true"
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert "processor" not in cells_of()[0].made_with


def test_block_sizes_do_not_count_in_double_precision(x64):
    double = {"execution.forward_dtype": "float64", "execution": Execution(forward_dtype="float64")}
    plain, sized = cells_of(**double), cells_of(**double, **{"rows.beacon_ec.options.block_size": 3})
    assert [cell.key for cell in sized] == [cell.key for cell in plain]


def test_the_data_is_read_once_for_each_draw():
    drawn = []
    task = task_of()

    def draw(count, seed):
        drawn.append((count, seed))
        return task.calibration(count, seed)

    config = base.get_config()
    config.table.rows, config.table.seeds, config.norm_tuning.enabled = ("rtn", "beacon_ec"), (0, 1), True
    facts = [cell.made_with for cell in Provenance(task, Execution(), draw).add_to(grid.cells(config, "mine"))]
    assert drawn == [(256, 0), (256, 1)] and len({f.get("calibration_data") for f in facts}) == 3
    assert all(f["tuning_data"] == f["calibration_data"] for f in facts if "tuning_data" in f)


def test_what_differs_is_said(capsys):
    ours, theirs = {"jax": "2", "test_data": "a"}, {"jax": "1", "test_data": "a", "more": "x"}
    assert difference(theirs, ours) == "jax 1 instead of 2, more x instead of none"
    wanted = [("s", ours), ("s", ours), ("other", ours)]
    found = [("s", theirs, 1), ("s", theirs, 2)]
    assert taken(wanted, found, "same", "results in F") == [None] * 3
    assert capsys.readouterr().out == (
        "2 of the results in F have the same settings, but were made with jax 1 instead of 2, more x instead of none: "
        "not taken (--config.reuse=any takes them)\n"
    )
    assert taken(wanted, found, "any", "results in F") == [2, 2, None]
    assert capsys.readouterr().out.endswith("none: taken, by --config.reuse=any\n")
    assert taken(wanted, [*found, ("s", copy.copy(ours), 3), *found], "any", "results") == [3, 3, None]
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="unknown reuse 'some'; expected one of same, any"):
        taken(wanted, found, "some", "results")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (dict(seeds=(0, 0)), r"config\.table\.seeds has 0 twice; each may be there once"),
        (dict(rows=("rtn", "comq", "rtn")), r"config\.table\.rows has 'rtn' twice"),
        (dict(alphabets=("2", 2)), r"config\.table\.alphabets has '2' twice"),
        (dict(alphabets=("2", (-1.5, -0.5, 0.5, 1.5))), r"alphabets has '-1.5,-0.5,0.5,1.5' twice \(as '2', too\)"),
        (dict(calibration_images=(8, 8)), r"config\.table\.calibration_images has 8 twice"),
        (dict(sweeps=(2, 2)), r"config\.table\.sweeps has 2 twice"),
        (dict(bits_per_parameter=(3, 3.0)), r"config\.table\.bits_per_parameter has 3.0 twice"),
    ],
)
def test_cells_that_are_there_twice(table, message):
    config = base.get_config()
    config.table.update(table)
    with pytest.raises(ValueError, match=message):
        grid.cells(config, "mine")
