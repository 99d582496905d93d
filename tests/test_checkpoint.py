import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS, GramStats, load_params, save_params
from beacon_jax.checkpoint import load_layer, save_layer, saved_model
from beacon_jax.tensor_file import read_tensors, write_tensors


@pytest.fixture
def params(rng):
    return {
        "block": {"fc": {"kernel": jnp.asarray(rng.normal(size=(10, 6)), jnp.float32), "bias": jnp.ones(6)}},
        "token": jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32),
    }


@pytest.fixture
def matrix(params, rng):
    stats = GramStats.zeros(10).update(jnp.asarray(rng.normal(size=(30, 10)), jnp.float32))
    return METHODS["rtn"](params["block"]["fc"]["kernel"], stats, "2.58", symmetric=False)


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


def test_another_structure(tmp_path, params):
    save_params(tmp_path / "p", params)
    loaded = load_params(tmp_path / "p", like=params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ValueError, match=r"p does not hold these parameters: .* is in one of them alone"):
        load_params(tmp_path / "p", like=params | {"token": jnp.ones(3)})


def test_a_name_that_begins_another(tmp_path):
    params = {"a": jnp.ones(3), "a/b": jnp.zeros(2)}
    save_params(tmp_path / "p", params)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "p", like=params), params)
    with pytest.raises(ValueError, match=r"p holds parameters below 'a', and one of that name; give `like`"):
        load_params(tmp_path / "p")


def test_layer_round_trip(tmp_path, matrix):
    about = {"layer": "a", "error": 0.25, "shape": [10, 6], "sweeps": None}
    save_layer(tmp_path / "layer", matrix, about)
    loaded, report = load_layer(tmp_path / "layer")
    assert report == about
    for field in ("codes", "alphabet", "scale", "offset"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(matrix, field))
    save_params(tmp_path / "p", {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="does not hold a single quantized layer"):
        load_layer(tmp_path / "p")
    with pytest.raises(ValueError, match="holds a quantized layer; read it with load_layer"):
        load_params(tmp_path / "layer")


def test_a_layer_keeps_its_bias_change(tmp_path, matrix):
    change = jnp.arange(6.0)
    save_layer(tmp_path / "layer", dataclasses.replace(matrix, bias_change=change), {})
    np.testing.assert_array_equal(load_layer(tmp_path / "layer")[0].bias_change, change)
    save_layer(tmp_path / "layer", matrix, {})
    assert load_layer(tmp_path / "layer")[0].bias_change is None


def test_damaged_layers_are_found(tmp_path, matrix):
    save_layer(tmp_path / "layer", matrix, {"layer": "a"})
    whole, rng = (tmp_path / "layer").read_bytes(), np.random.default_rng(0)
    for i in range(60):
        damaged, at = bytearray(whole), int(rng.integers(len(whole)))
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "layer").write_bytes(damaged if i % 4 else damaged[:at])
        with pytest.raises(ValueError, match=r"layer (is damaged|is not a readable safetensors|was not written by)"):
            load_layer(tmp_path / "layer")


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("codes", np.full(20, 255, np.uint8), "outside their alphabet of 6 levels"),
        ("codes", None, "does not hold what it should"),
        ("scale", np.ones(5, np.float32), r"expected float32 scales \(6,\), got float32 \(5,\)"),
        ("offset", np.full(6, np.inf, np.float32), "offsets are not finite"),
        ("bias_change", np.ones(5, np.float32), r"bias_change is no finite float32 of shape \(6,\)"),
        ("bias_change", np.full(6, np.nan, np.float32), r"bias_change is no finite float32 of shape \(6,\)"),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path, matrix, name, to, message):
    save_layer(tmp_path / "layer", matrix, {})
    file = read_tensors(tmp_path / "layer")
    tensors = {key: a for key, a in (file.tensors | {name: to}).items() if a is not None}
    write_tensors(tmp_path / "layer", "layer", tensors, file.about)
    with pytest.raises(ValueError, match=message) as caught:
        load_layer(tmp_path / "layer")
    assert str(tmp_path / "layer") in str(caught.value)
