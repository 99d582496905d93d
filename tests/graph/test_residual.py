import flax.linen as nn
import jax
import numpy as np
import pytest

from beacon_jax.graph.model import Model
from beacon_jax.models.vit import ViT


def residuals(apply, params, batch):
    """{layer: variable that its output is added to}."""
    model = Model(apply, params)
    return model[model.add(batch)].residuals


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="norm")(x))
        x = nn.Dense(4, name="fc2")(nn.relu(nn.Dense(8, name="fc1")(x))) + x
        x = x + 0.5 * nn.Dense(4, name="scaled")(x)
        x = nn.LayerNorm(name="last")(x + nn.Dense(4, use_bias=False, name="bare")(x).astype(np.float32))
        y = nn.Dense(4, name="twice")(x)
        return nn.Dense(4, name="out")(x + y * y + y)


def test_what_is_added_to_a_residual_stream(rng):
    x = rng.normal(size=(2, 5, 4)).astype(np.float32)
    params = jax.jit(Block().init)(jax.random.key(0), x)["params"]
    assert residuals(lambda p, b: Block().apply({"params": p}, b), params, x).keys() == {"attn/out", "fc2", "bare"}


def test_in_our_models(rng):
    model = ViT(image_size=8, patch_size=4, width=16, depth=2, heads=2, classes=3)
    found = residuals(model_apply(model), model.param_shapes(), np.zeros((2, 8, 8, 3), np.float32))
    assert found.keys() == {f"blocks_{i}/{name}" for i in range(2) for name in ("attn/proj", "mlp/fc2")}


def model_apply(model):
    return lambda params, batch: model.apply({"params": params}, batch)


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: x @ p["w"] + p["b"],
        lambda p, x: (y := x @ p["w"]) + jax.numpy.tanh(y),  # depends on the layer
        lambda p, x: (x @ p["w"]).T + x.T,  # other rows
        lambda p, x: x @ p["w"] + x[:1],  # of another shape
        lambda p, x: (x @ p["w"] + x) @ p["w"] + x,  # two uses
        lambda p, x: (x @ p["w"]).reshape(-1, 2) + x.reshape(-1, 2),  # rows cut in two
    ],
)
def test_what_is_none(apply, rng):
    params = {"w": rng.normal(size=(4, 4)).astype(np.float32), "b": np.ones((1, 4), np.float32)}
    assert residuals(apply, params, rng.normal(size=(3, 4)).astype(np.float32)) == {}
