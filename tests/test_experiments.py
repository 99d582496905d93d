"""The scripts, run as a user runs them."""

import csv
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import digits
from experiments import common, render, tables

SMALL = ("--config.data.calibration_images=16", "--config.data.test_images=100", "--config.data.batch_size=64")


def digits_config():
    return digits.get_config()


def run(script, *arguments, fails=False):
    command = [sys.executable, "-m", f"experiments.{script}", "--config=configs/digits.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_table_is_resumed_and_rendered(tmp_path):
    arguments = (
        *SMALL,
        f"--config.out={tmp_path}",
        "--config.table.alphabets=('2','3')",
        "--config.table.rows=('rtn','comq')",
    )
    first = run("tables", *arguments)
    assert "5 of 5 results computed" in first
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [(r["row"], r["alphabet"]) for r in results] == [
        ("Float", ""), ("RTN", "2"), ("RTN", "3"), ("COMQ", "2"), ("COMQ", "3")]  # fmt: skip
    assert all(len(r["layers"]) == 16 and r["count"] == 100 for r in results[1:])
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    np.testing.assert_allclose([float(r["top1"]) for r in rows], [r["top1"] for r in results])
    assert (tmp_path / "top1.png").read_bytes().startswith(b"\x89PNG")
    # Killed while the last line was written: that cell alone is computed again, to the same numbers.
    (tmp_path / "results.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:50])
    assert "1 of 5 results computed" in run("tables", *arguments)
    again = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    deterministic = ("row", "alphabet", "key", "top1", "top5", "layer_error", "logit_error")
    assert [[r.get(k) for k in deterministic] for r in again] == [[r.get(k) for k in deterministic] for r in results]


def test_quantize_writes_a_model_that_loads(tmp_path):
    from beacon_jax import evaluate, load_quantized

    assert "top-1" in run("quantize", *SMALL, f"--config.out={tmp_path}", "--config.quant.alphabet=3")
    line = json.loads((tmp_path / "quantize.jsonl").read_text())
    assert len(line["layers"]) == 16 and line["config"]["quant"]["alphabet"] == "3"
    config = digits_config()
    config.data.test_images = 100
    params, layers = load_quantized(tmp_path / "quantized.safetensors")
    model = common.load_model(config)[0]
    result = evaluate(common.predictor(model)(params), common.test_batches(config))
    assert len(layers) == 16 and result.top1 == pytest.approx(line["after"]["top1"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.quantt=1", "error: --config has no such key"),
        ("stray", "error: unexpected arguments stray; a setting is given as --config.key=value"),
        ("--config.quant.options.centering=foo", "error: unknown centering 'foo'"),
        ("--config.quant.alphabet=9", "error: unknown alphabet '9'"),
        ("--config.model.checkpoint=missing.safetensors", "error: no checkpoint at 'missing.safetensors'"),
        ("--config.data.calibration_images=5000", "error: digits train has 1297 images, asked for 5000"),
        ("--config.model.name=deit_tiny_patch16_224", "does not hold the parameters of deit_tiny_patch16_224"),
    ],
)
def test_mistakes_end_in_one_sentence(argument, message):
    stderr = run("quantize", argument, fails=True)
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def convert(*arguments, **options):
    command = [sys.executable, "-m", "experiments.convert_checkpoint", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_converting_a_checkpoint(tmp_path):
    from safetensors.numpy import save_file

    from beacon_jax import load_params
    from beacon_jax.models.vit import create_vit
    from tests.models.test_convert import timm_state

    model = create_vit("deit_tiny_patch16_224")
    save_file(timm_state(np.random.default_rng(0), model), tmp_path / "timm.safetensors")
    arguments = ["--model=deit_tiny_patch16_224", f"--source={tmp_path}/timm.safetensors", f"--out={tmp_path}/ours"]
    done = convert(*arguments)
    assert done.returncode == 0, done.stderr
    assert sum(a.size for a in jax.tree.leaves(load_params(tmp_path / "ours"))) == 5_717_416
    for changed, message in (
        ("--model=deit_small_patch16_224", "error: this checkpoint is not one of the model given"),
        (f"--source={tmp_path}/none.safetensors", "error: no checkpoint at"),
        ("--source=nobody/nothing", "give a local file with --source|pip install huggingface_hub"),
        ("--model=resnet", "error: unknown model 'resnet'"),
    ):
        failed = convert(*arguments, changed)
        assert failed.returncode == 1 and "Traceback" not in failed.stderr
        assert re.search(message, failed.stderr.splitlines()[-1])


def test_unknown_row():
    config = digits_config()
    config.table.rows = ("rtn", "awq")
    with pytest.raises(ValueError, match=r"unknown row 'awq' in config\.table\.rows; expected some of"):
        tables.cells(config)


def test_levels_of_ones_own_in_a_table():
    config = digits_config()
    config.table.rows, config.table.alphabets = ("rtn",), ((-1, 0, 1), 2)
    assert [cell["alphabet"] for cell in tables.cells(config)] == ["", "-1,0,1", "2"]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"key": "a"}\n\n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is not a result of this script"):
        tables.read_results(tmp_path / "results.jsonl")


def test_a_missing_cell_is_a_dash():
    base = dict(top1_stderr=0.5, count=100, layer_error=0.1, logit_error=0.1, seconds=1.0)
    results = [
        dict(base, row="Float", alphabet="", quant=None, top1=98.0),
        dict(base, row="RTN", alphabet="2", quant={}, top1=90.0),
        dict(base, row="COMQ", alphabet="3", quant={}, top1=97.0),
    ]
    top1 = render.markdown(results).splitlines()[2:6]
    assert [[c.strip() for c in line.split("|")[1:-1]] for line in top1[2:]] == [
        ["RTN", "90.00 (-8.00)", "–"],
        ["COMQ", "–", "97.00 (-1.00)"],
    ]


@pytest.mark.slow
def test_retraining_gives_the_shipped_accuracy(tmp_path):
    from beacon_jax import evaluate, load_params

    path = tmp_path / "digits.safetensors"
    run("train", f"--config.train.float_checkpoint={path}")
    config = digits_config()
    model, shipped = common.load_model(config)
    predict = common.predictor(model)
    accuracies = [evaluate(predict(p), common.test_batches(config)).top1 for p in (shipped, load_params(path))]
    assert abs(accuracies[0] - accuracies[1]) <= 1
