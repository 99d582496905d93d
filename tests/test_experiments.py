"""The scripts, run as a user runs them."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from beacon_jax import balance_rows, load_params, load_quantized, save_quantized
from beacon_jax.evaluate import Top1, evaluate
from beacon_jax.models.convert import convert_state_dict
from beacon_jax.models.state_dict import read_state_dict
from beacon_jax.models.vit import create_vit
from configs import base, digits
from experiments import common, grid, hub, quantize, results
from experiments.experiment import Experiment
from experiments.files import evaluated, export
from experiments.grid import TUNED
from experiments.lines import append_line
from experiments.task import make_task
from tests.made_results import result
from tests.models.vits import timm_state
from tests.pictures import assert_is_a_plot
from tests.scripts import run_all

SMALL = ("--config.data.calibration_images=16", "--config.data.test_images=100", "--config.data.batch_size=64")


def run(script, *arguments):
    command = [sys.executable, "-m", f"experiments.{script}", "--config=configs/digits.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_table_is_resumed_and_rendered(tmp_path):
    arguments = (
        *SMALL,
        f"--config.out={tmp_path}",
        "--config.quant.layers=blocks_0/.*",
        "--config.table.alphabets=('2',)",
        "--config.table.rows=('rtn','comq')",
        "--config.norm_tuning.enabled=True",
        "--config.norm_tuning.steps=4",
    )
    first = run("tables", *arguments)
    assert "5 of 5 results computed" in first
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [r["row"] for r in found] == ["Float", "RTN", "RTN" + TUNED, "COMQ", "COMQ" + TUNED]
    assert all(len(r["layers"]) == 4 and r["metrics"]["top1"]["count"] == 100 for r in found[1::2])
    assert all(r["layers"] == [] and r["layer_error"] is None for r in found[::2])
    assert all(r["tuned"]["after"] <= r["tuned"]["before"] for r in found[2::2])
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    np.testing.assert_allclose([float(r["top1"]) for r in rows], [r["metrics"]["top1"]["value"] for r in found])
    assert_is_a_plot(tmp_path / "top1.png")
    assert not any((tmp_path / "layers").iterdir())
    assert all(set(r["codes"]) == {layer["layer"] for layer in r["layers"]} for r in found)
    assert [sum(map(sum, r["codes"].values())) for r in found] == [0, *2 * [4 * 48 * 48 + 8 * 48 * 48, 0]]
    assert "5 results; 4 layers quantized" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # Killed while the last line was written: that cell alone is computed again, to the same numbers.
    (tmp_path / "results.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:50])
    rendered = run("tables", *arguments, "--render_only")
    assert "0 of 5 results computed, 4 were there already, 1 missing" in rendered
    assert re.search(r"COMQ \+ norm tuning +\| +– \|", rendered)
    assert "1 of 5 results computed, 4 were there already, 0 missing" in run("tables", *arguments)
    again = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    deterministic = ("row", "alphabet", "key", "metrics", "layer_error", "coverage", "tuned")
    assert [[r[k] for k in deterministic] for r in again] == [[r[k] for k in deterministic] for r in found]


def test_quantize_writes_a_model_that_loads(tmp_path):
    printed = run("quantize", *SMALL, f"--config.out={tmp_path}", "--config.quant.alphabet=3")
    assert "Top-1 in percent (100 test examples): float " in printed and "bits per parameter over" in printed
    line = json.loads((tmp_path / "quantize.jsonl").read_text())
    assert len(line["layers"]) == 16 and line["config"]["quant"]["alphabet"] == "3"
    page = (tmp_path / "quantize.html").read_text(encoding="utf-8")
    assert "2 results; 16 layers quantized; 100 test examples" in page and "<h2>Codes</h2>" in page
    config = digits.get_config()
    config.data.test_images = 100
    params, layers = load_quantized(tmp_path / "quantized.safetensors")
    task = make_task(config)
    apply = jax.jit(task.apply)
    result = evaluate(lambda batch: apply(params, batch), task.test, {"top1": Top1()})["top1"]
    assert len(layers) == 16 and result.value == pytest.approx(line["quantized"]["top1"]["value"])
    for setting in SMALL:
        key, _, value = setting.removeprefix("--config.").partition("=")
        config.update_from_flattened_dict({key: int(value)})
    table = evaluated(config, tmp_path / "quantized.safetensors").splitlines()
    assert len(table) == 2 + len(task.metrics) and all("  the same" in row for row in table[2:])
    config.model.name = "deit_cifar10"
    with pytest.raises(ValueError, match="holds the model deit_digits, and the configuration is for deit_cifar10"):
        evaluated(config, tmp_path / "quantized.safetensors")
    exported = tmp_path / "timm.safetensors"
    said = export(tmp_path / "quantized.safetensors", exported, "timm")
    assert said.startswith(f"{exported}: 56 float32 tensors in timm's naming")
    again = convert_state_dict(read_state_dict(exported), create_vit("deit_digits"))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_mistakes_end_in_one_sentence(tmp_path):
    mistakes = (
        ("--config.quantt=1", "error: there is no key --config.quantt"),
        ("stray", "error: unexpected arguments stray; a setting is given as --config.key=value"),
        ("--config.quant.alphabet=9", "error: unknown alphabet '9'"),
        ("--nonsense=1", "error: Unknown command line flag 'nonsense'"),
    )
    lines = [["experiments.quantize", "--config=configs/digits.py", argument] for argument, _ in mistakes]
    for done, (_, message) in zip(run_all(lines, tmp_path), mistakes, strict=True):
        assert done.returncode == common.WRONG_INPUT and "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "images"}, "config.task names a function as package.module:function, got 'images'"),
        ({"execution.forward_dtype": "float16"}, "unknown forward_dtype 'float16'"),
        ({"quant.options.centering": "foo"}, "unknown centering 'foo'"),
        ({"model.checkpoint": "missing.safetensors"}, "no checkpoint at 'missing.safetensors'"),
        ({"data.calibration_images": 5000}, "digits train has 1297 images, asked for 5000"),
        ({"norm_tuning.images": 5000}, "digits train has 1297 images, asked for 5000"),
        ({"model.name": "deit_tiny_patch16_224"}, "holds the parameters of deit_digits, not of deit_tiny_patch16"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, monkeypatch, settings, message):
    config = digits.get_config()
    config.update_from_flattened_dict({"out": str(tmp_path), "norm_tuning.enabled": True} | settings)
    monkeypatch.setattr(Experiment, "quantize", lambda *_: pytest.fail("it runs"))
    with pytest.raises((ValueError, OSError), match=message):
        quantize.run(config)


def test_exit_codes_tell_wrong_input_from_failure():
    wrong = ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError
    assert [common._exit_code(kind("why")) for kind in (*wrong, OSError, common.Failed)] == [2] * 5 + [1, 1]


def test_converting_a_checkpoint(tmp_path):
    model = create_vit("deit_tiny_patch16_224")
    save_file(timm_state(np.random.default_rng(0), model), tmp_path / "timm.safetensors")
    other = tmp_path / "other" / "timm.safetensors"
    other.parent.mkdir()
    other.hardlink_to(tmp_path / "timm.safetensors")
    (tmp_path / "other" / "config.json").write_text('{"num_attention_heads": 6}', encoding="utf-8")
    arguments = ["--model=deit_tiny_patch16_224", f"--source={tmp_path}/timm.safetensors", f"--out={tmp_path}/ours"]
    wrong = (
        (
            [f"--source={other}", "--out=unused"],
            "error: .*config.json says that num_attention_heads is 6, and for deit_tiny.* it is 3",
        ),
        (
            [f"--source={other}", "--model=deit_small_patch16_224"],
            "error: .*config.json says|error: this checkpoint is not one of the model given",
        ),
        (
            ["--source=nobody/nothing"],
            "error: .*(give a local file with --source|pip install huggingface_hub)",
        ),
    )
    lines = [
        arguments,
        [arguments[0], f"--source={tmp_path}", "--out=~/ours"],
        *(arguments + more for more, _ in wrong),
    ]
    lines = [["experiments.convert_checkpoint", *line] for line in lines]
    done, at_home, *failed = run_all(lines, tmp_path, HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert sum(a.size for a in jax.tree.leaves(load_params(tmp_path / "ours"))) == 5_717_416
    assert at_home.returncode == 0, at_home.stderr
    assert (tmp_path / "home" / "ours").is_file()
    for one, (_, message) in zip(failed, wrong, strict=True):
        assert one.returncode == 2 and "Traceback" not in one.stderr
        assert re.search(message, one.stderr.splitlines()[-1])


def test_a_download_says_what_it_fetches(tmp_path, monkeypatch, capsys):
    library = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository, file, *, revision):
        asked.append((repository, file, revision))
        if file == "config.json":
            raise library.errors.EntryNotFoundError("404")
        return str(tmp_path / "snapshots" / "0123abc" / file)

    monkeypatch.setattr(library, "hf_hub_download", download)
    assert hub.fetch("timm/x", "v2") == tmp_path / "snapshots/0123abc/model.safetensors"
    assert asked == [("timm/x", "model.safetensors", "v2"), ("timm/x", "config.json", "v2")]
    assert capsys.readouterr().out.splitlines() == [
        "model.safetensors and config.json of timm/x at revision v2, from the Hugging Face hub",
        "timm/x has no config.json, with which the model could be compared",
        "commit 0123abc",
    ]


def test_home_folders_in_paths(tmp_path):
    """In a configuration file, and where a shell leaves them as they are."""
    (tmp_path / "script.py").write_text(
        "from experiments import common\n"
        "def main(_):\n"
        "    c = common.get_config()\n"
        "    print(c.out, c.model.checkpoint, c.data.root, c.seed)\n"
        "common.run(main)\n",
        encoding="utf-8",
    )
    paths = {"out": "~/out", "model.checkpoint": "~/x/y", "data.root": "~"}
    flags = [f"--config.{key}={value}" for key, value in paths.items()]
    for name, lines in (("own", [f"    config.{key} = {value!r}\n" for key, value in paths.items()]), ("plain", [])):
        (tmp_path / f"{name}.py").write_text(
            "from configs import base\ndef get_config():\n    config = base.get_config()\n" + "".join(lines) +
            "    return config\n", encoding="utf-8",
        )  # fmt: skip
    lines = [["script", "--config=~/own.py"], ["script", "--config=~/plain.py", *flags]]
    for done in run_all(lines, tmp_path, HOME=str(tmp_path), PYTHONPATH=str(tmp_path)):
        assert done.stdout.split() == [f"{tmp_path}/out", f"{tmp_path}/x/y", f"{tmp_path}", "0"], done.stderr


def cells_of(**table):
    config = digits.get_config()
    config.norm_tuning.enabled = table.pop("norm_tuning", False)
    config.table.update(table)
    return grid.cells(config, "digest")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rows": ("rtn", "awq")}, r"unknown row 'awq' in config\.table\.rows; expected some of"),
        ({"alphabets": ("2", "9")}, "unknown alphabet '9'"),
        ({"rows": ("beacon",), "sweeps": (3, -1)}, "sweeps must be an integer of at least 0, got -1"),
    ],
)
def test_mistakes_in_a_table_are_found_before_it_runs(table, message):
    with pytest.raises(ValueError, match=message):
        cells_of(**table)


def test_levels_of_ones_own_in_a_table():
    assert [c.alphabet for c in cells_of(rows=("rtn",), alphabets=((-1, 0, 1), 2))] == ["", "-1,0,1", "2"]


def test_axes_of_a_table():
    cells = cells_of(rows=("rtn", "beacon"), alphabets=("2", "3"), sweeps=(1, 6), calibration_images=(64, 128))
    assert list(dict.fromkeys(c.row for c in cells)) == [
        "Float", "RTN, 64 examples", "RTN, 128 examples",
        "Beacon w/o E.C., K = 1, 64 examples", "Beacon w/o E.C., K = 1, 128 examples",
        "Beacon w/o E.C., K = 6, 64 examples", "Beacon w/o E.C., K = 6, 128 examples"]  # fmt: skip
    assert len({c.key for c in cells}) == len(cells) == 13
    assert [c.quant["options"]["sweeps"] for c in cells if c.row.endswith("K = 6, 64 examples")] == [6, 6]
    at = cells_of(rows=("beacon", "comq"), alphabets=("1.58", 3, "4"), sweeps_at=(("3", 5), (4, 4)))
    assert [c.quant["options"]["sweeps"] for c in at[1:]] == [None, 5, 4, None, None, None]


def mixed_config(budget=3.0):
    config = digits.get_config()
    config.data.update(calibration_images=32, test_images=100, batch_size=64)
    config.quant.update(bits_per_parameter=budget, candidate_alphabets=("2", 3), method="rtn")
    config.table.rows, config.table.alphabets = ("rtn",), ("2",)
    return config


def test_a_budget_is_a_column_and_decides_the_key():
    config = mixed_config()
    _, uniform, cell = grid.cells(config, "digest")
    assert (cell.row, cell.alphabet) == ("RTN", "mixed 3")
    assert uniform == cells_of(rows=("rtn",), alphabets=("2",), calibration_images=(32,))[1]
    keys = {cell.key}
    for changed in (dict(bits_per_parameter=3.1), dict(bits_per_parameter=3.0, candidate_alphabets=("2", "4"))):
        config.quant.update(changed)
        keys.add(grid.cells(config, "digest")[2].key)
    config.table.bits_per_parameter = (3, 3.5)
    assert [c.alphabet for c in grid.cells(config, "digest")] == ["", "2", "mixed 3", "mixed 3.5"]
    keys |= {c.key for c in grid.cells(config, "digest")}
    assert len(keys) == 6
    config.quant.alphabet = "4"  # of no layer
    assert {c.key for c in grid.cells(config, "digest")} < keys and grid.single_cell(config, "").alphabet == "mixed 3"
    config.quant.candidate_alphabets = ("2", "9")
    with pytest.raises(ValueError, match="unknown alphabet '9'"):
        grid.cells(config, "digest")


@pytest.mark.slow
def test_bit_widths_are_chosen_once_and_kept(tmp_path, monkeypatch):
    config = mixed_config()
    task = make_task(config)
    experiment, cell = Experiment(config, task), grid.cells(config, "digest")[2]
    store = results.LayerStore(tmp_path / "layers")
    done = experiment.quantize(cell, store)
    alphabets = {r.layer: r.alphabet for r in done.reports}
    assert set(alphabets.values()) == {"2", "3"} and len(alphabets) == 16
    bits = sum(leaf.bits for leaf in done.coverage.leaves if leaf.quantized)
    assert bits <= 3.0 * sum(leaf.quantized for leaf in done.coverage.leaves)
    assert all(name in experiment.bit_widths for name in alphabets)
    # Stopped and started again, it does not choose anew.
    monkeypatch.setattr("experiments.experiment.choose_alphabets", None)
    again = Experiment(config, task)
    resumed = again.quantize(cell, store)
    assert again.bit_widths == experiment.bit_widths
    jax.tree.map(np.testing.assert_array_equal, resumed.params, done.params)
    store.clear()
    assert store.load_choice() is None


def test_a_budget_that_cannot_be_kept_is_found_before_any_cell_runs():
    config = mixed_config(2.4)
    with pytest.raises(ValueError, match=r"bits_per_parameter=2\.4 is below 2\.5, the least"):
        Experiment(config, make_task(config)).check(grid.cells(config, "digest"))


def test_row_scales_are_folded_before_quantizing(tmp_path, capsys):
    """And the results are compared with the float model as it was."""
    config = mixed_config()
    config.quant.update(bits_per_parameter=None, layers="blocks_0.*")
    config.rows.scaled = base.table_row("RTN + row scales", "rtn", "float", balance_rows=True)
    config.table.rows = ("rtn", "scaled")
    task = make_task(config)
    experiment, (_, plain, scaled) = Experiment(config, task), grid.cells(config, "digest")
    experiment.check([plain, scaled])
    batches = task.calibration(32, 0)
    start = experiment.float_params(scaled.quant, batches)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("row scales: folded for 3 of 4 layers, mean spread of the rows 0.")
    jax.tree.map(
        np.testing.assert_array_equal,
        start,
        balance_rows(task.apply, task.params, next(iter(batches)), "blocks_0.*").params,
    )
    assert experiment.evaluate(start)["kl"].value < 1e-6  # the same function
    assert experiment.float_params(plain.quant, batches) is task.params
    done = experiment.quantize(scaled, results.LayerStore(tmp_path / "layers"))
    np.testing.assert_array_equal(done.params["blocks_0"]["norm1"]["scale"], start["blocks_0"]["norm1"]["scale"])
    save_quantized(tmp_path / "quantized.safetensors", done)
    loaded, _ = load_quantized(tmp_path / "quantized.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, done.params)


def test_rows_that_count_otherwise_have_statistics_of_their_own(tmp_path):
    config = mixed_config()
    config.quant.update(bits_per_parameter=None, layers="blocks_0.*")
    for name, weights in (("first", "uniform"), ("second", "influence"), ("third", "uniform")):
        config.rows[name] = base.table_row(name, "rtn", "float", row_weights=weights)
    config.table.rows = ("first", "second", "third")
    task = make_task(config)
    experiment, (_, *grid_cells) = Experiment(config, task), grid.cells(config, "digest")
    errors = []
    for cell in grid_cells:
        done = experiment.quantize(cell, results.LayerStore(tmp_path / cell.title))
        errors.append([report.output_error for report in done.reports])
    assert errors[0] == errors[2] != errors[1]
    keys = [cell.float_stats_key for cell in grid_cells]
    assert sorted(keys) and keys[0] == keys[2] != keys[1]


def test_row_scales_decide_the_key():
    config = digits.get_config()
    config.table.rows, config.table.alphabets = ("plus_ec", "plus_rows_ec"), ("2",)
    _, plain, scaled = grid.cells(config, "digest")
    assert plain.key != scaled.key and scaled.row == "Beacon plus + row scales w/ E.C."
    config.quant.balance_rows = True  # of every row that does not say otherwise
    assert [c.key for c in grid.cells(config, "digest")[1:]] == [scaled.key] * 2
    config.rows.plus_ec.balance_rows = False
    assert [c.key for c in grid.cells(config, "digest")[1:]] == [plain.key, scaled.key]
    with config.unlocked():
        del config.quant.balance_rows  # results from before there was such a key stay what they are
    assert [c.key for c in grid.cells(config, "digest")[1:]] == [plain.key, scaled.key]
    config.rows.plus_ec = dict(config.rows.plus_ec, balance_rows="yes")
    with pytest.raises(ValueError, match="balance_rows is True or False, got 'yes'"):
        grid.cells(config, "digest")


def test_tuned_cells_share_the_quantized_model_and_files_may_move():
    before, after = cells_of(rows=("rtn",), alphabets=("2",), seeds=(3,), norm_tuning=True)[1:]
    assert after.row == before.row + TUNED and (before.tuning, before.seed, after.seed) == (None, 3, 3)
    assert before.quant_key == after.quant_key and before.key != after.key
    config = digits.get_config()
    config.out, config.execution.activations, config.quant.allow_few_rows = "elsewhere", "memory", True
    config.quant.options.block_size = 7
    assert grid.cells(config, "digest")[1].key == cells_of()[1].key
    assert grid.cells(config, "other")[1].key != cells_of()[1].key
    config.execution.forward_dtype = "bfloat16"
    assert grid.cells(config, "digest")[1].key != cells_of()[1].key


def test_what_decides_the_images_is_their_identity(tmp_path):
    config = digits.get_config()
    identity = make_task(config).fingerprint()
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(config.model.checkpoint).read_bytes())
    config.data.workers, config.model.checkpoint = 5, str(moved)
    config.data.batch_size = 7
    assert make_task(config).fingerprint() == identity
    config.data.test_images = 100
    assert make_task(config).fingerprint() != identity


def test_a_damaged_line_is_named(tmp_path):
    line = json.dumps(result("RTN", "2", 90.0).line())
    for damaged in ("", '{"key": "a"}', "[]", line[:-1]):
        (tmp_path / "results.jsonl").write_text(f"{line}\n{damaged}\n{line}\n")
        with pytest.raises(ValueError, match=r"line 2 of .* is not a result of this version of the script"):
            results.read_results(tmp_path / "results.jsonl")


def test_a_result_is_read_as_it_was_written(tmp_path):
    written = [result("Float", "", 98.0), result("RTN", "2", 90.0, error=0.25), result("RTN" + TUNED, "2", 91.0)]
    for one in written:
        append_line(tmp_path / "results.jsonl", one.line())
    assert results.read_results(tmp_path / "results.jsonl") == written


@pytest.mark.slow
def test_retraining_gives_the_shipped_accuracy(tmp_path):
    path = tmp_path / "digits.safetensors"
    run("train", f"--config.train.float_checkpoint={path}")
    config = digits.get_config()
    task = make_task(config)
    apply = jax.jit(task.apply)
    accuracies = [
        evaluate(lambda batch, params=params: apply(params, batch), task.test, {"top1": Top1()})["top1"].value
        for params in (task.params, load_params(path))
    ]
    assert abs(accuracies[0] - accuracies[1]) <= 1
