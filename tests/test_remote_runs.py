"""Tables and quantized models whose folder is in a bucket: what a local folder would hold, and kept as well."""

import dataclasses
import json
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import load_quantized
from beacon_jax.evaluate import Mean
from beacon_jax.places import place, remove_folder
from configs import base
from experiments import common, grid, quantize, table_files, tables
from experiments.experiment import Experiment
from experiments.layer_folders import open_store
from experiments.results import read_results
from experiments.run_folder import RunFolder
from experiments.task import Task
from experiments.workers import Workers

pytest.importorskip("upath")


@pytest.fixture
def out():
    address = f"memory://{uuid.uuid4().hex}"
    yield place(address)
    remove_folder(place(address))


def small_task(_config=None):
    keys = jax.random.split(jax.random.key(0), 2)
    rng = np.random.default_rng(0)
    return Task(
        apply=lambda params, batch: jax.nn.relu(batch["x"] @ params["a"]) @ params["b"],
        params={"a": jax.random.normal(keys[0], (8, 6)), "b": jax.random.normal(keys[1], (6, 4))},
        calibration=lambda count, seed: [{"x": rng.normal(size=(count, 8)).astype(np.float32)} for rng in [own(seed)]],
        test=[{"x": rng.normal(size=(16, 8)).astype(np.float32)}],
        metrics={"mean": Mean(lambda outputs, batch, _: outputs.mean(1), title="Mean", shown=".3f")},
    )


def own(seed):
    return np.random.default_rng(seed + 1)


@pytest.fixture
def config(monkeypatch, out):
    """Two rows, of one network with a mesh of one device and no plots."""
    monkeypatch.setattr(common, "make_mesh", lambda **_: None)
    monkeypatch.setattr(table_files.png, "plot", lambda *given: given[-1].write_bytes(b""))
    config = base.get_config()
    config.out = str(out)
    config.table.update(rows=("rtn", "comq"), alphabets=("2",))
    config.quant.method = "rtn"
    config.data.calibration_images = 32
    return config


def file_names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_table(config, out, tmp_path):
    """Stopped in the middle of a model, and gone on with; the lines are those of a local run."""
    task = small_task()
    experiment = Experiment(config, task)
    cells = experiment.provenance.add_to(grid.cells(config, task.fingerprint()))
    with RunFolder(out) as folder, pytest.raises(KeyboardInterrupt):
        stored = open_store(folder, cells[2], "same")

        def interrupted(*layer):
            type(stored).save(stored, *layer)
            raise KeyboardInterrupt

        stored.save, whole = interrupted, experiment.quantize
        whole(cells[2], stored)
    assert file_names(out) >= {f"layers/{cells[2].quant_key}/{name}" for name in ("a.safetensors", "about.json")}
    for where in (out, tmp_path / "out"):
        config.out = str(where)
        with RunFolder(where) as folder:
            assert folder.activations is None or folder.path == tmp_path / "out"
            results = tables.known(cells, config)
            assert tables.compute(cells, results, config, experiment, folder) == [] and len(results) == 3
            tables.drop_finished_layers(cells, results, folder)
    assert not any(name.startswith(("layers", "leases")) for name in file_names(out))
    here, there = (read_results(folder / "results.jsonl") for folder in (tmp_path / "out", out))
    assert [without_times(result) for result in there] == [without_times(result) for result in here]
    for name in ("table.csv", "mean.png"):
        assert (out / name).exists() == (tmp_path / "out" / name).exists()
    assert "| COMQ" in (out / "table.md").read_text(encoding="utf-8")
    config.out = str(out)
    assert len(tables.known(cells, config)) == 3


def without_times(result):
    layers = [dataclasses.replace(layer, gram_seconds=0, solve_seconds=0) for layer in result.layers]
    return dataclasses.replace(result, layers=tuple(layers))


def test_workers(config, out, monkeypatch):
    """Two, of which the first is killed before it saves anything."""
    monkeypatch.setattr("experiments.remote_lock.SECONDS", 1.0)
    task = small_task()
    experiment = Experiment(config, task)
    cells = experiment.provenance.add_to(grid.cells(config, task.fingerprint()))
    with RunFolder(out, shared=True) as first, RunFolder(out, shared=True) as second:
        with pytest.raises(OSError, match=r"in use by another run \(workers with --shared\)"):
            RunFolder(out).__enter__()
        dead = Workers(first, 1.0, True, "same")
        _, lease = next(dead.work(cells, {}, lambda: {}))
        lease._ended.set()
        results = {}
        workers = Workers(second, 1.0, True, "same")
        assert tables.compute(cells, results, config, experiment, second, workers) == []
        assert len(results) == 3 and workers.others == 0
    assert {result.cell.key for result in read_results(out / "results.jsonl")} == {cell.key for cell in cells}


def test_a_quantized_model(config, out, monkeypatch, capsys):
    monkeypatch.setattr(quantize, "make_task", small_task)
    for _ in range(2):
        quantize.run(config)
    assert f"quantized model: {out}/quantized.safetensors" in capsys.readouterr().out
    params, matrices = load_quantized(f"{out}/quantized.safetensors", like=small_task().params)
    assert set(matrices) == {"a", "b"} and params["a"].shape == (8, 6)
    lines = sorted((out / "quantize.lines").iterdir())
    assert [path.name for path in lines] == ["000001.json", "000002.json"]
    first, second = (json.loads(path.read_bytes()) for path in lines)
    assert first["key"] == second["key"]
    assert not any(name.startswith("layers") for name in file_names(out))
    assert jnp.isfinite(params["b"]).all()
