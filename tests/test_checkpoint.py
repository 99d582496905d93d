import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from beacon_jax import METHODS, GramStats, QuantSpec, load_params, load_quantized, quantize, save_params, save_quantized
from beacon_jax.checkpoint import load_layer, save_layer, saved_model
from beacon_jax.graph.place import Place


@pytest.fixture
def params(rng):
    return {
        "block": {"fc": {"kernel": jnp.asarray(rng.normal(size=(10, 6)), jnp.float32), "bias": jnp.ones(6)}},
        "token": jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32),
    }


def test_params_round_trip(tmp_path, params):
    save_params(tmp_path / "new" / "p.safetensors", params)
    loaded = load_params(tmp_path / "new" / "p.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.safetensors"]
    assert saved_model(tmp_path / "new" / "p.safetensors") is None
    save_params(tmp_path / "named", params, model="deit_tiny")
    assert saved_model(tmp_path / "named") == "deit_tiny"
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "named"), params)


def test_views_of_transposed_arrays_are_saved_as_they_look(tmp_path, rng):
    kernel = rng.normal(size=(4, 3)).astype(np.float32).T
    save_params(tmp_path / "p.safetensors", {"kernel": kernel})
    np.testing.assert_array_equal(load_params(tmp_path / "p.safetensors")["kernel"], kernel)


@pytest.mark.parametrize("options", [{}, {"centering": "mean"}], ids=str)
@pytest.mark.parametrize("alphabet", ["1.58", "2", "2.58", "8"])
def test_quantized_round_trip(tmp_path, rng, params, alphabet, options):
    kernel = params["block"]["fc"]["kernel"]
    stats = GramStats.zeros(10).update(jnp.asarray(rng.normal(size=(30, 10)), jnp.float32))
    matrix = METHODS["beacon"](kernel, stats, alphabet, **options)
    path = tmp_path / "q.safetensors"
    places = {"block/fc": ("block/fc/kernel", Place.of(np.arange(60).reshape(10, 6)))}
    save_quantized(path, params, {"block/fc": matrix}, places)
    loaded, layers = load_quantized(path)
    np.testing.assert_array_equal(layers["block/fc"].codes, matrix.codes)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    save_quantized(tmp_path / "low.safetensors", low, {"block/fc": matrix}, places)
    restored = load_quantized(tmp_path / "low.safetensors")[0]["block"]["fc"]["kernel"]
    assert restored.dtype == jnp.bfloat16
    np.testing.assert_array_equal(restored, matrix.dequantize().astype(jnp.bfloat16))
    np.testing.assert_array_equal(loaded["block"]["fc"]["kernel"], matrix.dequantize())
    np.testing.assert_array_equal(loaded["token"], params["token"])
    assert "kernel" in params["block"]["fc"]  # the input tree is left alone


def test_layer_round_trip(tmp_path, rng):
    kernel, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((10, 6), (30, 10)))
    matrix = METHODS["gptq"](kernel, GramStats.zeros(10).update(x), "2.58", symmetric=False)
    save_layer(tmp_path / "layer", matrix, {"layer": "a", "error": 0.25, "shape": [10, 6], "sweeps": None})
    loaded, report = load_layer(tmp_path / "layer")
    assert report == {"layer": "a", "error": 0.25, "shape": [10, 6], "sweeps": None}
    np.testing.assert_array_equal(loaded.dequantize(), matrix.dequantize())
    save_params(tmp_path / "p", {"a": kernel})
    with pytest.raises(ValueError, match="does not hold a single quantized layer"):
        load_layer(tmp_path / "p")


def test_errors(tmp_path, params):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_params(tmp_path / "none")
    path = tmp_path / "p.safetensors"
    matrix = METHODS["rtn"](params["block"]["fc"]["kernel"], GramStats.zeros(10).update(jnp.ones((1, 10))), "2")
    with pytest.raises(ValueError, match="layer 'other' has no parameter 'other/kernel' in the tree"):
        save_quantized(path, params, {"other": matrix}, {"other": ("other/kernel", None)})
    save_params(path, params)
    with pytest.raises(ValueError, match="holds float parameters, not a quantized model"):
        load_quantized(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_params(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by this version of beacon_jax"):
        load_params(path)
    save_quantized(path, params, {}, {})
    with pytest.raises(ValueError, match="holds a quantized model; read it with load_quantized"):
        load_params(path)


def test_parts_of_leaves_and_other_trees(tmp_path, rng):
    """Slices of a stacked kernel, all and one of three, a bias change, and a tree that is no nested dict."""
    params = [{"a/b": jnp.asarray(rng.normal(size=(3, 8, 4)), jnp.float32)}, (jnp.ones(4),)]
    x = [rng.normal(size=(20, 8)).astype(np.float32)]

    def apply(p, x):
        for kernel in p[0]["a/b"]:
            x = jnp.tanh(x @ kernel + p[1][0][None]) @ jnp.eye(4, 8)
        return x

    for layers in (".*", r".*\[1\]"):
        result = quantize(apply, params, x, QuantSpec(method="rtn", layers=layers))
        assert list(result.layers) == (["0/a/b[0]", "0/a/b[1]", "0/a/b[2]"] if layers == ".*" else ["0/a/b[1]"])
        save_quantized(tmp_path / "q", result.params, result.layers, result.places)
        loaded, matrices = load_quantized(tmp_path / "q", like=params)
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, loaded, result.params)
        for name, matrix in result.layers.items():
            np.testing.assert_array_equal(matrices[name].codes, matrix.codes)
    with pytest.raises(ValueError, match="does not hold these parameters"):
        load_quantized(tmp_path / "q", like=[{"a/b": jnp.ones((3, 8, 5))}, (jnp.ones(4),)])


def test_files_of_before_kernels_had_places_still_load(tmp_path, rng, params):
    kernel = params["block"]["fc"]["kernel"]
    matrix = METHODS["rtn"](kernel, GramStats.zeros(10).update(jnp.ones((1, 10))), "2")
    codes = np.packbits((np.asarray(matrix.codes).reshape(-1, 1) >> np.arange(2)) & 1, bitorder="little")
    tensors = {"block/fc/kernel.codes": codes, "block/fc/bias": np.ones(6, np.float32)}
    tensors |= {f"block/fc/kernel.{f}": np.asarray(getattr(matrix, f)) for f in ("alphabet", "scale")}
    about = {"block/fc": {"shape": [10, 6], "dtype": "float32"}}
    save_file(tensors, tmp_path / "old", {"format": "beacon_jax 1", "quantized": json.dumps(about)})
    loaded, layers = load_quantized(tmp_path / "old")
    np.testing.assert_array_equal(layers["block/fc"].codes, matrix.codes)
    np.testing.assert_array_equal(loaded["block"]["fc"]["kernel"], matrix.dequantize())


def test_a_layer_keeps_its_bias_change(tmp_path, rng):
    matrix = METHODS["rtn"](jnp.ones((3, 2)), GramStats.zeros(3).update(jnp.ones((1, 3))), "2")
    save_layer(tmp_path / "layer", dataclasses.replace(matrix, bias_change=jnp.array([1.0, -2.0])), {})
    np.testing.assert_array_equal(load_layer(tmp_path / "layer")[0].bias_change, [1, -2])
    save_layer(tmp_path / "layer", matrix, {})
    assert load_layer(tmp_path / "layer")[0].bias_change is None
