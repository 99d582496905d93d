"""Files that version 1 wrote, kept as it wrote them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from beacon_jax import load_packed, load_params, load_quantized, load_record
from beacon_jax.checkpoint import load_layer, saved_model
from beacon_jax.packed import dequantize

FOLDER = Path(__file__).parent / "version_1"


def test_parameters():
    assert saved_model(FOLDER / "params.safetensors") == "a_name"
    assert load_params(FOLDER / "params.safetensors")["out"]["kernel"].dtype == "bfloat16"


def test_a_quantized_model():
    """With a stack of which one kernel is float, a convolution, offsets, 3, 6 and 256 levels."""
    expected = load_params(FOLDER / "params.safetensors")
    params, layers = load_quantized(FOLDER / "quantized.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    jax.tree.map(np.testing.assert_array_equal, dequantize(load_packed(FOLDER / "quantized.safetensors")), expected)
    assert {name: len(matrix.alphabet) for name, matrix in layers.items()} == {
        "stack[0]": 3, "stack[2]": 3, "conv": 6, "out": 256
    }  # fmt: skip
    np.testing.assert_array_equal(layers["stack[2]"].dequantize(), expected["stack"]["kernel"][2])
    record = load_record(FOLDER / "quantized.safetensors")
    assert record.version == 1 and record.spec is None and not record.reports


def test_a_layer():
    matrix, report = load_layer(FOLDER / "layer.safetensors")
    assert report["layer"] == "conv" and report["shape"] == [48, 4]
    _, layers = load_quantized(FOLDER / "quantized.safetensors")
    np.testing.assert_array_equal(matrix.dequantize(), layers["conv"].dequantize())


def test_a_model_of_before_kernels_had_places(tmp_path, rng):
    codes = rng.integers(4, size=(10, 6)).astype(np.uint8)
    packed = np.packbits((codes.reshape(-1, 1) >> np.arange(2)) & 1, bitorder="little")
    alphabet, scale = np.array([-1.5, -0.5, 0.5, 1.5], np.float32), rng.normal(size=6).astype(np.float32)
    tensors = {"block/fc/kernel.codes": packed, "block/fc/bias": np.ones(6, np.float32)}
    tensors |= {"block/fc/kernel.alphabet": alphabet, "block/fc/kernel.scale": scale}
    about = {"block/fc": {"shape": [10, 6], "dtype": "float32"}}
    save_file(tensors, tmp_path / "old", {"format": "beacon_jax 1", "quantized": json.dumps(about)})
    loaded, layers = load_quantized(tmp_path / "old")
    np.testing.assert_array_equal(layers["block/fc"].codes, codes)
    np.testing.assert_array_equal(loaded["block"]["fc"]["kernel"], scale[None] * alphabet[codes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv:codes": np.full(18 * 4, 255, np.uint8)}, "code 7 is outside an alphabet of 6 levels"),
        ({"conv:codes": np.zeros(3, np.uint8)}, r"uint8 \(3,\) does not hold \(48, 4\) codes of 3 bits"),
        ({"conv:codes": None}, "does not hold what it should"),
        ({"conv:scale": np.full(4, np.nan, np.float32)}, "layer 'conv': scales are not finite"),
        ({"conv:scale": np.ones(5, np.float32)}, r"expected float32 scales \(4,\), got float32 \(5,\)"),
        ({"conv:offset": np.ones(4)}, r"expected float32 offsets \(4,\), got float64 \(4,\)"),
        ({"conv:alphabet": np.array([1, 0, 2, 3, 4, 5], np.float32)}, "levels are 2 to 256 finite numbers, ascending"),
    ],
)
def test_what_does_not_fit_is_refused_in_them_too(tmp_path, change, message):
    from safetensors import safe_open

    with safe_open(FOLDER / "quantized.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(FOLDER / "quantized.safetensors") | change
    save_file({k: a for k, a in tensors.items() if a is not None}, tmp_path / "q", metadata=metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(tmp_path / "q")
    assert str(tmp_path / "q") in str(caught.value)
