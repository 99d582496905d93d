"""Numbers at the ends of the range, kernels of zeros, inputs that are never there, and what is no number at all."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import output_error_and_cosines
from beacon_jax.quant.problem import NothingToCalibrateOn
from tests.quant.problems import gram, make_problem

METHOD_OPTIONS = [
    ("rtn", {}),
    ("rtn", dict(scale="lsq", symmetric=False)),
    ("gptq", dict(scale="lsq", bias=True)),
    ("comq", {}),
    ("beacon", {}),
    ("beacon", dict(centering="mean")),
    ("beacon_plus", dict(effort="fast", offset=True)),
]
every_method = pytest.mark.parametrize(("method", "options"), METHOD_OPTIONS)


def solve(method, kernel, stats, options, alphabet="2"):
    return (
        METHODS[method]
        .solve(jax.device_put(np.asarray(kernel, stats.dtype)), stats, alphabet, has_bias=True, **options)
        .matrix
    )


@pytest.fixture(scope="module")
def rows():
    return make_problem(np.random.default_rng(5), "mismatch", 12, 4, rows=64)


@every_method
@pytest.mark.parametrize(("weights", "inputs"), [(100, 0), (-100, 0), (0, 40), (0, -40), (70, -40)])
def test_powers_of_two_change_nothing_else(rows, method, options, weights, inputs):
    """Weights of 1e±30, and inputs whose squares are near the ends of float32."""
    W, X, X_tilde = (np.asarray(a, np.float32) for a in rows)
    factor, step = np.float32(2.0) ** weights, np.float32(2.0) ** inputs
    plain, far = gram(X, X_tilde, jnp.float32), gram(X * step, X_tilde * step, jnp.float32)
    one, other = solve(method, W, plain, options), solve(method, W * factor, far, options)
    chex.assert_trees_all_equal(one.codes, other.codes)
    np.testing.assert_array_equal(np.asarray(one.scale) * factor, other.scale)
    if one.offset is not None:
        np.testing.assert_allclose(np.asarray(one.offset) * factor, other.offset, rtol=1e-5)
    if one.bias_change is not None:
        np.testing.assert_allclose(np.asarray(one.bias_change) * (factor * step), other.bias_change, rtol=1e-4)
    for a, b in zip(
        output_error_and_cosines(jnp.asarray(W), one, plain),
        output_error_and_cosines(jnp.asarray(W * factor), other, far),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@every_method
@pytest.mark.parametrize("alphabet", ["2", "1.58"])
def test_a_kernel_of_zeros_is_kept_without_error(rows, method, options, alphabet):
    _, X, X_tilde = rows
    stats = gram(X, X_tilde, jnp.float32)
    kernel = np.zeros((12, 4), np.float32)
    result = solve(method, kernel, stats, options, alphabet)
    error, cosine = output_error_and_cosines(jnp.asarray(kernel), result, stats)
    assert float(error) == 0 and not np.asarray(cosine).any()
    assert not np.asarray(result.dequantize()).any()


@every_method
def test_weights_on_inputs_that_are_never_there_do_not_set_the_grid(rng, method, options):
    W, X, _ = make_problem(rng, "white", 12, 4, rows=64)
    X[:, [2, 7]] = 0
    huge = W.copy()
    huge[[2, 7]] = 1e4
    stats = gram(X, dtype=jnp.float32)
    alive = np.delete(np.arange(12), [2, 7])
    small, large = (solve(method, kernel, stats, options) for kernel in (W, huge))
    if options.get("centering") != "mean":  # the mean of all weights
        np.testing.assert_array_equal(*(np.asarray(found.codes)[alive] for found in (small, large)))
        np.testing.assert_allclose(small.scale, large.scale, rtol=1e-6)


@every_method
def test_inputs_that_are_all_zero(method, options):
    W = np.ones((12, 4), np.float32)
    for X in (np.zeros((64, 12)), np.full((64, 12), 1e-25)):
        stats = gram(X, dtype=jnp.float32)
        if METHODS[method].reads_stats:
            with pytest.raises(NothingToCalibrateOn, match="zero in every calibration row, or so small"):
                solve(method, W, stats, options)
        else:
            assert np.asarray(solve(method, W, stats, options).dequantize()).any()


def test_what_is_no_problem(rows):
    W, X, X_tilde = rows
    stats = gram(X, X_tilde, jnp.float32)
    with pytest.raises(ValueError, match="expected a kernel of real numbers, got complex64"):
        METHODS["beacon"](jnp.asarray(W, jnp.complex64), stats, "2")
    own = stats.x_tilde
    for products in (-own.products, own.products.at[0, 1].add(1e3), own.products.at[3, 3].set(0)):
        broken = dataclasses.replace(stats, x_tilde=dataclasses.replace(own, products=products))
        with pytest.raises(ValueError, match="the statistics are no Gram matrices"):
            METHODS["beacon"](jnp.asarray(W, jnp.float32), broken, "2")
    with pytest.raises(ValueError, match="the statistics are no Gram matrices"):
        METHODS["beacon"](jnp.asarray(W, jnp.float32), dataclasses.replace(stats, cross=10 * stats.cross), "2")


@every_method
def test_a_group_whose_inputs_are_all_zero_is_rounded(rng, method, options):
    W, X, _ = make_problem(rng, "white", 12, 4, rows=64)
    kernels = jax.device_put(np.stack([W, 2 * W]).astype(np.float32))
    each = [gram(x, dtype=jnp.float32) for x in (X, 0 * X)]
    stats = jax.tree.map(lambda *parts: jax.device_put(np.stack(parts)), *each)
    solution = METHODS[method].solve(kernels, stats, "2", has_bias=True, **options)
    reads = METHODS[method].reads_stats
    note = "1 of 2 groups rounded to nearest because their inputs are always zero"
    assert solution.note == (note if reads else None)
    alone = solve(method, W, each[0], options)
    codes = np.asarray(solution.matrix.codes)
    np.testing.assert_array_equal(codes[0], alone.codes)
    if reads:
        nearest = METHODS["rtn"](jax.device_put(2 * W.astype(np.float32)), each[1], "2", scale="lsq")
        np.testing.assert_array_equal(codes[1], nearest.codes)
        np.testing.assert_allclose(np.asarray(solution.matrix.dequantize())[1], nearest.dequantize(), rtol=1e-6)


def test_groups_have_units_of_their_own(rng):
    """And the error of all groups is that of their sums."""
    W, X, _ = make_problem(rng, "correlated", 12, 4, rows=64)
    factors = np.array([1.0, 1e-18, 1e18], np.float32)
    kernels = jax.device_put(W.astype(np.float32) * factors[:, None, None])
    first = jax.device_put(W.astype(np.float32))
    one = gram(X, dtype=jnp.float32)
    stacked = GramStats.zeros(12, groups=3)

    def three(array):
        return jax.device_put(np.stack([array] * 3))

    stacked = dataclasses.replace(
        stacked,
        x_tilde=dataclasses.replace(
            stacked.x_tilde, **{k: three(getattr(one.x_tilde, k)) for k in ("shift", "total", "products")}
        ),
        count=three(one.count),
        rows=three(one.rows),
    )
    result = METHODS["beacon"](kernels, stacked, "2")
    alone = METHODS["beacon"](first, one, "2")
    for codes in np.asarray(result.codes):
        np.testing.assert_array_equal(codes, alone.codes)
    np.testing.assert_allclose(
        output_error_and_cosines(kernels, result, stacked)[0],
        output_error_and_cosines(first, alone, one)[0],
        rtol=1e-4,
    )
