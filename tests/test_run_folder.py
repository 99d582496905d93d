"""A run has its folder for itself, and finds it clean."""

import dataclasses
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from beacon_jax import LayerReport, QuantizedMatrix
from experiments.grid import Cell
from experiments.layer_folders import open_store, remove_finished
from experiments.run_folder import RunFolder

OWNER = """
import sys
from experiments.run_folder import RunFolder
with RunFolder(sys.argv[1]) as folder:
    folder.activations.mkdir()
    (folder.activations / "0.npy").write_bytes(b"data")
    (folder.path / "table.md.partial").write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_one_run_at_a_time_until_it_ends_or_is_killed(tmp_path):
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-c", OWNER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        message = rf"{out} is in use by another run \(process {process.pid} on .*\); wait until it ends, or set another"
        with pytest.raises(OSError, match=message), RunFolder(out):
            pass
        assert len(list(out.iterdir())) == 3
        process.send_signal(signal.SIGKILL)
    with RunFolder(out) as folder:
        assert [path.name for path in out.iterdir()] == ["run.lock"]
        folder.append("lines.jsonl", {"a": 1})
        with pytest.raises(OSError, match="in use by another run"), RunFolder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["lines.jsonl"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_deleted_is_noticed(tmp_path, replaced):
    out = tmp_path / "out"
    with RunFolder(out) as folder:
        shutil.rmtree(out)
        if replaced:
            other = RunFolder(out).__enter__()
        with pytest.raises(OSError, match=rf"the folder {out} was deleted or replaced while the run went on"):
            folder.append("lines.jsonl", {})
        with pytest.raises(OSError, match="was deleted or replaced"):
            open_store(folder, CELL, "same").save(*LAYER)
    if replaced:
        other.check()
        assert [path.name for path in out.iterdir()] == ["run.lock"]
        other.__exit__()
    else:
        assert not out.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", r"cannot write to .*file: .*file is a file"), ("file/a", r"cannot write to .*a: .*file is a file")],
)
def test_places_that_are_no_folders(tmp_path, place, message):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=message), RunFolder(tmp_path / place):
        pass


def test_files_of_a_folder_are_tried(tmp_path):
    (tmp_path / "table.md").mkdir()
    with RunFolder(tmp_path) as folder:
        folder.try_files("results.jsonl", "table.csv")
        with pytest.raises(IsADirectoryError, match=r"cannot write .*table\.md: a folder is in its place"):
            folder.try_files("results.jsonl", "table.md")
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


CELL = Cell("RTN", "2", 0, 8, {"method": "rtn"}, None, "settings", "quantized", {"jax": "1", "test_data": "a"})
REPORT = LayerReport("fc", "dense", (2, 1), "rtn", "2", 0.1, 0.9, 0.9, 0, 4, 0.0, 1.0)
MATRIX = QuantizedMatrix(
    np.zeros((2, 1), np.uint8), np.array([-1.0, 1.0], np.float32), np.ones(1, np.float32), None, {}
)
LAYER = REPORT, MATRIX


def with_jax(version):
    return dataclasses.replace(CELL, made_with={"jax": version, "test_data": "a"})


def test_stored_layers_belong_to_what_they_were_made_of(tmp_path, capsys):
    with RunFolder(tmp_path) as folder:
        open_store(folder, CELL, "same").save(*LAYER)
        assert list(open_store(folder, CELL, "same").load()) == ["fc"]
        tested = dataclasses.replace(CELL, made_with={"jax": "1", "test_data": "b"})
        assert list(open_store(folder, tested, "same").load()) == ["fc"] and capsys.readouterr().out == ""
        assert open_store(folder, with_jax("2"), "same").load() == {}
        said = f"1 of the models with finished layers in {tmp_path}/layers have the same settings, but were made with "
        assert capsys.readouterr().out.startswith(f"{said}jax 1 instead of 2: not taken")
        assert list(open_store(folder, with_jax("2"), "any").load()) == ["fc"]
        assert capsys.readouterr().out.startswith(f"{said}jax 1 instead of 2: taken")


def test_layers_of_finished_results_are_removed(tmp_path):
    with RunFolder(tmp_path) as folder:
        for cell in (CELL, with_jax("2")):
            open_store(folder, cell, "same", lines=3).save(*LAYER)
        half = tmp_path / "layers" / "abc.deleted"
        half.mkdir()
        (half / "fc.safetensors").write_bytes(b"")
        remove_finished(folder, lambda key, about: key == CELL.quant_key and about["lines"] == 3)
        assert [path.name for path in (tmp_path / "layers").iterdir()] == [with_jax("2").quant_key]
        open_store(folder, with_jax("2"), "same").clear()
        open_store(folder, with_jax("2"), "same").clear()
        assert not list((tmp_path / "layers").iterdir())


@pytest.mark.parametrize("held", [b"", b"{", b"[]", b'{"settings": "x"}', b"\xff"])
def test_damaged_files_beside_layers_are_named(tmp_path, held):
    with RunFolder(tmp_path) as folder:
        store = open_store(folder, CELL, "same")
        store.save(*LAYER)
        for name, read in (("about", lambda: open_store(folder, CELL, "same")), ("choice", store.load_choice)):
            path = tmp_path / "layers" / CELL.quant_key / f"{name}.json"
            path.write_bytes(held)
            with pytest.raises(
                ValueError, match=rf"{path} is damaged, or of another version of this script; remove its"
            ):
                read()
