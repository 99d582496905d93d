"""The objective against least squares over everything that is free, in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.objective import Objective, bias_change
from tests.quant.problems import gram, least_squares, make_problem

CASES = [
    (bias, offset, kind) for bias in (False, True) for offset in (False, True) for kind in ("correlated", "mismatch")
]


@pytest.mark.parametrize(("bias", "offset", "kind"), CASES)
def test_it_is_what_is_left_after_least_squares(x64, rng, bias, offset, kind):
    N, C, fraction = 9, 4, 0.05
    W, X, X_tilde = make_problem(rng, kind, N, C)
    X, X_tilde = X + 2.0, X_tilde + 2.5
    stats = gram(X, X_tilde if kind == "mismatch" else None)
    X_tilde = X_tilde if kind == "mismatch" else X
    objective = Objective.of(jnp.asarray(W), stats, jnp.asarray(fraction), bias=bias, offset=offset)
    centred = X_tilde - X_tilde.mean(0) if bias else X_tilde
    ridge = fraction * np.square(centred).sum(0)
    several = [rng.integers(-3, 4, size=(N, C)) + 0.5 for _ in range(3)]
    losses, expected = [], []
    for q in several:
        c = objective.scale(jnp.asarray(q))
        z = objective.offset(jnp.asarray(q), c)
        W_hat = c[None, :] * q + (0 if z is None else z[None, :])
        b = bias_change(stats, jnp.asarray(W), W_hat)
        fits = [least_squares(W[:, k], q[:, k], X, X_tilde, ridge, bias=bias, offset=offset) for k in range(C)]
        found = [c, *([z] if offset else []), *([b] if bias else [])]
        np.testing.assert_allclose(np.stack(found, 1), [fit[1] for fit in fits], rtol=1e-8)
        losses.append(objective.loss(jnp.asarray(q)) * objective.unit)
        expected.append([fit[0] for fit in fits])
    # But for a constant of each channel.
    np.testing.assert_allclose(np.diff(losses, axis=0), np.diff(expected, axis=0), rtol=1e-7)


@pytest.mark.parametrize("kind", ["correlated", "mismatch"])
def test_the_loss_from_an_error_at_another_scale(x64, rng, kind):
    W, X, X_tilde = make_problem(rng, kind, 9, 4)
    objective = Objective.of(jnp.asarray(W), gram(X, X_tilde), jnp.asarray(0.01), bias=True, offset=False)
    q = jnp.asarray(rng.integers(-2, 3, size=(9, 4)) + 0.5)
    s = jnp.asarray([0.3, -0.7, 1.1, 2.0])
    error = objective.target - s[None, :] * q
    given = objective.loss_from(q, s, (error * (objective.P @ error)).sum(0))
    np.testing.assert_allclose(given, objective.loss(q), rtol=1e-9)


def test_the_real_weights_aimed_at_are_near_the_optimum(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 9, 4)
    objective = Objective.of(jnp.asarray(W), gram(X, X_tilde), jnp.asarray(0.0), bias=False, offset=False)
    best = np.linalg.solve(objective.P, objective.h)

    def error(V):
        return (V * (objective.P @ V) - 2 * V * objective.h).sum()

    assert error(objective.target) - error(best) < 0.01 * (error(W) - error(best))
    one = Objective.of(jnp.asarray(W), gram(X), jnp.asarray(0.1), bias=True, offset=False)
    np.testing.assert_array_equal(one.target, W)
    assert one.rest is None and one.G is None


def test_large_losses_keep_small_differences_in_float32(rng):
    """Codes that fit almost exactly: the error is not the difference of terms 1e6 times as large."""
    W, X, _ = make_problem(rng, "correlated", 40, 3)
    q = np.round(W * 200)
    exact = least_squares_of(W, q, X)
    objective = Objective.of(
        jnp.asarray(W, jnp.float32), gram(X, dtype=jnp.float32), jnp.float32(0), bias=False, offset=False
    )
    found = objective.loss(jnp.asarray(q, jnp.float32)) * objective.unit
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert (exact < 1e-5 * np.square(X @ W).sum(0)).all()


def least_squares_of(W, q, X):
    return [least_squares(w, p, X, X, 0.0, bias=False, offset=False)[0] for w, p in zip(W.T, q.T, strict=True)]


def test_zero_statistics_give_zero(rng):
    W = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    objective = Objective.of(W, gram(np.zeros((6, 4)), dtype=jnp.float32), jnp.float32(0.1), bias=True, offset=True)
    q = jnp.ones((4, 2), jnp.float32)
    for value in (objective.loss(q), objective.scale(q), objective.offset(q, objective.scale(q))):
        np.testing.assert_array_equal(value, 0)
    assert dataclasses.replace(objective, free=None).offset(q, q[0]) is None
