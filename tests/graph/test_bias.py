import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.graph.model import Model


def biases(apply, params, batch):
    """{layer: path of its bias}."""
    model = Model(apply, params)
    model.add(batch)
    return {name: model.leaves[leaf] for name, leaf in model.biases.items()}


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
    ],
)
def test_what_is_none(apply, rng):
    shapes = {"w": (4, 4), "v": (4, 4), "b": (1, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    assert biases(apply, params, rng.normal(size=(3, 4)).astype(np.float32)) == {}
