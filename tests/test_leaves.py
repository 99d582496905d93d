"""Keys of random numbers among the parameters, and numbers wider than what JAX takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import FloatStats, QuantSpec, load_packed, load_quantized, make_mesh, quantize, save_quantized
from beacon_jax.checkpoint import load_params, save_params
from beacon_jax.devices import Placement
from beacon_jax.leaves import as_jax_arrays, as_key, key_name, key_numbers
from beacon_jax.norm_tuning import NormTuning, tune_norms
from beacon_jax.tensor_file import read_tensors

BATCHES = [np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)]
WEIGHT = np.random.default_rng(1).normal(size=(6, 4))
SPEC = QuantSpec(method="rtn", alphabet="2")


def noisy(params, x):
    return x @ params["w"] + 0.1 * jax.random.normal(params["key"], (1, 4))


def scaled(params, x):
    return params["norm"]["scale"] * (x @ params["w"])


def test_a_key_is_used_kept_and_saved(tmp_path):
    params = {"w": WEIGHT.astype(np.float32), "key": jax.random.key(3)}
    result = quantize(noisy, params, BATCHES, SPEC, float_stats=FloatStats())
    assert result.params["key"] == params["key"] and list(result.layers) == ["w"]
    save_quantized(tmp_path / "q", result)
    for loaded in (load_packed(tmp_path / "q")["key"], load_quantized(tmp_path / "q", like=params)[0]["key"]):
        assert loaded.dtype == params["key"].dtype and loaded == params["key"]


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_arrays_of_keys_of_every_kind(tmp_path, kind):
    keys = jax.random.split(jax.random.key(5, impl=kind), 3)
    save_params(tmp_path / "p", {"own": {"keys": keys}})
    read = load_params(tmp_path / "p", like={"own": {"keys": keys}})["own"]["keys"]
    assert read.dtype == keys.dtype and (read == keys).all()
    assert read_tensors(tmp_path / "p").tensors["own/keys"].shape == (3,)


def test_numbers_that_are_no_key():
    key = jax.random.key(0)
    assert as_key(key_numbers(key), key_name(key)) == key
    for numbers, kind in ((np.zeros(3, np.uint32), "threefry2x32"), (np.zeros(2), "rbg"), (key_numbers(key), "none")):
        with pytest.raises(ValueError, match=f"is no key of the kind '{kind}'"):
            as_key(numbers, kind)


def test_a_key_on_a_mesh():
    placed = Placement(make_mesh(4, 2)).everywhere({"key": jax.random.key(7)})["key"]
    assert placed == jax.random.key(7) and placed.sharding.is_fully_replicated and len(placed.devices()) == 8


def test_what_loses_precision_is_named(caplog):
    params = {"w": WEIGHT, "norm": {"scale": np.ones((1, 4))}}
    said = (
        "double precision is off in JAX, so that 2 parameters lose some: norm/scale (float64 as float32), "
        "w (float64 as float32); set JAX_ENABLE_X64=1 to keep it"
    )
    with caplog.at_level("WARNING", logger="absl"):
        result = quantize(scaled, params, BATCHES, SPEC)
    assert caplog.messages == [said]
    assert {str(a.dtype) for a in jax.tree.leaves(result.params)} == {"float32"}
    caplog.clear()
    many = {str(i): np.arange(3) for i in range(9)}
    with caplog.at_level("WARNING", logger="absl"):
        as_jax_arrays(many)
        as_jax_arrays(jax.tree.map(jnp.asarray, many))
    (message,) = caplog.messages
    assert "9 parameters lose some: 0 (int64 as int32)" in message and "5 (int64 as int32), …; set" in message


def test_nothing_is_lost_in_double_precision(x64, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        assert as_jax_arrays({"w": WEIGHT})["w"].dtype == np.float64
    assert not caplog.messages


def test_tuned_norms_that_lose_precision_are_named(caplog):
    params = {"w": jnp.asarray(WEIGHT, jnp.float32), "norm": {"scale": np.ones((1, 4))}}
    tuning = NormTuning(steps=1, loss="mse")
    with caplog.at_level("WARNING", logger="absl"):
        tune_norms(scaled, params, lambda batch: scaled(params, batch), BATCHES * 2, tuning, norms="norm/scale")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "norm/scale (float64 as float32); set JAX_ENABLE_X64=1 to keep it"
    ]
