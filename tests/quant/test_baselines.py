"""RTN, GPTQ and COMQ against plain float64 versions of themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant import comq, gptq, rtn
from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.metrics import relative_output_error
from beacon_jax.quant.oracle import least_squares_scale as literal_scale
from beacon_jax.quant.oracle import nearest_level
from beacon_jax.quant.scales import least_squares_scale
from tests.quant.problems import gram, make_problem


def levels_of(result):
    return np.asarray(result.alphabet)[np.asarray(result.codes)]


@pytest.mark.parametrize("name", ["1.58", "2", "4", "int3"])
def test_least_squares_scale(x64, rng, name):
    W, alphabet = rng.normal(size=(30, 5)), make_alphabet(name)
    expected = [literal_scale(w, alphabet) for w in W.T]
    np.testing.assert_allclose(least_squares_scale(jnp.asarray(W), Levels.of(alphabet, jnp.float64)), expected)


def test_rtn_rounds_to_nearest(x64, rng):
    W, X, _ = make_problem(rng, "white", 20, 4)
    alphabet = make_alphabet("3")
    result = rtn.quantize(jnp.asarray(W), gram(X), alphabet)
    s = np.abs(W).max(0) / 3.5
    np.testing.assert_allclose(result.scale, s)
    np.testing.assert_allclose(levels_of(result), np.stack([nearest_level(w, alphabet) for w in (W / s).T], 1))
    assert result.offset is None
    W = W + 5  # far from zero: a zero point is what it takes
    with_zero_point = rtn.quantize(jnp.asarray(W), gram(X), alphabet, symmetric=False).dequantize()
    assert np.abs(with_zero_point - W).max() <= (W.max(0) - W.min(0)).max() / 7 / 2 + 1e-9
    np.testing.assert_allclose(with_zero_point.min(0), W.min(0))
    np.testing.assert_allclose(with_zero_point.max(0), W.max(0))


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
        result = gptq.quantize(
            jnp.asarray(W), gram(X), alphabet, symmetric=symmetric, act_order=act_order, block_size=block_size
        )
        z = np.zeros(5) if symmetric else np.asarray(result.offset)
        order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(30)
        expected = literal_gptq(W, H, alphabet, np.asarray(result.scale), z, 0.01, order)
        np.testing.assert_array_equal(levels_of(result), expected)


def test_gptq_with_both_streams_targets_the_float_output(x64, rng):
    """Equal streams change nothing; different ones are better served than by ignoring the difference."""
    W, X, X_tilde = make_problem(rng, "mismatch", 30, 5)
    plain, equal = (gptq.quantize(jnp.asarray(W), s, "4") for s in (gram(X), gram(X, X.copy())))
    np.testing.assert_array_equal(plain.codes, equal.codes)
    both = gram(X, X_tilde)
    corrected, ignoring = (gptq.quantize(jnp.asarray(W), s, "4") for s in (both, gram(X_tilde)))
    assert relative_output_error(W, corrected, both) < relative_output_error(W, ignoring, both)


def test_gptq_star_takes_beacons_scale(x64, rng):
    from beacon_jax.quant import beacon

    W, X, _ = make_problem(rng, "correlated", 20, 4)
    result = gptq.quantize(jnp.asarray(W), gram(X), "2", scale="beacon")
    np.testing.assert_array_equal(result.scale, beacon.quantize(jnp.asarray(W), gram(X), "2").scale)


def literal_comq(W, X, X_tilde, alphabet, s, z, sweeps, order):
    """Coordinate descent on ‖Xw − z X̃1 − s X̃q‖² with the vectors themselves, from q = (w − z) / s."""
    codes, scales, objectives = [], [], []
    for w, scale, zero in zip(W.T, s, z, strict=True):
        q, y = (w - zero) / scale, X @ w - zero * X_tilde.sum(1)
        history = []
        for _ in range(sweeps):
            for t in order:
                x = X_tilde[:, t]
                if not x.any():
                    q[t] = alphabet[np.argmin(np.abs(alphabet))]
                    continue
                residual = y - scale * (X_tilde @ q - q[t] * x)
                q[t] = nearest_level(np.array([residual @ x / (scale * (x @ x))]), alphabet)[0]
            v = X_tilde @ q
            scale = (y @ v) / (v @ v)
            history.append(np.sum((y - scale * v) ** 2))
        codes.append(q)
        scales.append(scale)
        objectives.append(history)
    return np.stack(codes, 1), np.array(scales), np.array(objectives).T


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", comq.ORDERS)
def test_comq_equals_its_literal_form(x64, rng, symmetric, order):
    alphabet = make_alphabet("3")
    for kind in ("correlated", "dead_mismatch"):
        W, X, X_tilde = make_problem(rng, kind, 22, 5)
        kernel, stats = jnp.asarray(W), gram(X, X_tilde)
        result = comq.quantize(kernel, stats, alphabet, symmetric=symmetric, order=order, block_size=8)
        start = rtn.quantize(kernel, stats, alphabet, symmetric=symmetric)
        z = np.zeros(5) if symmetric else np.asarray(start.offset)
        importance = (X_tilde**2).sum(0) * (W**2).sum(1)
        visits = np.argsort(-importance, kind="stable") if order == "greedy" else np.arange(22)
        q, s, objective = literal_comq(W, X, X_tilde, alphabet, np.asarray(start.scale), z, 4, visits)
        np.testing.assert_array_equal(levels_of(result), q)
        np.testing.assert_allclose(result.scale, s, rtol=1e-9)
        np.testing.assert_allclose(result.info["objective"], objective, rtol=1e-8)


def test_comq_objective_never_rises(rng):
    for name in ("1.58", "2", "4"):
        W, X, X_tilde = make_problem(rng, "mismatch", 40, 16)
        stats = gram(X, X_tilde, jnp.float32)
        objective = np.asarray(comq.quantize(jnp.asarray(W, jnp.float32), stats, name, sweeps=8).info["objective"])
        assert np.all(np.diff(objective, axis=0) <= 1e-4 * objective[:-1])
