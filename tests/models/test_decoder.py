import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.models.decoder import Decoder, create_decoder, rotate

MODEL = Decoder(vocabulary=11, width=12, depth=2, heads=3, hidden=16, dropout=0.5)


@pytest.fixture
def params(rng):
    """Random parameters, norms included."""
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.5, MODEL.param_shapes())


def norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def turned(x, position):
    """Pairs of features as complex numbers, turned by the angles of the position."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def one_sequence(params, ids):
    """Logits (T, vocabulary), in NumPy and double precision, token by token and head by head."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = params["embed"]["embedding"][ids]
    for i in range(MODEL.depth):
        block, size = params[f"blocks_{i}"], MODEL.width // MODEL.heads
        kernels = {name: p["kernel"] for part in ("attn", "mlp") for name, p in block[part].items()}
        h = norm(x, block["norm1"])
        q, k, v = (h @ kernels[name] for name in ("q_proj", "k_proj", "v_proj"))
        out = np.empty_like(x)
        for t in range(len(ids)):
            for head in range(MODEL.heads):
                part = slice(head * size, (head + 1) * size)
                query = turned(q[t, part], t)
                weights = np.exp([query @ turned(k[s, part], s) / math.sqrt(size) for s in range(t + 1)])
                out[t, part] = weights / weights.sum() @ v[: t + 1, part]
        x = x + out @ kernels["o_proj"]
        h = norm(x, block["norm2"])
        gate = h @ kernels["gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ kernels["up_proj"])) @ kernels["down_proj"]
    return norm(x, params["norm"]) @ params["head"]["kernel"]


def test_against_numpy(rng, params):
    ids = rng.integers(0, 11, (3, 7)).astype(np.int32)
    logits = np.asarray(jax.jit(MODEL.apply)({"params": params}, ids))
    expected = np.stack([one_sequence(params, row) for row in ids])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_no_token_sees_a_later_one(rng, params):
    ids = rng.integers(0, 11, (1, 8)).astype(np.int32)
    changed = ids.copy()
    changed[0, 5:] = (ids[0, 5:] + 1) % 11
    one, two = (np.asarray(MODEL.apply({"params": params}, a)) for a in (ids, changed))
    np.testing.assert_allclose(one[:, :5], two[:, :5], rtol=1e-6, atol=1e-6)
    assert np.abs(one[:, 5] - two[:, 5]).max() > 0.01


def test_inner_products_depend_on_the_distance_alone(rng):
    q, k = (jnp.asarray(np.tile(rng.normal(size=8), (1, 9, 1, 1)), jnp.float32) for _ in range(2))
    products = np.einsum("bqhd,bkhd->qk", rotate(q), rotate(k))
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(products, distance), np.diagonal(products, distance)[0], atol=1e-4)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_allclose(np.linalg.norm(rotate(q), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)


def test_dropout_acts_in_training_alone(rng, params):
    ids = rng.integers(0, 11, (2, 5)).astype(np.int32)

    def logits(key, train):
        return np.asarray(MODEL.apply({"params": params}, ids, train, rngs={"dropout": jax.random.key(key)}))

    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    assert np.abs(logits(0, True) - logits(1, True)).max() > 0.01
    assert np.abs(logits(0, True) - logits(0, False)).max() > 0.01


def test_named_models():
    model = create_decoder("decoder_docstrings")
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes())) == 1_115_264
    with pytest.raises(ValueError, match="unknown decoder 'gpt'; expected one of decoder_docstrings"):
        create_decoder("gpt")


def test_mistakes(params):
    for ids in (np.zeros((2, 3), np.float32), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match=r"token ids are a \(B, T\) array of integers, got"):
            MODEL.apply({"params": params}, ids)
