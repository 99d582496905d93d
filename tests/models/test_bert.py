import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from beacon_jax.models.bert import Bert, mean_pooled

MODEL = Bert(vocabulary=20, width=12, depth=2, heads=3, hidden=16, positions=10)


@pytest.fixture
def params(rng):
    """Random parameters, norms and biases included."""
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.5, MODEL.param_shapes())


def batch_of(rng, lengths, T):
    ids = rng.integers(0, MODEL.vocabulary, (len(lengths), T)).astype(np.int32)
    return ids, (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)


def norm(x, p):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def one_sentence(params, ids):
    """BERT for the T tokens of one sentence, in NumPy and double precision, head by head."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = params["word_embed"]["embedding"][ids] + params["position_embed"]["embedding"][: len(ids)]
    x = norm(x + params["type_embed"]["embedding"][0], params["embed_norm"])
    erf = np.vectorize(math.erf)
    for i in range(MODEL.depth):
        block, size = params[f"blocks_{i}"], MODEL.width // MODEL.heads
        q, k, v = (dense(x, block["attn"][name]) for name in ("query", "key", "value"))
        out = np.empty_like(x)
        for head in range(MODEL.heads):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            out[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
        x = norm(x + dense(out, block["attn"]["out"]), block["norm1"])
        hidden = dense(x, block["mlp"]["fc1"])
        x = norm(x + dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, block["mlp"]["fc2"]), block["norm2"])
    return x


def test_each_sentence_of_a_padded_batch_is_what_it_is_alone(rng, params):
    lengths = [7, 1, 4, 10]
    ids, mask = batch_of(rng, lengths, 10)
    tokens = np.asarray(jax.jit(MODEL.apply)({"params": params}, ids, mask))
    embeddings = np.asarray(MODEL.apply({"params": params}, ids, mask, method="embeddings"))
    for row, length in enumerate(lengths):
        expected = one_sentence(params, ids[row, :length])
        np.testing.assert_allclose(tokens[row, :length], expected, rtol=1e-4, atol=1e-4)
        mean = expected.mean(0)
        np.testing.assert_allclose(embeddings[row], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-4)


def test_the_mean_is_of_real_tokens_and_of_length_one(rng):
    tokens = rng.normal(size=(3, 4, 5)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.int32)
    pooled = np.asarray(mean_pooled(tokens, mask))
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), [1, 1, 0], atol=1e-6)
    mean = tokens[0, :2].mean(0)
    np.testing.assert_allclose(pooled[0], mean / np.linalg.norm(mean), rtol=1e-5)


def test_linear_maps_keep_batch_and_tokens_apart(rng, params):
    seen = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append(args[0].shape)
        return next_fun(*args, **kwargs)

    ids, mask = batch_of(rng, [3, 2], 5)
    with nn.intercept_methods(record):
        MODEL.apply({"params": params}, ids, mask)
    assert len(seen) == 6 * MODEL.depth and {shape[:2] for shape in seen} == {(2, 5)}


def test_the_size_of_minilm():
    model = Bert(vocabulary=30522, width=384, depth=6, heads=12, hidden=1536)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes())) == 22_565_376


def test_mistakes(rng, params):
    ids, mask = batch_of(rng, [3], 5)
    for args, message in (
        ((ids.astype(np.float32), mask), r"expected ids \(B, T\) of integers and a mask as large, got float32"),
        ((ids[0], mask[0]), "expected ids"),
        ((ids, mask[:, :4]), r"got int32 \(1, 5\) and \(1, 4\)"),
        (batch_of(rng, [3], 11), "this model takes at most 10 tokens, got 11"),
    ):
        with pytest.raises(ValueError, match=message):
            MODEL.apply({"params": params}, *args)
