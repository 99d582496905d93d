import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.devices import Placement
from beacon_jax.graph.model import Model
from beacon_jax.quantized_leaves import QuantizedLeaves


def biases(apply, params, batch):
    """{layer: path of its bias}."""
    model = Model(apply, params)
    model.add(batch)
    return {name: model.leaves[bias.leaf] for name, bias in model.biases.items()}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3,), feature_group_count=2, name="conv")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="norm")(x))
        x = nn.Dense(8, use_bias=False, name="bare")(x)
        x = nn.DenseGeneral((2, 3), name="general")(x)
        return nn.Dense(4, name="out")(x.reshape(*x.shape[:-2], 6))


def test_of_usual_layers(rng):
    x = rng.normal(size=(2, 5, 4)).astype(np.float32)
    params = jax.jit(Net().init)(jax.random.key(0), x)["params"]
    names = ["conv", "attn/query", "attn/key", "attn/value", "attn/out", "general", "out"]
    found = biases(lambda p, b: Net().apply({"params": p}, b), params, x)
    assert found == {name: f"{name}/bias" for name in names}


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: x @ p["w"],
        lambda p, x: jax.nn.relu(x @ p["w"]) + p["b"],
        lambda p, x: (x @ p["w"] + p["b"]) * p["b"],  # used elsewhere too
        lambda p, x: (x @ p["w"] + p["b"]) @ p["w"] + p["b"] * 1,
        lambda p, x: (y := x @ p["w"]) + p["b"] + jnp.tanh(y),  # the product is, too
        lambda p, x: jnp.tanh(x @ p["v"] + p["b"]) @ p["w"] + p["b"],  # of two layers
        lambda p, x: x @ p["w"] + x,
        lambda p, x: (x @ p["w"] + p["b"]) * (jnp.tanh(x) + p["b"]),  # and of something that is no layer
        lambda p, x: x @ p["w"] + p["b"].reshape(4, 1),  # an element for each row
        lambda p, x: p["b"] - x @ p["w"],
        lambda p, x: (x @ p["w"]) * x + p["b"],  # a factor that is data
        lambda p, x: (x @ p["w"]) * p["b"].reshape(4, 1) + p["c"],  # or that of a row
    ],
)
def test_what_is_none(apply, rng):
    shapes = {"w": (4, 4), "v": (4, 4), "b": (1, 4), "c": (1, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    assert biases(apply, params, rng.normal(size=(4, 4)).astype(np.float32)) == {}


def normalized(x, p):
    factor = jax.lax.rsqrt(p["var"] + 1e-3) * p["scale"]
    return ((x - p["mean"]) * factor) / p["spread"] + p["bias"]


def with_axes(p, *shape):
    return {name: a if name == "w" else a.reshape(shape) for name, a in p.items()}


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x, y: normalized(x @ p["w"] + y, with_axes(p, 1, 4)),
        lambda p, x, y: normalized((x @ p["w"] + y).reshape(2, 15, 4), with_axes(p, 1, 1, 4)),
        lambda p, x, y: normalized((x @ p["w"] + y).reshape(-1, 2, 2), with_axes(p, 1, 2, 2)),
        lambda p, x, y: normalized((x @ p["w"] + y).T, with_axes(p, 4, 1)),
        lambda p, x, y: normalized(p["w"].T @ x.T + jnp.transpose(y), with_axes(p, 4, 1)),
    ],
)
def test_a_bias_behind_shifts_and_factors(apply, rng):
    """The bias changed by calibration is what a change of the products would be."""
    names = ("mean", "var", "scale", "spread", "bias")
    params = {name: rng.uniform(0.5, 2, size=4).astype(np.float32) for name in names}
    params["w"] = rng.normal(size=(3, 4)).astype(np.float32)
    x, change = rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    model = Model(lambda p, x: apply(p, x, jnp.zeros((1, 4))), params)
    model.add(x)
    assert {name: model.leaves[bias.leaf] for name, bias in model.biases.items()} == {"w": "bias"}
    (layer,) = model.layers
    leaves, structure = jax.tree.flatten(params)
    quantized = QuantizedLeaves(model, leaves, Placement())
    quantized.add_to_bias(layer, change)
    moved = jax.tree.unflatten(structure, quantized.values)
    nothing = np.zeros((1, 4), np.float32)
    np.testing.assert_allclose(apply(moved, x, nothing), apply(params, x, change[None, :]), rtol=1e-4, atol=1e-5)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, groups in enumerate((1, 2)):
            x = nn.Conv(4, (3, 3), feature_group_count=groups, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name=f"norm{i}")(x))
        return nn.Dense(2, use_bias=False, name="head")(x.mean((1, 2)))


def test_of_convolutions_before_batch_norms():
    x = np.ones((2, 4, 4, 2), np.float32)
    variables = jax.jit(Convolutions().init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]

    def apply(p, b):
        return Convolutions().apply({"params": p, "batch_stats": statistics}, b)

    assert biases(apply, params, x) == {"conv0": "norm0/bias", "conv1": "norm1/bias"}
