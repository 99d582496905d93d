import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import cosines, output_error_and_cosines, relative_output_error
from beacon_jax.quant.quantized import QuantizedMatrix
from tests.quant.problems import gram, make_problem


def test_against_the_outputs_themselves(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 20, 5)
    stats = gram(X, X_tilde)
    for alphabet in ("2", "8"):
        result = METHODS["rtn"](jnp.asarray(W), stats, alphabet, symmetric=False)
        y, v = X @ W, X_tilde @ np.asarray(result.dequantize())
        expected = np.sum((y - v) ** 2) / np.sum(y**2)
        error, angles = relative_output_error(W, result, stats), cosines(W, result, stats)
        np.testing.assert_allclose(error, expected, rtol=1e-9)
        expected = (y * v).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(v, axis=0)
        np.testing.assert_allclose(angles, expected)
        both = output_error_and_cosines(W, result, stats)
        np.testing.assert_allclose(both[0], error, rtol=1e-9)
        np.testing.assert_allclose(both[1], angles, rtol=1e-9)


def test_small_errors_survive_float32(rng):
    W, X, _ = make_problem(rng, "correlated", 16, 6)
    result = METHODS["rtn"](jnp.asarray(W, jnp.float32), gram(X, dtype=jnp.float32), "8")
    E = W.astype(np.float32) - np.asarray(result.dequantize())
    expected = np.sum((X @ E) ** 2) / np.sum((X @ W) ** 2)
    np.testing.assert_allclose(relative_output_error(W, result, gram(X, dtype=jnp.float32)), expected, rtol=1e-3)


def test_zero_kernel(rng):
    _, X, _ = make_problem(rng, "white", 16, 6)
    W, stats = jnp.zeros((16, 6)), gram(X, dtype=jnp.float32)
    result = METHODS["rtn"](W, stats, "1.58")
    assert relative_output_error(W, result, stats) == 0
    np.testing.assert_array_equal(cosines(W, result, stats), 0)


def outputs(W, result, X, X_tilde):
    """Xw and X̃ŵ themselves, in float64."""
    X, X_tilde = np.asarray(X, np.float64), np.asarray(X_tilde, np.float64)
    return X @ np.asarray(W, np.float64), X_tilde @ np.asarray(result.dequantize(), np.float64)


@pytest.mark.parametrize("mean", [30, 1e3, 1e5])
@pytest.mark.parametrize("two", [False, True])
def test_float32_beside_a_large_mean(rng, mean, two):
    """Codes that are right to a part in mean², and codes that are not."""
    W = rng.normal(size=(16, 6)).astype(np.float32)
    X = (rng.normal(size=(80, 16)) + mean * rng.normal(size=16)).astype(np.float32)
    X_tilde = (X + 0.1 * rng.normal(size=X.shape)).astype(np.float32) if two else X
    stats = gram(X, X_tilde, jnp.float32)
    for method, options in (("rtn", {}), ("beacon", {"sweeps": 2, "centering": "mean"})):
        result = METHODS[method](jnp.asarray(W), stats, "3", **options)
        y, v = outputs(W, result, X, X_tilde)
        expected = np.sum((y - v) ** 2) / np.sum(y**2)
        np.testing.assert_allclose(relative_output_error(W, result, stats), expected, rtol=1e-4)
        expected = (y * v).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(v, axis=0)
        np.testing.assert_allclose(cosines(W, result, stats), expected, atol=1e-6)
    assert expected.min() > 1 - 10 / mean**2


def test_groups(x64, rng):
    """As one and each under vmap."""
    X, X_tilde, W = rng.normal(size=(2, 30, 5)), rng.normal(size=(2, 30, 5)), jnp.asarray(rng.normal(size=(2, 5, 3)))
    stats = jax.vmap(GramStats.update)(GramStats.zeros(5, jnp.float64, streams=2, groups=2), X, X_tilde)
    result = METHODS["rtn"](W, stats, "3")
    pairs = [outputs(W[e], _group(result, e), X[e], X_tilde[e]) for e in range(2)]
    errors, targets = np.array([[np.sum((y - v) ** 2), np.sum(y**2)] for y, v in pairs]).T
    angles = [(y * v).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(v, axis=0) for y, v in pairs]
    np.testing.assert_allclose(relative_output_error(W, result, stats), errors.sum() / targets.sum())
    np.testing.assert_allclose(cosines(W, result, stats), angles)
    axes = QuantizedMatrix(0, None, 0)
    for measure, expected in ((relative_output_error, errors / targets), (cosines, angles)):
        np.testing.assert_allclose(jax.vmap(measure, in_axes=(0, axes, 0))(W, result, stats), expected, rtol=1e-9)


def _group(matrix, e):
    return QuantizedMatrix(matrix.codes[e], matrix.alphabet, matrix.scale[e])
