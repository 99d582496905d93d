"""A table of a model that a user brings: a module of one's own, no file of ours changed."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.evaluate import Mean
from configs import base
from experiments import common, grid, table_files, tables
from experiments.experiment import Experiment
from experiments.results import LayerStore, read_results
from experiments.run_folder import RunFolder
from experiments.task import Task, identity_of, make_task
from tests.own_task import MODULE
from tests.pictures import assert_is_a_plot

ARGUMENTS = {
    "table.alphabets": ("2", "int4"),
    "table.rows": ("rtn", "beacon_ec"),
    "norm_tuning.enabled": True,
    "norm_tuning.loss": "mse",
    "norm_tuning.steps": 3,
    "data.calibration_images": 32,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Not a mesh of the tests' simulated devices, for which everything would be compiled anew."""
    monkeypatch.setattr(common, "make_mesh", lambda **_: None)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of the module, which can be imported."""
    name = f"own_task_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def config_of(module, out):
    config = base.get_config()
    config.task, config.out = f"{module}:task", str(out)
    config.update_from_flattened_dict(ARGUMENTS)
    return config


def test_a_table_from_the_command_line(tmp_path, module):
    command = [sys.executable, "-m", "experiments.tables", "--config=configs/base.py", f"--config.task={module}:task"]
    command += [f"--config.{key}={value}" for key, value in ARGUMENTS.items()] + [f"--config.out={tmp_path}/out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "9 of 9 results computed" in done.stdout and "Mean square, ± standard error; float model" in done.stdout
    found = {result.cell.key: result for result in read_results(tmp_path / "out" / "results.jsonl")}
    rows = ["Float", "RTN", "RTN", "RTN + norm tuning", "RTN + norm tuning"]
    rows += ["Beacon w/ E.C."] * 2 + ["Beacon w/ E.C. + norm tuning"] * 2
    assert sorted(result.cell.row for result in found.values()) == sorted(rows)
    assert {name for result in found.values() for name in result.metrics} == {"size", "error"}
    by_place = {(result.cell.row, result.cell.alphabet): result for result in found.values()}
    error = {place: result.metrics["error"].value for place, result in by_place.items()}
    assert error["Float", ""] == 0 < error["Beacon w/ E.C.", "int4"] < error["Beacon w/ E.C.", "2"] < error["RTN", "2"]
    result = by_place["RTN", "2"]
    assert [layer.layer for layer in result.layers] == ["inner", "out"] and result.metrics["size"].count == 40
    # Of 32 examples of 3 positions; rows of weight 0 do not count.
    assert 32 <= result.layers[0].rows < 96 and result.coverage["quantized"] == (48 + 32) / (48 + 8 + 8 + 32)
    assert all(result.tuned["after"] <= result.tuned["before"] for result in found.values() if result.cell.tuning)
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert lines[0]["row"] == "Float" and float(lines[1]["size"]) > 0
    assert_is_a_plot(tmp_path / "out" / "size.png")


def test_a_stopped_table_goes_on(tmp_path, module, capsys):
    config = config_of(module, tmp_path / "out")
    config.table.rows = ("rtn", "comq")
    path = tmp_path / "out" / "results.jsonl"
    task = make_task(config)
    cells = Experiment(config, task).provenance.add_to(grid.cells(config, task.fingerprint()))
    assert computed(config, cells) == []
    lines = path.read_text().splitlines()
    assert len(lines) == 9
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:40])
    assert len(tables.known(cells, config)) == 6 and computed(config, cells) == []
    again = path.read_text().splitlines()
    assert sorted(map(without_times, again)) == sorted(map(without_times, lines))
    assert again[:6] == lines[:6] and not any((tmp_path / "out" / "layers").iterdir())
    # Other data of the same shapes: only the float model, which was not calibrated, is as it was.
    others = dataclasses.replace(
        task, calibration=lambda count, seed: [{**b, "x": -b["x"]} for b in task.calibration(count, seed)]
    )
    with_others = Experiment(config, others).provenance.add_to(grid.cells(config, others.fingerprint()))
    capsys.readouterr()
    assert list(tables.known(with_others, config)) == [cells[0].key]
    said = rf"4 of the results in {path} have the same settings, but were made with calibration_data \w+ instead of \w+"
    assert re.search(said, capsys.readouterr().out)
    config.reuse = "any"
    assert len(tables.known(with_others, config)) == 9
    settings = {cell.settings for cell in cells}
    config.seed = 1  # of the parameters, here
    assert not {c.settings for c in grid.cells(config, make_task(config).fingerprint())} & settings


def without_times(line):
    """A line of results without what it may differ in from run to run."""
    fields = json.loads(line)
    del fields["seconds"]
    for layer in fields["layers"]:
        del layer["gram_seconds"], layer["solve_seconds"]
    return json.dumps(fields)


def computed(config, cells):
    """What failed of what was missing, computed by a new run."""
    with RunFolder(config.out) as folder:
        experiment = Experiment(config, make_task(config), folder)
        experiment.check(cells)
        return tables.compute(cells, tables.known(cells, config), config, experiment, folder)


def test_a_table_that_cannot_be_rendered_is_computed(tmp_path, module, monkeypatch, caplog):
    """What goes wrong with a picture is no failure of the method, whose result is there."""

    def broken(*_):
        raise ValueError("no such marker")

    monkeypatch.setattr(table_files.png, "plot", broken)
    config = config_of(module, tmp_path / "out")
    config.table.rows, config.norm_tuning.enabled = ("rtn",), False
    task = make_task(config)
    cells, results = grid.cells(config, task.fingerprint()), {}
    with caplog.at_level("WARNING", logger="absl"), RunFolder(config.out) as folder:
        assert tables.compute(cells, results, config, Experiment(config, task), folder) == []
    assert len(results) == len(cells) == len((tmp_path / "out" / "results.jsonl").read_text().splitlines())
    message = r"the results are in .*results\.jsonl, but cannot be shown \(ValueError: no such marker\)"
    assert caplog.messages and all(re.fullmatch(message, own) for own in caplog.messages)
    with pytest.raises(table_files.RenderError, match=message):
        table_files.render_all(cells, results, config, task)


def test_layers_of_an_unfinished_result_are_kept(tmp_path, module):
    config = config_of(module, tmp_path / "out")
    experiment = Experiment(config, make_task(config))
    cell = grid.cells(config, "identity")[1]

    class Killed(BaseException):
        pass

    class Dying(LayerStore):
        def save(self, report, matrix):
            super().save(report, matrix)
            raise Killed

    with pytest.raises(Killed):
        experiment.quantize(cell, Dying(tmp_path / "layers"))
    (kept,) = (tmp_path / "layers").iterdir()
    stamp = kept.stat().st_mtime_ns
    resumed, whole = (experiment.quantize(cell, LayerStore(tmp_path / name)) for name in ("layers", "new"))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert [r.output_error for r in resumed.reports] == [r.output_error for r in whole.reports]
    assert kept.name == "inner.safetensors" and kept.stat().st_mtime_ns == stamp
    store = LayerStore(tmp_path / "layers")
    store.clear()
    assert not (tmp_path / "layers").exists() and store.load() == {}


def test_examples_are_drawn_once_for_each_count_and_seed(tmp_path, module):
    config = config_of(module, tmp_path / "out")
    drawn = []
    task = make_task(config)

    def counted(count, seed):
        drawn.append((count, seed))
        return task.calibration(count, seed)

    experiment = Experiment(config, dataclasses.replace(task, calibration=counted))
    cells = grid.cells(config, "identity")
    experiment.check(cells)
    for i in (1, 2):
        list(experiment.results([cells[i], cells[i + 2]], LayerStore(tmp_path / f"layers{i}")))
    assert drawn == [(32, 0)]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("own", "config.task names a function as package.module:function, got 'own'"),
        (":task", "config.task names a function as package.module:function, got ':task'"),
        ("no_such_module:task", "there is no module 'no_such_module' to import"),
        ("experiments.tasks.none:task", "there is no module 'experiments.tasks.none' to import"),
        ("{module}:other", "{module} has no function 'other'"),
        ("{module}:nothing", "{module} has no function 'nothing'"),
        ("{module}:number", "must return an experiments.task.Task, got int"),
    ],
)
def test_tasks_that_are_not_there(tmp_path, module, named, message):
    config = config_of(module, tmp_path)
    config.task = named.format(module=module)
    with pytest.raises(ValueError, match=message.format(module=module)):
        make_task(config)


def test_a_module_that_lacks_another_says_so(tmp_path, module):
    (tmp_path / f"{module}_b.py").write_text("import a_module_that_is_not_there\n")
    config = config_of(f"{module}_b", tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        make_task(config)


def tiny(**changed):
    fields = dict(
        apply=lambda params, batch: batch["x"] @ params["w"],
        params={"w": jnp.ones((2, 3))},
        calibration=lambda count, seed: [{"x": np.ones((count, 2), np.float32)}],
        test=[{"x": np.ones((4, 2), np.float32)}],
        metrics={"mean": Mean(lambda outputs, batch, _: outputs.mean(1))},
    )
    return Task(**fields | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(apply=3), "apply of a Task is a function, got 3"),
        (dict(weights=3), "weights of a Task is a function, got 3"),
        (dict(metrics={}), "metrics of a Task is a dict of at least one metric by name"),
        (dict(metrics=[Mean]), "metrics of a Task is a dict of at least one metric by name"),
        (dict(test=iter([])), "test of a Task is batches to be read several times, got list_iterator"),
        (dict(test=3), "test of a Task is batches to be read several times, got int"),
    ],
)
def test_fields_of_another_kind(changed, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changed)


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        (dict(calibration=lambda count, seed: iter([])), {}, "must give batches to be read several times"),
        (dict(calibration=lambda count, seed: []), {}, "calibration of the task gives no batches"),
        (dict(), {"data.calibration_images": 1}, "too few calibration examples: 1 give 1 rows for the 2 inputs of w"),
        (dict(), {"quant.layers": "blocks.*"}, "no layer matches 'blocks"),
        (dict(), {"norm_tuning.enabled": True}, "no normalization layers to tune"),
        (dict(norms="w"), {"norm_tuning.enabled": True, "norm_tuning.images": 1}, "batches of two examples or more"),
    ],
)
def test_what_fails_is_known_before_anything_runs(tmp_path, changed, settings, message):
    config = base.get_config()
    config.update_from_flattened_dict({"out": str(tmp_path), "table.rows": ("rtn",)} | settings)
    task = tiny(**changed)
    with pytest.raises(ValueError, match=message):
        Experiment(config, task).check(grid.cells(config, task.fingerprint()))


def test_identity():
    assert identity_of(a=1, b=[2]) == identity_of(b=[2], a=1) != identity_of(a=1, b=[3])
    one = tiny()
    assert one.fingerprint() == tiny().fingerprint() != tiny(params={"w": jnp.zeros((2, 3))}).fingerprint()
    assert one.fingerprint() != tiny(test=[{"x": np.zeros((4, 2), np.float32)}]).fingerprint()
    assert tiny(identity="mine").fingerprint() == "mine"
