"""Errors of layers on other data, against forward passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import QuantSpec, quantize
from beacon_jax.layer_errors import layer_errors


def apply(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["w"] + params["first"]["b"][None, :])
    return hidden @ params["second"]["w"]


@pytest.fixture
def problem(rng):
    params = {
        "first": {"w": rng.normal(size=(12, 10)), "b": rng.normal(size=10)},
        "second": {"w": rng.normal(size=(10, 4))},
    }
    mixing = rng.normal(size=(12, 12))

    def batches(count):
        return [{"x": (1 + rng.normal(size=(n, 12)) @ mixing).astype(np.float32)} for n in (40, 40, count)]

    return jax.tree.map(lambda a: a.astype(np.float32), params), batches(40), batches(7)


@pytest.mark.parametrize("streams", ["both", "float"])
def test_against_forward_passes(problem, streams):
    params, calibration, test = problem
    spec = QuantSpec(method="beacon_plus", options=dict(effort="fast"), calibrate_on=streams)
    done = quantize(apply, params, calibration, spec)
    errors = layer_errors(apply, params, done, test, streams=streams)
    x = np.concatenate([batch["x"] for batch in test]).astype(np.float64)
    first, found = params["first"], done.params["first"]
    Y, Y_hat = (x @ np.asarray(p["w"], np.float64) + np.asarray(p["b"]) for p in (first, found))
    change = np.asarray(done.layers["first"].bias_change)
    np.testing.assert_allclose(found["b"] - first["b"], change, atol=1e-6)
    expected = np.square(Y - Y_hat).sum() / np.square(Y - first["b"]).sum()
    assert errors["first"] == pytest.approx(expected, rel=1e-4)
    hidden, hidden_hat = np.tanh(Y), np.tanh(Y_hat if streams == "both" else Y)
    Z, Z_hat = hidden @ params["second"]["w"], hidden_hat @ np.asarray(done.params["second"]["w"])
    assert errors["second"] == pytest.approx(np.square(Z - Z_hat).sum() / np.square(Z).sum(), rel=1e-4)
    assert list(errors) == ["first", "second"]


def test_rows_of_no_weight_do_not_count(problem):
    params, calibration, test = problem
    done = quantize(apply, params, calibration, QuantSpec(layers="first", method="rtn"))
    spoiled = [{"x": np.concatenate([batch["x"], 100 * np.ones((3, 12), np.float32)])} for batch in test]

    def weights(batch):
        return (batch["x"] != 100).any(1)

    expected, found = (
        layer_errors(apply, params, done, test),
        layer_errors(apply, params, done, spoiled, weights=weights),
    )
    assert expected.keys() == {"first"}
    assert found["first"] == pytest.approx(expected["first"], rel=1e-5)


def test_bad_arguments(problem):
    params, calibration, test = problem
    done = quantize(apply, params, calibration, QuantSpec(method="rtn"))
    for streams in ("quantized", ["both"]):
        with pytest.raises(ValueError, match=r"unknown streams .*; expected one of float, both"):
            layer_errors(apply, params, done, test, streams=streams)
    with pytest.raises(ValueError, match="expected a QuantizedModel and an Execution, got dict and Execution"):
        layer_errors(apply, params, done.params, test)
    with pytest.raises(ValueError, match="the quantized model's parameters are not those of this model"):
        layer_errors(lambda p, b: b["x"] @ p["w"], {"w": np.ones((12, 3), np.float32)}, done, test)
    with pytest.raises(ValueError, match="the quantized model has no layers of this model"):
        layer_errors(apply, params, dataclasses.replace(done, layers={}), test)
