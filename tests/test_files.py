from pathlib import Path

import pytest

from beacon_jax import save_quantized
from beacon_jax.metrics.base import Measured
from beacon_jax.quantized_file import read_quantized
from experiments.files import about, export, layer_table
from tests.small_model import make_result


def test_what_is_shown_is_what_is_in_the_file(tmp_path):
    result, path = make_result(), tmp_path / "q"
    save_quantized(path, result, licence="CC0-1.0", metrics={"top1": Measured(98.5, 0.5, 200)})
    lines = layer_table(*read_quantized(path)).splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(result.layers)
    row = next(line.split() for line in lines if line.startswith("conv"))
    # 192 codes of 6 levels: 39 groups of 5 in 13 bits, one byte and 5 bits each; scales and offsets of 4 outputs.
    bits = 8 * (39 + 25) + 2 * 4 * 32
    assert row[1:5] == ["48×4", "rtn", "2.58", "6"] and row[5] == f"{bits / 192:.4g}" and row[-1] == "symmetric=False"
    said = about(path, *read_quantized(path))
    assert f"{path.stat().st_size:,} bytes" in said and result.coverage.summary() in said
    assert "licence: CC0-1.0" in said and "top1: 98.5 ± 0.5 of 200 test examples" in said


def test_a_file_of_version_1():
    path = Path(__file__).parent / "version_1" / "quantized.safetensors"
    leaves, record = read_quantized(path)
    assert [line.split()[0] for line in layer_table(leaves, record).splitlines()[2:]] == [
        "stack[0]", "stack[2]", "conv", "out"
    ]  # fmt: skip
    assert "format version 1" in about(path, leaves, record)


def test_the_place_of_an_export_is_tried_first(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"cannot write .*: a folder is in its place"):
        export(tmp_path / "missing.safetensors", tmp_path, "timm")
