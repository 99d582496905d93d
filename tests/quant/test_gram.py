import chex
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from tests.quant.problems import gram, make_problem


def test_batches_add_up_to_the_whole(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    whole = gram(X, X_tilde)
    np.testing.assert_allclose(whole.H, X_tilde.T @ X_tilde)
    np.testing.assert_allclose(whole.G, X_tilde.T @ X)
    np.testing.assert_allclose(whole.F, X.T @ X)
    np.testing.assert_allclose(whole.means(), (X.mean(0), X_tilde.mean(0)))
    assert whole.count == 30
    parts = GramStats.zeros(7, jnp.float64)
    for a, b in ((0, 4), (4, 5), (5, 30)):
        parts = parts.update(jnp.asarray(X[a:b]), jnp.asarray(X_tilde[a:b]))
    chex.assert_trees_all_close(parts, whole)
    chex.assert_trees_all_close(gram(X[:11], X_tilde[:11]).combine(gram(X[11:], X_tilde[11:])), whole)
    tokens = GramStats.zeros(7, jnp.float64).update(X.reshape(5, 6, 7), X_tilde.reshape(5, 6, 7))
    chex.assert_trees_all_close(tokens, whole)


def test_one_stream_and_equal_streams_agree_exactly(rng):
    X = rng.normal(size=(20, 5))
    one, two = gram(X, dtype=jnp.float32), gram(X, X.copy(), dtype=jnp.float32)
    assert one.one_stream and not two.one_stream
    for name in ("H", "G", "F", "sum_x", "sum_xt", "count"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_what_depends_on_x_alone_can_be_put_in_later(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    stats = GramStats.zeros(7, jnp.float64, streams=2, float_known=True)
    for part in (slice(0, 12), slice(12, 30)):
        stats = stats.update(jnp.asarray(X[part]), jnp.asarray(X_tilde[part]))
    assert stats.F is None and stats.sum_x is None
    whole = gram(X, X_tilde)
    chex.assert_trees_all_close(stats.with_float(gram(X)), whole)
    chex.assert_trees_all_close(whole.float_part(), gram(X))
    assert whole.float_part().one_stream


def test_streams_can_begin_to_differ_later(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    mixed = gram(X[:10]).combine(gram(X[10:], X_tilde[10:]))
    whole = gram(X, np.concatenate([X[:10], X_tilde[10:]]))
    chex.assert_trees_all_close(mixed, whole)
    empty = GramStats.zeros(7, jnp.float64, streams=2)
    chex.assert_trees_all_close(empty.update(jnp.asarray(X), jnp.asarray(X_tilde)), gram(X, X_tilde))
    chex.assert_trees_all_equal_structs(empty, whole)


def test_low_precision_inputs_are_summed_in_float32(rng):
    X = jnp.asarray(rng.normal(size=(20, 5)), jnp.bfloat16)
    stats = GramStats.zeros(5).update(X)
    exact = np.asarray(X, np.float64).T @ np.asarray(X, np.float64)
    assert stats.H.dtype == jnp.float32
    np.testing.assert_allclose(stats.H, exact, rtol=1e-5, atol=1e-5)


def test_dead_inputs(rng):
    X = rng.normal(size=(20, 5))
    X[:, [1, 3]] = 0
    np.testing.assert_array_equal(gram(X, dtype=jnp.float32).dead, [False, True, False, True, False])


def test_wrong_shapes():
    with pytest.raises(ValueError, match="x has width 4, but these statistics are for 5 inputs"):
        GramStats.zeros(5).update(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="same rows"):
        GramStats.zeros(5).update(jnp.zeros((3, 5)), jnp.zeros((4, 5)))
