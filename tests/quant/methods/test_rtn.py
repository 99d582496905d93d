"""Round to nearest against its literal form."""

import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods.oracle import nearest_level
from beacon_jax.quant.methods.table import METHODS
from tests.quant.problems import gram, levels_of, make_problem


def test_rtn_rounds_to_nearest(x64, rng):
    W, X, _ = make_problem(rng, "white", 20, 4)
    alphabet = make_alphabet("3")
    result = METHODS["rtn"](jnp.asarray(W), gram(X), alphabet)
    s = np.abs(W).max(0) / 3.5
    np.testing.assert_allclose(result.scale, s)
    np.testing.assert_allclose(levels_of(result), np.stack([nearest_level(w, alphabet) for w in (W / s).T], 1))
    assert result.offset is None
    W = W + 5  # far from zero: a zero point is what it takes
    with_zero_point = METHODS["rtn"](jnp.asarray(W), gram(X), alphabet, symmetric=False).dequantize()
    assert np.abs(with_zero_point - W).max() <= (W.max(0) - W.min(0)).max() / 7 / 2 + 1e-9
    np.testing.assert_allclose(with_zero_point.min(0), W.min(0))
    np.testing.assert_allclose(with_zero_point.max(0), W.max(0))
