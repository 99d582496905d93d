import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from tests.quant.problems import gram, make_problem

SUMS = ("H", "G", "F", "sum_x", "sum_xt", "count", "rows")


def assert_same(a, b, rtol=1e-9, atol=1e-9):
    """Equal sums, whatever the shifts."""
    chex.assert_trees_all_equal_structs(a, b)
    for name in SUMS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=atol, err_msg=name)


def test_batches_add_up_to_the_whole(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    X, X_tilde = X + 5, X_tilde - 3
    whole = gram(X, X_tilde)
    np.testing.assert_allclose(whole.H, X_tilde.T @ X_tilde)
    np.testing.assert_allclose(whole.G, X_tilde.T @ X)
    np.testing.assert_allclose(whole.F, X.T @ X)
    np.testing.assert_allclose(whole.means(), (X.mean(0), X_tilde.mean(0)))
    np.testing.assert_allclose(whole.sum_x, X.sum(0))
    np.testing.assert_allclose(whole.sum_xt, X_tilde.sum(0))
    np.testing.assert_allclose(whole.mean_change, X.mean(0) - X_tilde.mean(0))
    for found, (a, b) in zip(whole.centred, ((X_tilde, X_tilde), (X_tilde, X), (X, X)), strict=True):
        np.testing.assert_allclose(found, (a - a.mean(0)).T @ (b - b.mean(0)), atol=1e-9)
    assert whole.count == whole.rows == 30
    parts = GramStats.zeros(7, jnp.float64)
    for a, b in ((0, 4), (4, 5), (5, 30)):
        parts = parts.update(jnp.asarray(X[a:b]), jnp.asarray(X_tilde[a:b]))
    assert_same(parts, whole)
    assert_same(gram(X[:11], X_tilde[:11]).combine(gram(X[11:], X_tilde[11:])), whole)
    nothing = GramStats.zeros(7, jnp.float64)
    assert_same(nothing.combine(whole), whole)
    assert_same(whole.combine(nothing), whole)
    tokens = GramStats.zeros(7, jnp.float64).update(X.reshape(5, 6, 7), X_tilde.reshape(5, 6, 7))
    assert_same(tokens, whole)


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_float32_keeps_what_varies_beside_a_large_mean(x64, rng, mean):
    X = (rng.normal(size=(90, 6)) + mean * rng.normal(size=6)).astype(np.float32)
    X_tilde = (X + rng.normal(size=X.shape)).astype(np.float32)
    stats = GramStats.zeros(6)
    for part in (slice(0, 20), slice(20, 50)):
        stats = stats.update(jnp.asarray(X[part]), jnp.asarray(X_tilde[part]))
    stats = stats.combine(gram(X[50:], X_tilde[50:], jnp.float32))  # about shifts of its own
    assert stats.dtype == jnp.float32
    X, X_tilde = X.astype(np.float64), X_tilde.astype(np.float64)
    for found, (a, b) in zip(stats.centred, ((X_tilde, X_tilde), (X_tilde, X), (X, X)), strict=True):
        np.testing.assert_allclose(found, (a - a.mean(0)).T @ (b - b.mean(0)), atol=2e-3, rtol=2e-5)
    # More digits of the mean than float32 holds.
    np.testing.assert_allclose(stats.astype(jnp.float64).means(), (X.mean(0), X_tilde.mean(0)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(stats.mean_change, X.mean(0) - X_tilde.mean(0), atol=1e-5)


@pytest.mark.parametrize("two", [False, True])
def test_weighted_rows_are_rows_that_occur_as_often(x64, rng, two):
    _, X, X_tilde = make_problem(rng, "mismatch", 4, 1, rows=12)
    X_tilde = X_tilde if two else None
    weights = rng.integers(0, 3, 12)
    weights[:3] = 0, 1, 2
    repeated = gram(np.repeat(X, weights, 0), np.repeat(X_tilde, weights, 0) if two else None)
    X[weights == 0] = np.nan
    if two:
        X_tilde[weights == 0] = np.inf
    stats = GramStats.zeros(4, jnp.float64)
    for part in (slice(0, 5), slice(5, 12)):
        stats = stats.update(X[part], X_tilde[part] if two else None, weights[part])
    assert stats.rows == (weights > 0).sum() and stats.count == weights.sum()
    for name in SUMS[:-1]:
        np.testing.assert_allclose(getattr(stats, name), getattr(repeated, name), atol=1e-9, err_msg=name)
    np.testing.assert_allclose(stats.H, stats.H.T, rtol=1e-13)


def test_weights_over_examples_and_positions(x64, rng):
    X = rng.normal(size=(2, 3, 4))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    kept = gram(X[mask == 1])
    empty = GramStats.zeros(4, jnp.float64)
    assert_same(empty.update(X, weights=mask), kept)
    assert_same(empty.update(X, weights=mask == 1), kept)
    assert_same(empty.update(X, weights=mask.reshape(-1)), kept)
    assert_same(empty.update(X, weights=np.array([[0.0], [1.0]])), gram(X[1]))
    # A batch without rows that count leaves the shift to the first that has some.
    later = empty.update(X, weights=np.zeros(6)).update(X + 1e6, weights=mask)
    np.testing.assert_allclose(later.x_tilde.shift, X[mask == 1].mean(0) + 1e6)
    assert later.rows == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"weights of shape \(4,\) neither are one for each of 6 rows nor broadcast to \(2, 3\)"),
        (np.array([1, 1, -1, 0, 0, 0.0]), "row weights must be finite and at least 0"),
        (np.array([1, 1, np.nan, 0, 0, 0.0]), "row weights must be finite and at least 0"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        GramStats.zeros(4).update(np.zeros((2, 3, 4)), weights=weights)


def test_groups_are_the_statistics_of_each(x64, rng):
    """Made, added to and combined under vmap."""
    X, X_tilde = rng.normal(size=(3, 12, 5)) + 10, rng.normal(size=(3, 12, 5))
    weights = jnp.asarray(rng.integers(0, 2, (3, 12)))
    stats = GramStats.zeros(5, jnp.float64, streams=2, groups=3)
    chex.assert_trees_all_equal_shapes(
        stats, jax.vmap(lambda _: GramStats.zeros(5, jnp.float64, streams=2))(jnp.ones(3))
    )
    update = jax.vmap(GramStats.update)
    one = update(stats, X, X_tilde, weights)
    both = jax.vmap(GramStats.combine)(one, update(stats, X_tilde, X, weights))
    assert both.width == 5 and both.groups == (3,)
    for e in range(3):
        alone = GramStats.zeros(5, jnp.float64, streams=2)
        first = alone.update(X[e], X_tilde[e], weights[e])
        expected = first.combine(alone.update(X_tilde[e], X[e], weights[e]))
        assert_same(jax.tree.map(lambda a, e=e: a[e], one), first)
        assert_same(jax.tree.map(lambda a, e=e: a[e], both), expected)
        for name in (*SUMS, "mean_change", "dead"):  # the groups' own, without vmap
            np.testing.assert_allclose(getattr(both, name)[e], getattr(expected, name), atol=1e-9)


def test_one_stream_and_equal_streams_agree_exactly(rng):
    X = rng.normal(size=(20, 5))
    one, two = gram(X, dtype=jnp.float32), gram(X, X.copy(), dtype=jnp.float32)
    assert one.one_stream and not two.one_stream
    for name in SUMS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_what_depends_on_x_alone_can_be_put_in_later(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    stats = GramStats.zeros(7, jnp.float64, streams=2, float_known=True)
    for part in (slice(0, 12), slice(12, 30)):
        stats = stats.update(jnp.asarray(X[part]), jnp.asarray(X_tilde[part]))
    assert stats.x.products is None
    whole = gram(X, X_tilde)
    assert_same(stats.with_float(gram(X)), whole)
    backwards = gram(X[12:]).combine(gram(X[:12]))  # about another shift
    assert_same(stats.with_float(backwards), whole)
    assert_same(whole.float_part(), gram(X))
    assert whole.float_part().one_stream


def test_streams_can_begin_to_differ_later(x64, rng):
    _, X, X_tilde = make_problem(rng, "mismatch", 7, 1, rows=30)
    mixed = gram(X[:10]).combine(gram(X[10:], X_tilde[10:]))
    whole = gram(X, np.concatenate([X[:10], X_tilde[10:]]))
    assert_same(mixed, whole)
    assert_same(gram(X[10:], X_tilde[10:]).update(jnp.asarray(X[:10])), whole)
    empty = GramStats.zeros(7, jnp.float64, streams=2)
    assert_same(empty.update(jnp.asarray(X), jnp.asarray(X_tilde)), gram(X, X_tilde))


def test_updates_can_be_finished_once(x64, rng):
    X, Xt = rng.normal(size=(2, 9, 300))
    whole = GramStats.zeros(300).update(X[:4]).update(X[4:], Xt[4:])
    halves = GramStats.zeros(300).update(X[:4], finish=False).update(X[4:], Xt[4:], finish=False)
    assert not np.allclose(halves.x_tilde.products, whole.x_tilde.products)
    for own, expected in zip(jax.tree.leaves(halves.finished()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-12)


def test_low_precision_inputs_are_summed_in_float32(rng):
    X = jnp.asarray(rng.normal(size=(20, 5)), jnp.bfloat16)
    stats = GramStats.zeros(5).update(X)
    exact = np.asarray(X, np.float64).T @ np.asarray(X, np.float64)
    assert stats.H.dtype == jnp.float32
    np.testing.assert_allclose(stats.H, exact, rtol=1e-5, atol=1e-5)


def test_dead_inputs(rng):
    X = rng.normal(size=(20, 5))
    X[:, [1, 3]] = 0
    X[:, 4] = 2  # constant is not dead
    np.testing.assert_array_equal(gram(X, dtype=jnp.float32).dead, [False, True, False, True, False])
    np.testing.assert_array_equal(jnp.diagonal(gram(X, dtype=jnp.float32).H)[jnp.array([1, 3])], 0)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="x has width 4, but these statistics are for 5 inputs"):
        GramStats.zeros(5).update(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="x_tilde must be real, got complex64"):
        GramStats.zeros(5).update(jnp.zeros((3, 5)), jnp.zeros((3, 5), jnp.complex64))
    with pytest.raises(ValueError, match="same rows"):
        GramStats.zeros(5).update(jnp.zeros((3, 5)), jnp.zeros((4, 5)))
