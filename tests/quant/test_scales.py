"""Scales against their literal form."""

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.methods.oracle import least_squares_scale as literal_scale
from beacon_jax.quant.scales import least_squares_scale


@pytest.mark.parametrize("name", ["1.58", "2", "4", "int3"])
def test_least_squares_scale(x64, rng, name):
    W, alphabet = rng.normal(size=(30, 5)), make_alphabet(name)
    expected = [literal_scale(w, alphabet) for w in W.T]
    np.testing.assert_allclose(least_squares_scale(jnp.asarray(W), Levels.of(alphabet, jnp.float64)), expected)
