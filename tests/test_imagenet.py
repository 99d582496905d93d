"""The ImageNet experiment end to end, as a user runs it: conversion, preprocessing, every method, saving."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from beacon_jax import load_quantized
from beacon_jax.models.vit import create_vit
from configs import deit_b_imagenet
from tests.models.vits import timm_state

MODEL = "deit_tiny_patch16_224"
WNIDS = ("n01440764", "n01443537", "n01484850", "n15075141")


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{script}", *arguments], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_published_numbers_name_rows_of_the_table():
    from experiments import grid

    config = deit_b_imagenet.get_config()
    places = {(cell.row, cell.alphabet) for cell in grid.cells(config, "digest")}
    assert {(row, alphabet) for row, alphabet, _ in config.table.published} <= places
    assert len(places) == 1 + 16 * 9 * 2


@pytest.mark.slow
def test_from_a_checkpoint_and_jpegs_to_the_table(tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for wnid in WNIDS:
            for i in range(2):
                file = io.BytesIO()
                pixels = rng.integers(0, 255, (*rng.integers(230, 400, 2), 3), np.uint8)
                Image.fromarray(pixels).save(file, "JPEG")
                archive.writestr(f"{wnid}_{i}.JPEG", file.getvalue())
        archive.writestr("n01440764_broken.JPEG", file.getvalue()[:500])
    save_file(timm_state(rng, create_vit(MODEL)), tmp_path / "timm.safetensors")
    run("convert_checkpoint", f"--model={MODEL}", f"--source={tmp_path}/timm.safetensors", f"--out={tmp_path}/ours")
    common = (
        "--config=configs/deit_b_imagenet.py",
        f"--config.model.name={MODEL}",
        f"--config.model.checkpoint={tmp_path}/ours",
        f"--config.out={tmp_path}/out",
        f"--config.data.root={tmp_path}/images.zip",
        "--config.data.name=image_folder",
        "--config.data.shared_images=True",
        "--config.data.on_unreadable=skip",
        "--config.data.calibration_images=9",
        "--config.data.batch_size=4",
        "--config.quant.layers=blocks_0/.*",
    )
    tuning = ("--config.norm_tuning.images=9", "--config.norm_tuning.batch_size=4", "--config.norm_tuning.steps=1")
    rows = "--config.table.rows=('rtn','gptq_lsq_ec','beacon_ec','plus_ec')"  # all of them take minutes
    table = run("tables", *common, *tuning, "--config.table.alphabets=('2',)", rows)
    assert "9 of 9 results computed" in table and "published" not in table
    results = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert len(results) == 9 and all(r["metrics"]["top1"]["count"] == 8 for r in results)
    assert all(r["skipped"]["test"] == 1 for r in results)
    assert results[-1]["skipped"] == {"test": 1, "calibration": 1, "tuning": 1}
    errors = {r["row"]: r["layer_error"] for r in results if r["layers"]}
    assert len(errors) == 4 and all(error < errors["RTN"] for row, error in errors.items() if row != "RTN")
    assert "1 unreadable ones skipped" in run("quantize", *common, "--config.norm_tuning.enabled=False")
    params, layers = load_quantized(tmp_path / "out/quantized.safetensors")
    assert list(layers) == [f"blocks_0/{name}" for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")]
    assert params["blocks_11"]["mlp"]["fc1"]["kernel"].shape == (192, 768)
