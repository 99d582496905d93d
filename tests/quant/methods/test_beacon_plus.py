"""Beacon plus: never worse than without a step, near the exact optimum, and Beacon itself with all steps off."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import relative_output_error
from beacon_jax.quant.objective import Objective
from tests.quant.problems import KINDS, gram, levels_of, make_problem

OFF = dict(start="greedy", bias=False, ridge=0.0, effort="fast", beam=0)


def solve(W, stats, alphabet="2", has_bias=False, **options):
    kernel = jax.device_put(np.asarray(W, stats.dtype))
    return METHODS["beacon_plus"].solve(kernel, stats, alphabet, has_bias=has_bias, **options).matrix


def losses_of(W, stats, result, ridge, **free):
    """The objective of a result's codes, but for a constant of each channel."""
    objective = Objective.of(jax.device_put(np.asarray(W, stats.dtype)), stats, jnp.asarray(ridge, stats.dtype), **free)
    return np.asarray(objective.loss(jax.device_put(np.asarray(levels_of(result), stats.dtype))))


@pytest.mark.parametrize("alphabet", ["2", "int2", "-1,0,2.5"])
@pytest.mark.parametrize("kind", ["white", "low_rank", "dead_mismatch"])
def test_with_all_steps_off_it_is_beacon(x64, rng, alphabet, kind):
    W, X, X_tilde = make_problem(rng, kind, 7, 5)
    stats = gram(X, X_tilde)
    plain = METHODS["beacon"](jnp.asarray(W), stats, alphabet)
    off = solve(W, stats, alphabet, has_bias=True, **OFF)
    chex.assert_trees_all_equal(off.codes, plain.codes)
    chex.assert_trees_all_close((off.scale, off.offset, off.bias_change), (plain.scale, None, None), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("free", [{}, {"has_bias": True, "offset": True}])
def test_no_step_makes_a_channel_worse(rng, kind, free):
    W, X, X_tilde = make_problem(rng, kind, 24, 6)
    stats = gram(X, X_tilde, dtype=jnp.float32)
    result = solve(W, stats, effort="thorough", beam=2, **free)  # few lanes compile quickly
    losses = np.asarray(result.info["loss"])
    assert losses.shape == (2 + 2 + 2 + 4, 6)  # start, redecode, beam and two rounds of pairs, sweeps after each
    assert (np.diff(losses, axis=0) <= 0).all()
    assert np.isfinite(losses).all() and np.isfinite(np.asarray(result.dequantize())).all()


@pytest.mark.parametrize(
    "alphabet", ["1.58", "2", *(pytest.param(a, marks=pytest.mark.slow) for a in ("int2", "3", "4"))]
)
def test_near_the_exact_optimum(x64, rng, alphabet):
    """By enumeration of all codes; at most 1.5 % above it on average."""
    levels = make_alphabet(alphabet)
    N = {3: 7, 4: 7, 8: 5, 16: 4}[levels.size]
    everything = np.array(list(itertools.product(levels, repeat=N)))
    above = {"default": [], "paper": []}
    for _ in range(6):
        W, X, X_tilde = make_problem(rng, "mismatch", N, 5)
        stats = gram(X, X_tilde)
        results = {"default": solve(W, stats, alphabet, ridge=0.0), "paper": METHODS["beacon"](W, stats, alphabet)}
        error = np.square(X @ W).sum(0)
        cross, norm = everything @ (X_tilde.T @ (X @ W)), np.square(everything @ X_tilde.T).sum(1)[:, None]
        gain = np.square(cross) / np.where(norm > 0, norm, 1)
        if (levels == -levels[::-1]).all() is False:
            gain = np.where(norm > 0, gain, 0)
        best = error - gain.max(0)
        for name, result in results.items():
            found = np.square(X @ W - X_tilde @ np.asarray(result.dequantize())).sum(0)
            assert (found >= best * (1 - 1e-9)).all()
            above[name].extend(found / best - 1)
    assert np.mean(above["default"]) <= 0.015
    assert np.mean(above["default"]) <= np.mean(above["paper"])


def test_lower_errors_than_the_other_methods(rng):
    W, X, _ = make_problem(rng, "correlated", 48, 24, rows=400)
    stats = gram(X, dtype=jnp.float32)

    def error(method, **options):
        matrix = METHODS[method].solve(jnp.asarray(W, jnp.float32), stats, "2", has_bias=True, **options).matrix
        return float(relative_output_error(W, matrix, stats))

    errors = {effort: error("beacon_plus", effort=effort) for effort in ("fast", "default")}
    assert errors["default"] < errors["fast"] < error("beacon")
    assert errors["fast"] < min(error("gptq", act_order=True, bias=True), error("comq", scale="lsq"))


@pytest.mark.parametrize("bits", ["5", "6", "7", "8", "int8"])
@pytest.mark.parametrize("kind", ["white", "correlated", "dead"])
def test_never_worse_than_rounding(rng, bits, kind):
    W, X, _ = make_problem(rng, kind, 32, 12, rows=300)
    stats = gram(X, dtype=jnp.float32)
    free = dict(bias=False, offset=False)
    plus = losses_of(W, stats, solve(W, stats, bits, ridge=0.0, effort="fast"), 0.0, **free)
    for scale in ("absmax", "lsq"):
        rounded = METHODS["rtn"](jnp.asarray(W, jnp.float32), stats, bits, scale=scale)
        assert (plus <= losses_of(W, stats, rounded, 0.0, **free) * (1 + 1e-5)).all()


def test_any_block_size_and_channel_chunk_gives_the_same(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 30, 7)
    stats = gram(X, X_tilde)
    steps = dict(effort="fast", beam=2, pairs=1, has_bias=True)
    expected = solve(W, stats, **steps)
    for options in (dict(block_size=8), dict(channel_chunk=3)):
        found = solve(W, stats, **steps, **options)
        chex.assert_trees_all_equal(found.codes, expected.codes)
        chex.assert_trees_all_close(found.scale, expected.scale, rtol=1e-10)


def test_float32_finds_what_float64_finds(rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 48, 24, rows=400)
    single = solve(W, gram(X, X_tilde, dtype=jnp.float32), has_bias=True, effort="fast")
    assert single.scale.dtype == jnp.float32
    with jax.enable_x64(True):
        stats = gram(X, X_tilde)
        double = solve(W, stats, has_bias=True, effort="fast")
        ridge = 48 / (2 * 400)
        a, b = (losses_of(W, stats, result, ridge, bias=True, offset=False) for result in (single, double))
        norm = np.asarray(Objective.of(jnp.asarray(W), stats, jnp.asarray(ridge), bias=True, offset=False).norm)
    assert abs(a.sum() - b.sum()) <= 1e-4 * norm.sum()


def test_the_bias_takes_up_the_mean(x64, rng):
    """Large constant inputs, which half-integer levels cannot leave out, ruin Beacon and not this."""
    W, X, X_tilde = make_problem(rng, "mismatch", 20, 6, rows=300)
    X[:, :4] = X_tilde[:, :4] = 500.0 * rng.normal(size=4)
    stats = gram(X, X_tilde)
    result = solve(W, stats, "4", has_bias=True, effort="fast")
    Y, Y_hat = X @ W, X_tilde @ np.asarray(result.dequantize()) + np.asarray(result.bias_change)
    np.testing.assert_allclose(Y_hat.mean(0), Y.mean(0), atol=1e-9 * np.abs(Y).max())
    spread = np.square(Y - Y.mean(0)).sum()
    plain = X_tilde @ np.asarray(METHODS["beacon"](jnp.asarray(W), stats, "4").dequantize())
    error, plain_error = (np.square(Y - found).sum() / spread for found in (Y_hat, plain))
    assert error < 0.5 * plain_error
    np.testing.assert_allclose(
        relative_output_error(jnp.asarray(W), result, stats), np.square(Y - Y_hat).sum() / np.square(Y).sum(), rtol=1e-6
    )
    assert solve(W, stats, "4", has_bias=False, **OFF | {"bias": True}).bias_change is None


def test_a_mean_ten_thousand_times_the_spread_in_float32(rng):
    W, X, _ = make_problem(rng, "correlated", 24, 8, rows=400)
    shifted = gram(X + 1e4 * X.std(), dtype=jnp.float32)
    centred = gram(X - X.mean(0), dtype=jnp.float32)
    result, centred = (solve(W, stats, has_bias=True, effort="fast", beam=0) for stats in (shifted, centred))
    errors = [np.square((X - X.mean(0)) @ (W - np.asarray(found.dequantize()))).sum() for found in (result, centred)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_ridge_helps_with_few_rows(rng):
    W, X, _ = make_problem(rng, "white", 40, 30, rows=2000)
    few, all_rows = gram(X[:60], dtype=jnp.float32), gram(X, dtype=jnp.float32)
    errors = [
        float(relative_output_error(W, solve(W, few, "3", effort="fast", **options), all_rows))
        for options in ({}, dict(ridge=0.0))
    ]
    assert errors[0] < 0.95 * errors[1]


def test_options_are_checked():
    with pytest.raises(ValueError, match="beam must be 0 or a power of two up to 64, got 3"):
        METHODS["beacon_plus"].check(beam=3)
    with pytest.raises(ValueError, match="ridge must be a finite number of at least 0, got -1"):
        METHODS["beacon_plus"].check(ridge=-1)
    for ridge in (1e38, 10**400):
        with pytest.raises(ValueError, match="ridge must be"):
            METHODS["beacon_plus"].check(ridge=ridge)
    with pytest.raises(ValueError, match="unknown effort 'slow'"):
        METHODS["beacon_plus"].check(effort="slow")
