"""The influence of rows against brute force: the whole Jacobian of the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import FloatStats, QuantSpec, influence, quantize, run
from beacon_jax.devices import Placement
from beacon_jax.graph.model import Model
from beacon_jax.influence import Influence
from tests.spy import SPY, spy

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


def read_first(params, batch):
    """Logits of the first of T tokens, which no other one reaches."""
    hidden = jnp.tanh(batch["x"] @ params["one"])
    return (hidden @ params["two"])[:, 0] @ params["head"]


@pytest.fixture
def tokens():
    rng = np.random.default_rng(1)
    shapes = dict(one=(3, 4), two=(4, 3), head=(3, 2))
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    batches = [{"x": rng.normal(size=(4, 5, 3)).astype(np.float32)} for _ in range(2)]
    return params, batches


def influenced(**fields):
    return QuantSpec(**dict(method="rtn", row_weights="influence", layers="one|two") | fields)


def test_the_statistics_have_these_weights(tokens):
    params, batches = tokens
    given = [np.array([1, 2, 0, 1], np.float32), np.array([1, 1, 1, 3], np.float32)]
    order = iter(given)
    with spy() as seen:
        quantize(read_first, params, batches, influenced(method=SPY), weights=lambda batch: next(order))
    # Tokens that the logits do not depend on keep the half that all have, and the first ones share the other half, each
    # batch by itself in proportion to the roots that the class finds.
    model, found = Model(read_first, params), Influence(Placement())
    for batch, own in zip(batches, given, strict=True):
        signature = model.add(batch)

        def rows(use, own=own):
            return np.repeat(own, use.rows // 4)

        found.add(signature, model[signature], jax.tree.leaves(params), [batch["x"]], own, rows)
    (use,) = model.first.found.layers[0].uses
    factor = np.stack([found.factor(i, "one", use).reshape(4, 5) for i in range(2)])
    np.testing.assert_array_equal(factor[:, :, 1:], 0.5)
    assert (factor[:, :, 0][np.stack(given) > 0] > 0.5).all()
    x, w = np.stack([batch["x"] for batch in batches]), factor * np.stack(given)[:, :, None]
    np.testing.assert_allclose(seen[0].stats.H, np.einsum("ibt,ibtn,ibtk->nk", w, x, x), rtol=1e-4, atol=1e-4)
    assert float(seen[0].stats.count) == pytest.approx(
        5 * np.concatenate(given).sum(), rel=1e-5
    )  # factors are 1 on average
    assert int(seen[0].stats.rows) == 5 * 7


def test_the_directions_are_always_the_same(tokens):
    runs = [quantize(read_first, *tokens, influenced()) for _ in range(2)]
    for a, b in zip(*(jax.tree.leaves(done.params) for done in runs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_of_other_row_weights_are_not_taken(tokens):
    stats = FloatStats()
    quantize(read_first, *tokens, influenced(row_weights="uniform"), float_stats=stats)
    with pytest.raises(ValueError, match="float_stats holds statistics of another"):
        quantize(read_first, *tokens, influenced(), float_stats=stats)


def test_models_without_derivatives_are_named(tokens):
    def looped(params, batch):
        logits = read_first(params, batch)
        return jax.lax.while_loop(lambda y: jnp.abs(y).sum() > 1, lambda y: y / 2, logits)

    with pytest.raises(ValueError, match="row_weights='influence' takes a model that JAX can differentiate"):
        quantize(looped, *tokens, influenced())
    with pytest.raises(ValueError, match="the model has no floating-point outputs"):
        quantize(lambda params, batch: read_first(params, batch).argmax(-1), *tokens, influenced())
    with pytest.raises(ValueError, match="unknown row_weights 'most'; expected one of uniform, influence"):
        influenced(row_weights="most")


def test_layers_without_influence_are_named(rng):
    params = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in "abc"}
    batches = [rng.normal(size=(40, 4)).astype(np.float32) for _ in range(2)]

    def gated(params, x):
        gate = jnp.where(jax.lax.stop_gradient(jnp.tanh(x) @ params["a"]) > 0, 1.0, 0.5)
        return (gate * (x @ params["b"])) @ params["c"]

    spec = QuantSpec(method="rtn", row_weights="influence")
    notes = {report.layer: report.note for report in quantize(gated, params, batches, spec).reports}
    assert notes == {"a": run.NO_INFLUENCE, "b": "", "c": ""}
