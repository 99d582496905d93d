"""Sums over the residual stream's change against the rows themselves, in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.objective import Objective, bias_change
from tests.quant.problems import least_squares, make_problem


def summed(X, X_tilde, change, parts=1, weights=None):
    stats = GramStats.zeros(X.shape[1], jnp.float64, residual=change.shape[1])
    for rows in np.array_split(np.arange(len(X)), parts):
        own = None if weights is None else weights[rows]
        stats = stats.update(X[rows], X_tilde[rows], own, change[rows])
    return stats


@pytest.fixture
def rows(rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 9, 4)
    return W, X + 2.0, X_tilde + 2.5, 0.3 * rng.normal(size=(len(X), 4)) + 0.2


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_add_up_and_statistics_combine(x64, rng, rows, weighted):
    _, X, X_tilde, change = rows
    weights = rng.integers(0, 3, size=len(X)) if weighted else None
    counted = np.repeat(np.arange(len(X)), weights) if weighted else np.arange(len(X))
    if weighted:
        change = np.where(weights[:, None] > 0, change, np.nan)  # what does not count may be anything
    half = len(X) // 2
    first, second = (slice(None, half), slice(half, None))
    both = [summed(X[s], X_tilde[s], change[s], 2, None if weights is None else weights[s]) for s in (first, second)]
    for stats in (summed(X, X_tilde, change, 3, weights), both[0].combine(both[1])):
        rows_tilde, d = X_tilde[counted], change[counted]
        np.testing.assert_allclose(stats.residual_cross(centred=False), rows_tilde.T @ d, rtol=1e-9, atol=1e-9)
        expected = (rows_tilde - rows_tilde.mean(0)).T @ (d - d.mean(0))
        np.testing.assert_allclose(stats.residual_cross(centred=True), expected, rtol=1e-9, atol=1e-9)
    known = summed(X, X_tilde, change).float_part()
    assert known.residual is None
    again = summed(X, X_tilde, np.nan_to_num(change), 2).with_float(known)
    expected = X_tilde.T @ np.nan_to_num(change)
    np.testing.assert_allclose(again.residual_cross(centred=False), expected, rtol=1e-9, atol=1e-9)


def test_bad_rows(rows):
    _, X, X_tilde, change = rows
    stats = GramStats.zeros(9, residual=4)
    with pytest.raises(ValueError, match="added up for all rows of a layer, or for none"):
        stats.update(X, X_tilde)
    with pytest.raises(ValueError, match="added up for all rows of a layer, or for none"):
        GramStats.zeros(9).update(X, X_tilde, residual=change)
    with pytest.raises(ValueError, match=rf"must be of shape \({len(X)}, 4\), got \({len(X)}, 3\)"):
        stats.update(X, X_tilde, residual=change[:, :3])
    with pytest.raises(ValueError, match="the other has not"):
        stats.combine(GramStats.zeros(9))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_the_objective_aims_at_the_output_and_what_it_is_to_repair(x64, rng, rows, bias, offset):
    W, X, X_tilde, change = rows
    part, fraction, N = 0.7, 0.05, 9
    stats = summed(X, X_tilde, change)
    residual = jnp.asarray(part)
    objective = Objective.of(jnp.asarray(W), stats, jnp.asarray(fraction), bias=bias, offset=offset, residual=residual)
    centred = X_tilde - X_tilde.mean(0) if bias else X_tilde
    ridge = fraction * np.square(centred).sum(0)
    losses, expected = [], []
    for q in (rng.integers(-3, 4, size=(N, 4)) + 0.5 for _ in range(3)):
        c = objective.scale(jnp.asarray(q))
        z = objective.offset(jnp.asarray(q), c)
        W_hat = c[None, :] * q + (0 if z is None else z[None, :])
        b = bias_change(stats, jnp.asarray(W), W_hat, residual)
        # Weights v with Xv in place of Xw + part · change, as one more input of X that the layer does not have.
        fits = []
        for k in range(4):
            wide, w = np.column_stack([X, change[:, k]]), np.append(W[:, k], part)
            wide_tilde = np.column_stack([X_tilde, np.zeros(len(X))])
            codes, free = np.append(q[:, k], 0), np.append(ridge, 0)
            fits.append(least_squares(w, codes, wide, wide_tilde, free, bias=bias, offset=offset))
        found = [c, *([z] if offset else []), *([b] if bias else [])]
        np.testing.assert_allclose(np.stack(found, 1), [fit[1] for fit in fits], rtol=1e-8)
        losses.append(objective.loss(jnp.asarray(q)) * objective.unit)
        expected.append([fit[0] for fit in fits])
    np.testing.assert_allclose(np.diff(losses, axis=0), np.diff(expected, axis=0), rtol=1e-7)
    # Of one stream, too, where a real target was the kernel itself.
    alone = dataclasses.replace(summed(X_tilde, X_tilde, change), x=None, cross=None)
    one = Objective.of(jnp.asarray(W), alone, jnp.asarray(0.0), bias=bias, offset=False, residual=residual)
    np.testing.assert_allclose(one.h - one.rest, one.P @ one.target, rtol=1e-9, atol=1e-9)

    def error(V):
        return (V * (one.P @ V) - 2 * V * one.h).sum()

    best = error(np.linalg.solve(one.P, one.h))
    assert error(one.target) - best < 0.02 * (error(W) - best)


def test_channels_of_padding_have_none(x64, rows):
    _, X, X_tilde, change = rows
    padded = summed(X, X_tilde, change).residual.padded(6)
    assert padded.products.shape == (9, 6) and padded.total.shape == (6,)
    assert not np.asarray(padded.products[:, 4:]).any() and not np.asarray(padded.total[4:]).any()
