import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from beacon_jax.graph.model import Model
from beacon_jax.graph.program import Unsupported

B, T, D = 3, 5, 4
WEIGHTS = np.array([[1, 1, 1, 1, 1], [2, 2, 1, 0, 0], [1, 0, 0, 0, 0]], np.float32)
W = {"w": np.linspace(-1, 1, D * D, dtype=np.float32).reshape(D, D)}
TALL = {"w": np.ones((2 * D, D), np.float32)}


def weights_of(apply, params, batch, weights):
    """Weights of the first layer's rows, all uses one after another, and the rows themselves."""
    model = Model(apply, params)
    traced = model[model.add(batch)]
    rules = traced.row_weights(weights.shape)
    (layer, *_) = traced.found.layers
    own = [rules[u.operand, u.view.rows_form] for u in layer.uses]
    for rule in own:
        if isinstance(rule, Unsupported):
            raise rule
    return np.concatenate([np.asarray(rule(jnp.asarray(weights))) for rule in own])


# Functions that mix no positions, with the rows that reach the layer: those of weight 0 are those made of NaN.
POINTWISE = {
    "as it is": (W, lambda x: x),
    "elementwise": (W, lambda x: jnp.tanh(x * 2) + x),
    "flattened": (W, lambda x: x.reshape(B * T, D)),
    "time first": (W, lambda x: x.transpose(1, 0, 2)),
    "time first, flattened": (W, lambda x: x.transpose(1, 0, 2).reshape(T * B, D)),
    "flattened and back": (W, lambda x: x.reshape(B * T, D).reshape(B, T, D)),
    "heads": (W, lambda x: jnp.repeat(x[:, :, None, :], 2, axis=2)),
    "heads first": (W, lambda x: jnp.repeat(x[:, None], 2, axis=1)),
    "heads joined": (TALL, lambda x: jnp.repeat(x[:, :, None, :], 2, axis=2).reshape(B, T, 2 * D)),
    "features apart and joined": (W, lambda x: jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1)),
    "normalized": (W, lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)),
    "one step": (W, lambda x: x[:, 2]),
    "one step, kept": (W, lambda x: x[:, 2:3]),
    "steps apart and joined": (W, lambda x: jnp.stack([x[:, t] * 2 for t in range(T)], axis=1)),
    "scanned": (W, lambda x: lax.scan(lambda c, a: (c, a * 2), 0.0, x.transpose(1, 0, 2))[1]),
    "causal": (W, lambda x: lax.cumsum(x * 0, axis=1) * 0 + x),
    "a chosen feature order": (W, lambda x: x[:, :, jnp.array([2, 0, 1, 3])]),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_rows_of_weight_zero_are_those_of_padding(name):
    params, rows_of = POINTWISE[name]
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    own = weights_of(lambda p, a: rows_of(a) @ p["w"], params, x, WEIGHTS)
    marked = np.where(WEIGHTS[:, :, None] > 0, x, np.nan)
    if name == "causal":  # sums are of padding as well there; only their shape counts
        rows = marked
    else:
        rows = np.asarray(rows_of(jnp.asarray(marked)))
    rows = rows.reshape(-1, rows.shape[-1])
    assert own.shape == (len(rows),)
    np.testing.assert_array_equal(own == 0, np.isnan(rows).any(1))
    assert set(own) <= {0, 1, 2}


def test_rows_of_whole_examples():
    x = np.ones((B, T, D), np.float32)
    pooled = weights_of(lambda p, a: a.mean(1) @ p["w"], W, x, WEIGHTS * np.array([[0], [1], [1]], np.float32))
    np.testing.assert_array_equal(pooled, [0, 2, 1])
    each = weights_of(lambda p, a: a @ p["w"], W, x, np.array([1, 0, 3], np.float32))
    np.testing.assert_array_equal(each, np.repeat([1, 0, 3], T))


def test_steps_of_a_recurrence_have_the_weights_of_their_positions():
    def apply(p, x):
        h = jnp.zeros((B, D))
        for t in range(T):
            h = jnp.tanh(h + x[:, t] @ p["w"])
        return h

    x = np.ones((B, T, D), np.float32)
    np.testing.assert_array_equal(weights_of(apply, W, x, WEIGHTS), WEIGHTS.T.reshape(-1))


def test_tokens_looked_up_and_attended():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            x = nn.Embed(7, 8)(ids)
            x = nn.MultiHeadDotProductAttention(2)(x, mask=nn.make_attention_mask(mask, mask))
            return nn.Dense(3, name="last")(x)

    ids, mask = np.zeros((B, T), np.int32), (WEIGHTS > 0).astype(np.int32)
    params = jax.jit(Model().init)(jax.random.key(0), ids, mask)["params"]
    model = _traced(lambda p, b: Model().apply({"params": p}, b["ids"], b["mask"]), params, {"ids": ids, "mask": mask})
    rules = model.row_weights(mask.shape)
    names = {layer.name.split("/")[-1] for layer in model.found.layers}
    assert {"query", "key", "value", "out", "last"} <= names
    for layer in model.found.layers:
        for use in layer.uses:
            own = rules[use.operand, use.view.rows_form](jnp.asarray(WEIGHTS))
            np.testing.assert_array_equal(own, WEIGHTS.reshape(-1))


def _traced(apply, params, batch):
    model = Model(apply, params)
    return model[model.add(batch)]


def test_convolutions_over_positions():
    kernel = {"w": np.ones((3, D, 2), np.float32)}
    x = np.ones((B, T, D), np.float32)

    def conv(p, x, stride=1):
        return lax.conv_general_dilated(x, p["w"], (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    np.testing.assert_array_equal(weights_of(conv, kernel, x, WEIGHTS), WEIGHTS.reshape(-1))
    with pytest.raises(Unsupported, match="weights' axis 1 cannot be followed to the inputs of w: conv_gen"):
        weights_of(lambda p, x: conv(p, x, 2), kernel, x, WEIGHTS)
    examples = np.array([1, 0, 2], np.float32)
    np.testing.assert_array_equal(weights_of(lambda p, x: conv(p, x, 2), kernel, x, examples), np.repeat(examples, 3))


@pytest.mark.parametrize(
    ("rows_of", "primitive"),
    [
        (lambda x: jnp.concatenate([x[:, :1], x], axis=1), "concatenate"),
        (lambda x: x[:, ::-1], "rev"),
        (lambda x: x[:, 1:], "slice"),
        (lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0))), "pad"),
        (lambda x: x[:, jnp.array([1, 0, 2])], "gather"),
        (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), "gather"),
        (lambda x: jnp.sort(x, axis=1), "sort"),
        (lambda x: jnp.abs(jnp.fft.fft(x, axis=1)), "fft"),
        (lambda x: jnp.einsum("btd,ts->bsd", x, jnp.ones((T, 7))), "dot_general"),
        (lambda x: lax.cond(x.sum() > 0, lambda a: a[:, ::-1], lambda a: a, x), "cond"),
        (lambda x: x.reshape(B * T, D)[7:8], "slice"),
        (lambda x: x.reshape(B, T * D)[:, : (T - 1) * D].reshape(B, T - 1, D), "slice"),
    ],
)
def test_positions_that_cannot_be_followed_are_refused(rows_of, primitive):
    x = np.ones((B, T, D), np.float32)
    with pytest.raises(Unsupported, match=rf"the weights' axis \d cannot be followed to the inputs of w: {primitive}"):
        weights_of(lambda p, a: rows_of(a) @ p["w"], W, x, WEIGHTS)


@pytest.mark.parametrize("left", [False, True])
def test_a_recurrence_from_the_end(left):
    """Each step has the weights of its own position, and so have the outputs put together again."""
    weights = WEIGHTS[:, ::-1] if left else WEIGHTS
    params = {name: np.linspace(-1, 1, D * D, dtype=np.float32).reshape(D, D) for name in ("a", "h", "o")}

    def apply(p, x):
        def step(h, x):
            h = jnp.tanh(x @ p["a"] + h @ p["h"])
            return h, h

        return lax.scan(step, jnp.zeros((B, D)), x.swapaxes(0, 1), reverse=True)[1] @ p["o"]

    x = np.ones((B, T, D), np.float32)
    traced = _traced(apply, params, x)
    rules = traced.row_weights(weights.shape)
    own = {
        layer.name: np.concatenate([rules[u.operand, u.view.rows_form](jnp.asarray(weights)) for u in layer.uses])
        for layer in traced.found.layers
    }
    np.testing.assert_array_equal(own["a"], weights[:, ::-1].T.reshape(-1))
    np.testing.assert_array_equal(own["o"], weights.T.reshape(-1))


def test_inputs_and_state_joined_along_the_features():
    def apply(p, x):
        h = jnp.zeros((B, D))
        for t in range(T):
            h = jnp.tanh(jnp.concatenate([x[:, t], h], axis=-1) @ p["w"])
        return h

    x = np.ones((B, T, D), np.float32)
    np.testing.assert_array_equal(weights_of(apply, TALL, x, WEIGHTS), WEIGHTS.T.reshape(-1))


LEFT = WEIGHTS[:, ::-1]
# What is one row for each example counts by its whole example, whatever position it comes from.
POOLED = {
    "against the first": lambda x: (x - x[:, :1]).mean(1),
    "the last token": lambda x: x[jnp.arange(B), jnp.argmax(x.sum(-1), axis=1)],
    "attention pooling": lambda x: jnp.einsum("bt,btd->bd", jax.nn.softmax(x.sum(-1)), x),
}


@pytest.mark.parametrize("name", POOLED)
def test_one_row_for_each_example(name):
    x = np.ones((B, T, D), np.float32)
    own = weights_of(lambda p, a: POOLED[name](a) @ p["w"], W, x, LEFT)
    np.testing.assert_array_equal(own, LEFT.max(1))


def test_a_slice_beyond_the_end_is_that_at_the_end():
    x = np.ones((B, T, D), np.float32)
    own = weights_of(lambda p, a: lax.dynamic_slice(a, (0, 99, 0), (B, 1, D)) @ p["w"], W, x, WEIGHTS)
    np.testing.assert_array_equal(own, WEIGHTS[:, -1])


def test_a_kernel_for_each_position_is_refused():
    kernels = {"w": np.ones((T, D, 3), np.float32)}
    with pytest.raises(Unsupported, match="the weights' axis 1 is that of the groups of w"):
        weights_of(lambda p, x: jnp.einsum("btd,tdc->btc", x, p["w"]), kernels, np.ones((B, T, D), np.float32), WEIGHTS)


def test_weights_of_examples_pass_pooling_windows():
    kernel = {"w": np.ones((3, 3, 2, 4), np.float32)}
    x = np.ones((B, 8, 8, 2), np.float32)

    def apply(p, x):
        return nn.Conv(4, (3, 3)).apply(
            {"params": {"kernel": p["w"], "bias": jnp.zeros(4)}}, nn.max_pool(x, (2, 2), (2, 2))
        )

    np.testing.assert_array_equal(
        weights_of(apply, kernel, x, np.array([1.0, 0, 2], np.float32)), np.repeat([1, 0, 2], 16)
    )


def test_squares_of_positions_have_the_weights_of_the_first():
    """Scores of queries and keys, mixed over the heads; and a mask (T, T) whose sides are as long as the batch."""
    mix = {"w": np.ones((2, 3), np.float32)}

    def talking(p, x):
        scores = jnp.einsum("bqhd,bkhd->bhqk", *[x.reshape(B, T, 2, 2)] * 2)
        return jnp.einsum("bhqk,hg->bgqk", scores, p["w"])

    own = weights_of(talking, mix, np.ones((B, T, D), np.float32), WEIGHTS)
    np.testing.assert_array_equal(own, np.repeat(WEIGHTS.reshape(-1), T))
    batch = {"x": np.ones((B, B, D), np.float32), "mask": np.tril(np.ones((B, B), np.float32))}
    own = weights_of(lambda p, b: (b["mask"] @ b["x"]) @ p["w"], W, batch, np.array([1.0, 0, 2], np.float32))
    assert own.shape == (B * B,)
