import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.sweep import (
    INNER,
    Rule,
    blocked_pass,
    even_block,
    map_channel_chunks,
    pad_rows,
    pad_square,
    prefix_product,
    visit_block,
)


@pytest.mark.parametrize("most", [1, 7, 12, 64, 128])
def test_blocks_are_even(most):
    step = np.gcd(most, INNER)
    for n in range(1, 300):
        size = even_block(n, most)
        blocks = -(-n // size)
        assert 1 <= size <= most and size % step == 0
        assert blocks == -(-n // most) and size * blocks - n < step * blocks


def choose(constants, shared_t, rows_t, products, q, state):
    return jnp.round(constants["gain"] * rows_t - shared_t * products[0] + 0.3 * products[-1] - 0.1 * q + state)


def update(constants, shared_t, rows_t, products, old, q, state):
    return 0.5 * state + constants["gain"] * jnp.sin((q - old) * products[-1]) + shared_t * rows_t


RULE = Rule(choose, update)


def naive_pass(matrices, gain, shared, rows, Q, state, outside=None):
    """The same rule, one coordinate after another, each product in full."""
    Q, state = Q.copy(), state.copy()
    outside = [np.zeros_like(Q) for _ in matrices] if outside is None else outside

    def products(t):
        return [M[t] @ Q + extra[t] for M, extra in zip(matrices, outside, strict=True)]

    for t in range(len(Q)):
        old, now = Q[t].copy(), products(t)
        Q[t] = np.round(gain * rows[t] - shared[t] * now[0] + 0.3 * now[-1] - 0.1 * old + state)
        state = 0.5 * state + gain * np.sin((Q[t] - old) * products(t)[-1]) + shared[t] * rows[t]
    return Q, state


def loop_problem(rng, N=24, C=3, count=2):
    matrices = [rng.normal(size=(N, N)) / N for _ in range(count)]
    return matrices, 2.0, rng.normal(size=N), rng.normal(size=(N, C)), rng.normal(size=(N, C)), rng.normal(size=C)


@pytest.mark.parametrize(("block_size", "count"), [(1, 1), (6, 2), (8, 1), (24, 2)])
@pytest.mark.parametrize("lower", [False, True])
def test_blocked_pass_equals_a_plain_loop(x64, rng, block_size, count, lower):
    matrices, gain, shared, rows, Q, state = loop_problem(rng, count=count)
    if lower:
        Q = np.zeros_like(Q)
    expected = naive_pass(matrices, gain, shared, rows, Q, state)
    arrays = jax.tree.map(jnp.asarray, (matrices, {"gain": gain}, shared, rows, Q, state))
    found = jax.jit(blocked_pass, static_argnums=0, static_argnames=("block_size", "lower"))(
        RULE, *arrays, block_size=block_size, lower=lower
    )
    np.testing.assert_array_equal(found[0], expected[0])
    assert len(np.unique(expected[0])) > 3
    np.testing.assert_allclose(found[1], expected[1], atol=1e-9)


def test_a_rule_without_update_leaves_the_state(x64, rng):
    matrices, gain, shared, rows, Q, state = loop_problem(rng, N=8, count=1)
    arrays = jax.tree.map(jnp.asarray, (matrices, {"gain": gain}, shared, rows, Q, state))
    q, same = blocked_pass(Rule(choose), *arrays, block_size=4)
    np.testing.assert_array_equal(same, state)
    assert not np.array_equal(q, Q)


@pytest.mark.parametrize("size", [5, 16])  # one row at a time, and by INNER
def test_a_block_needs_only_what_it_is_given(x64, rng, size):
    corners, gain, shared, rows, block, state = loop_problem(rng, N=size)
    outside = [rng.normal(size=block.shape) for _ in corners]
    expected = naive_pass(corners, gain, shared, rows, block, state, outside)
    arrays = jax.tree.map(jnp.asarray, (corners, outside, {"gain": gain}, shared, rows, block, state))
    corners, outside, constants, shared, rows, block, state = arrays
    ahead = jnp.concatenate([0 * shared, shared]), jnp.concatenate([0 * rows, rows])
    for others in ((shared, rows, block, state), (*ahead, block, state, size)):
        found = jax.jit(visit_block, static_argnums=0)(RULE, corners, outside, constants, *others)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-9)


@pytest.mark.parametrize("blocks", [1, 3, 4, 11])
def testprefix_products(x64, rng, blocks):
    size = 2
    stripe, Q = rng.normal(size=(size, blocks * size)), rng.normal(size=(blocks * size, 3))
    product = jax.jit(prefix_product, static_argnums=3)
    for b in range(blocks):
        known = np.where(np.arange(blocks * size)[:, None] < b * size, Q, 0)
        np.testing.assert_allclose(product(stripe, known, b, size), stripe @ known, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, None])
def test_channels_in_chunks(rng, chunk):
    widths = []

    def fn(a, b):
        widths.append(a.shape[-1])
        return {"sum": a.sum(0) + b, "all": a * b[None, :]}

    a, b = rng.normal(size=(4, 7)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    found = map_channel_chunks(fn, chunk, jnp.asarray(a), jnp.asarray(b))
    assert set(widths) == {min(chunk or 7, 7)}
    np.testing.assert_allclose(found["sum"], a.sum(0) + b, rtol=1e-5)
    np.testing.assert_allclose(found["all"], a * b, rtol=1e-6)


def test_padding_appends_zeros(rng):
    M, rows, vector = rng.normal(size=(5, 5)), rng.normal(size=(5, 2)), rng.normal(size=5)
    padded = pad_square(jnp.asarray(M), 4), *pad_rows((rows, vector), 4)
    for whole, part in zip(padded, (M, rows, vector), strict=True):
        np.testing.assert_array_equal(whole[tuple(slice(n) for n in part.shape)], jnp.asarray(part))
        assert whole.shape[0] == 8 and jnp.count_nonzero(whole) == part.size
    assert padded[0].shape == (8, 8)
