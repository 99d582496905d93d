import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import cosines, relative_output_error
from tests.quant.problems import gram, make_problem


def test_against_the_outputs_themselves(x64, rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 20, 5)
    stats = gram(X, X_tilde)
    for alphabet in ("2", "8"):
        result = METHODS["rtn"](jnp.asarray(W), stats, alphabet, symmetric=False)
        y, v = X @ W, X_tilde @ np.asarray(result.dequantize())
        expected = np.sum((y - v) ** 2) / np.sum(y**2)
        np.testing.assert_allclose(relative_output_error(W, result, stats), expected, rtol=1e-9)
        expected = (y * v).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(v, axis=0)
        np.testing.assert_allclose(cosines(W, result, stats), expected)


def test_small_errors_survive_float32(rng):
    W, X, _ = make_problem(rng, "correlated", 30, 5)
    result = METHODS["rtn"](jnp.asarray(W, jnp.float32), gram(X, dtype=jnp.float32), "8")
    E = W.astype(np.float32) - np.asarray(result.dequantize())
    expected = np.sum((X @ E) ** 2) / np.sum((X @ W) ** 2)
    np.testing.assert_allclose(relative_output_error(W, result, gram(X, dtype=jnp.float32)), expected, rtol=1e-3)


def test_zero_kernel(rng):
    _, X, _ = make_problem(rng, "white", 6, 2)
    W, stats = jnp.zeros((6, 2)), gram(X, dtype=jnp.float32)
    result = METHODS["rtn"](W, stats, "1.58")
    assert relative_output_error(W, result, stats) == 0
    np.testing.assert_array_equal(cosines(W, result, stats), 0)
