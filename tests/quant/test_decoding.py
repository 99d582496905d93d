"""Decoding: its error, and scales of both signs (its codes are compared with GPTQ's recursion in test_gptq.py)."""

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.decoding import Decoder, decode, descending, ridge_of


@pytest.mark.parametrize("offset", [None, 0.3])
@pytest.mark.parametrize("block_size", [4, 16])
def test_error_of_the_result(x64, rng, offset, block_size):
    X, W = rng.normal(size=(40, 13)) @ rng.normal(size=(13, 13)), jnp.asarray(rng.normal(size=(13, 3)))
    H = jnp.asarray(X.T @ X)
    levels, s = Levels.of(make_alphabet("int2"), jnp.float64), jnp.asarray([0.4, -0.6, 1.0])
    z = None if offset is None else jnp.full(3, offset)
    decoder = Decoder.of(H, descending(jnp.diagonal(H)), 0.01)
    q, error = decode(decoder, levels, W, s, z, block_size=block_size)
    rest = W - s[None, :] * q - (offset or 0)
    damped = H + 0.01 * jnp.diagonal(H).mean() * jnp.eye(13)
    np.testing.assert_allclose(error, (rest * (damped @ rest)).sum(0), rtol=1e-10)
    assert set(np.unique(q)) <= set(make_alphabet("int2"))
    assert (error < (W * (damped @ W)).sum(0)).all()


def test_ridge_of_nothing():
    assert ridge_of(jnp.zeros((3, 3)), 0.5) == 0.5
