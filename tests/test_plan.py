"""What a dry run says, and that it is all that it does."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import LayerReport
from beacon_jax.abstract_run import AbstractPlacement
from beacon_jax.evaluate import Mean, Measured
from configs import base
from experiments import amounts, common, grid, plan
from experiments.experiment import Experiment
from experiments.results import Result
from experiments.task import Task

REPORT = LayerReport("w", "dense", (8, 4), "rtn", "2", 0.1, 0.9, 0.9, 0, 16, 1.0, 2.0)


@pytest.fixture
def table(monkeypatch):
    """A grid of two rows, two alphabets and norm tuning, and its experiment, which does not compute."""
    config = base.get_config()
    config.table.update(rows=("rtn", "beacon_ec"), alphabets=("2", "3"))
    config.norm_tuning.update(enabled=True, loss="mse")
    config.data.calibration_images = 16
    monkeypatch.setattr(common, "make_mesh", lambda **_: None)
    task = Task(
        apply=lambda params, batch: batch["x"] @ params["w"] * params["norm"]["scale"][None],
        params={"w": jnp.ones((8, 4)), "norm": {"scale": jnp.ones(4)}},
        calibration=lambda count, seed: [{"x": np.ones((8, 8), np.float32)}] * (count // 8),
        test=[{"x": np.ones((40, 8), np.float32)}] * 2,
        metrics={"mean": Mean(lambda outputs, batch, _: outputs.mean(1))},
    )
    experiment = Experiment(config, task)
    cells = experiment.provenance.add_to(grid.cells(config, task.fingerprint()))
    for name in ("quantize", "tune", "evaluate"):
        monkeypatch.setattr(experiment, name, lambda *_: pytest.fail("it runs"))
    return cells, experiment


def test_the_plan_of_a_table(table, tmp_path):
    cells, experiment = table
    metrics = {"mean": Measured(1.0, 0.1, 80)}
    done = [Result(cells[0], metrics), Result(cells[1], metrics, (REPORT,))]  # the float model, and RTN at 2 bit
    of_before = dataclasses.replace(done[1], layers=(REPORT, dataclasses.replace(REPORT, solve_seconds=10.0)))
    text = plan.table_plan(
        cells, {r.cell.key: r for r in done}, [r.line()["layers"] for r in (*done, of_before)], experiment, tmp_path
    )
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()[2:7]}
    assert rows["Float"] == ["there", "", ""] and rows["RTN"] == ["", "there", "to do"]
    assert rows["RTN + norm tuning"] == rows["Beacon w/ E.C."] == ["", "to do", "to do"]
    assert "\n2 of 9 results are there, 7 are to be computed\n" in text
    assert re.search(r"\| w +\| dense +\| 8 × 4 +\| 16 +\| 256 B +\|", text)
    assert "\n1 layers, 32 of the model's 36 parameters\n" in text
    # RTN took 3 s, and before 3 + 11 s: 8.5 s for each of two models.
    assert "4 models to quantize; 0 layers of them are there already; time: 17 s for Gram statistics and" in text
    assert f"by the 2 results in {tmp_path}, and unknown for beacon; evaluation" in text
    assert list(tmp_path.iterdir()) == []


def test_layers_that_are_there_take_no_time(table, tmp_path):
    cells, experiment = table
    (tmp_path / "layers" / cells[1].quant_key).mkdir(parents=True)
    (tmp_path / "layers" / cells[1].quant_key / "w.safetensors").write_bytes(b"")
    group = [cell for cell in cells if cell.quant_key == cells[1].quant_key]
    past = [[dataclasses.asdict(REPORT)]]
    text = plan.quantized_plan([group], past, experiment, tmp_path)
    assert "1 models to quantize; 1 layers of them are there already; time: 0 s" in text
    text = plan.quantized_plan([group], [], experiment, tmp_path)
    assert "time: unknown, since no result of these methods is there; evaluation and norm tuning" in text
    assert plan.quantized_plan([[cells[0]]], [], experiment, tmp_path) == "no model is to be quantized"


def test_memory_is_that_of_the_largest_program(table):
    """Arguments and results, in agreement with the compiler, and with one overwritten."""

    @jax.jit
    def small(x):
        return x + 1

    def product(x, y):
        return x @ y, y * 2

    largest = plan.Largest()
    placement = AbstractPlacement(None, jax.devices()[0], largest)
    x, y = (placement.shape_of(jax.ShapeDtypeStruct(shape, jnp.float32)) for shape in ((50, 20), (20, 30)))
    for donate in ((), (1,)):
        placement.call(lambda x, y, donate=donate: jax.jit(product, donate_argnums=donate)(small(x), y), x, y)
        code = jax.jit(product).lower(x, y).compile().memory_analysis()
        whole = code.argument_size_in_bytes + code.output_size_in_bytes
        assert (largest.name, largest.size) == ("product", 4 * (1000 + 600 + 1500 + 600))
        assert largest.size <= whole <= largest.size + 64  # with pointers to several results
    alone = plan.Largest()
    placement = AbstractPlacement(None, jax.devices()[0], alone)
    placement.call(lambda x, y: jax.jit(product, donate_argnums=(1,))(x, y), x, y)
    assert alone.size == largest.size - 4 * 600


def test_a_row_whose_programs_depend_on_numbers(table, tmp_path):
    cells, experiment = table
    cell = dataclasses.replace(cells[1], quant={**cells[1].quant, "row_weights": "influence"})
    assert "| RTN   | not known: its rows count by numbers |" in plan.quantized_plan([[cell]], [], experiment, tmp_path)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3e9, "3 GB")],
)
def test_amounts(count, shown):
    assert amounts.amount(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (100, "100 s"), (125, "2.1 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_durations(seconds, shown):
    assert amounts.duration(seconds) == shown
