"""GPTQ against its published recursion in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods.oracle import nearest_level
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import relative_output_error
from tests.quant.problems import gram, levels_of, make_problem


def literal_gptq(W, H, alphabet, s, z, damping, order):
    """The recursion of arXiv 2210.17323 as published: Cholesky of the inverse, each error pushed onto what follows."""
    N = len(W)
    H = (H + damping * np.mean(np.diag(H)) * np.eye(N))[np.ix_(order, order)]
    W = W[order].copy()
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    Q = np.zeros_like(W)
    for t in range(N):
        Q[t] = nearest_level((W[t] - z) / s, alphabet)
        error = (W[t] - (s * Q[t] + z)) / U[t, t]
        W[t:] -= np.outer(U[t, t:], error)
    restored = np.zeros_like(Q)
    restored[order] = Q
    return restored


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block_size", [7, 64])
def test_gptq_equals_its_recursion(x64, rng, symmetric, act_order, block_size):
    alphabet = make_alphabet("3")
    for kind in ("correlated", "low_rank", "dead"):
        W, X, _ = make_problem(rng, kind, 30, 5)
        H = X.T @ X
        result = METHODS["gptq"](
            jnp.asarray(W), gram(X), alphabet, symmetric=symmetric, act_order=act_order, block_size=block_size
        )
        z = np.zeros(5) if symmetric else np.asarray(result.offset)
        order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(30)
        expected = literal_gptq(W, H, alphabet, np.asarray(result.scale), z, 0.01, order)
        np.testing.assert_array_equal(levels_of(result), expected)


def test_gptq_with_both_streams_targets_the_float_output(x64, rng):
    """Equal streams change nothing; different ones are better served than by ignoring the difference."""
    W, X, X_tilde = make_problem(rng, "mismatch", 30, 5)
    plain, equal = (METHODS["gptq"](jnp.asarray(W), s, "4") for s in (gram(X), gram(X, X.copy())))
    np.testing.assert_array_equal(plain.codes, equal.codes)
    both = gram(X, X_tilde)
    corrected, ignoring = (METHODS["gptq"](jnp.asarray(W), s, "4") for s in (both, gram(X_tilde)))
    assert relative_output_error(W, corrected, both) < relative_output_error(W, ignoring, both)


def test_gptq_star_takes_beacons_scale(x64, rng):
    W, X, _ = make_problem(rng, "correlated", 30, 5)
    result = METHODS["gptq"](jnp.asarray(W), gram(X), "2", scale="beacon")
    np.testing.assert_array_equal(result.scale, METHODS["beacon"](jnp.asarray(W), gram(X), "2").scale)


def test_gptq_with_a_free_bias_is_that_of_centred_inputs(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 30, 5)
    X, X_tilde = X + 3, X_tilde + 2
    stats = gram(X, X_tilde)
    free = METHODS["gptq"].solve(jnp.asarray(W), stats, "2", has_bias=True, bias=True, act_order=True).matrix
    centred = METHODS["gptq"](jnp.asarray(W), gram(X - X.mean(0), X_tilde - X_tilde.mean(0)), "2", act_order=True)
    np.testing.assert_array_equal(free.codes, centred.codes)
    expected = X.mean(0) @ W - X_tilde.mean(0) @ np.asarray(free.dequantize())
    np.testing.assert_allclose(free.bias_change, expected, rtol=1e-9)
    plain = METHODS["gptq"].solve(jnp.asarray(W), stats, "2", has_bias=False, bias=True).matrix
    assert plain.bias_change is None
