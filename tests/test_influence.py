"""The influence of rows against brute force: the whole Jacobian of the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import influence
from beacon_jax.devices import Placement
from beacon_jax.graph.model import Model
from beacon_jax.influence import Influence

B = 3


def apply(params, batch, taps=None):
    """A convolution with groups, experts, a kernel on the left that is used twice, and a readout of one row."""
    taps = taps or {}

    def product(name, y):
        return y + taps[name] if name in taps else y

    conv = jax.lax.conv_general_dilated(
        batch, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    x = jnp.tanh(product("conv", conv)).reshape(B, 4, 4)
    x = x + jnp.tanh(product("experts", jnp.einsum("bti,tio->bto", x, params["experts"])))
    for name in ("left", "again"):
        x = x + jnp.tanh(product(name, jnp.einsum("oi,bti->obt", params["left"], x))).transpose(1, 2, 0)
    mixed = jax.nn.softmax(x @ x.transpose(0, 2, 1)) @ x
    return product("head", mixed[:, 0] @ params["head"])


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = dict(conv=(3, 3, 1, 4), experts=(4, 4, 4), left=(4, 4), head=(4, 3))
    params = {name: jnp.asarray(rng.normal(size=shape) * 0.6, jnp.float32) for name, shape in shapes.items()}
    return params, rng.normal(size=(B, 4, 4, 2)).astype(np.float32)


def exact(params, batch):
    """Σ ‖∂ outputs / ∂ row of a product‖², by the product's rows."""
    products = dict(conv=(B, 2, 2, 4), experts=(B, 4, 4), left=(4, B, 4), again=(4, B, 4), head=(B, 3))
    taps = {name: jnp.zeros(shape) for name, shape in products.items()}
    found = jax.jacobian(lambda taps: apply(params, batch, taps))(taps)
    squared = {name: np.square(a).sum((0, 1)) for name, a in found.items()}  # over the outputs
    return dict(
        conv=squared["conv"].sum(-1).reshape(-1),
        experts=squared["experts"].sum(-1).T,  # (E, m)
        left=np.concatenate([squared[name].sum(0).reshape(-1) for name in ("left", "again")]),
        head=squared["head"].sum(-1),
    )


def factors(params, batch, weights=None):
    model = Model(apply, params)
    signature = model.add(batch)
    traced, found = model[signature], Influence(Placement())
    found.add(signature, traced, jax.tree.leaves(params), [batch], weights, lambda use: None)
    return {
        layer.name: np.concatenate([found.factor(0, layer.name, use) for use in layer.uses], -1)
        for layer in traced.found.layers
    }


def test_influence_is_that_of_the_whole_jacobian(problem, monkeypatch):
    monkeypatch.setattr(influence, "DIRECTIONS", 3000)
    expected, found = exact(*problem), factors(*problem)
    assert expected.keys() == found.keys()
    for name, own in expected.items():
        root = np.sqrt(own)
        np.testing.assert_allclose(found[name], 0.5 + 0.5 * root / root.mean(-1, keepdims=True), rtol=0.06)
        assert found[name].mean(-1) == pytest.approx(1, abs=1e-5)


def test_rows_that_outputs_without_weight_read_count_least(problem):
    found = factors(*problem, weights=np.array([1, 0, 1], np.float32))
    np.testing.assert_array_equal(found["head"][1], 0.5)
    assert (found["head"][[0, 2]] > 0.6).all()
