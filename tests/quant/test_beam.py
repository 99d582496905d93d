"""The beam against a literal one, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.beam import beam_decode
from beacon_jax.quant.decoding import Decoder, decode, descending

beam = jax.jit(beam_decode, static_argnames=("width", "block_size"))


def literal_beam(R, w, s, alphabet, width):
    """Partial roundings (codes, error) of one channel, in the natural order, R lower with H = RᵀR."""
    lanes = [((), 0.0)]
    for t in range(w.size):
        candidates = []
        for codes, error in lanes:
            rest = np.array([w[j] - s * codes[j] for j in range(t)])
            real = (w[t] + R[t, :t] @ rest / R[t, t]) / s
            i = np.clip(np.searchsorted(alphabet, real, side="right") - 1, 0, len(alphabet) - 2)
            for level in alphabet[i : i + 2]:
                candidates.append(((*codes, level), error + (R[t, t] * s * (real - level)) ** 2))
        lanes = sorted(candidates, key=lambda lane: lane[1])[:width]
    return np.array(lanes[0][0])


@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("alphabet", ["1.58", "3", "-1,0,2.5"])
def test_it_keeps_the_best_partial_roundings(x64, rng, width, alphabet):
    N, C = 20, 3
    X, W = rng.normal(size=(60, N)) @ rng.normal(size=(N, N)), rng.normal(size=(N, C))
    H, s = jnp.asarray(X.T @ X), jnp.asarray([0.5, -0.4, 0.9])
    decoder = Decoder.of(H, descending(jnp.diagonal(H)), 0.01)
    levels = make_alphabet(alphabet)
    order = np.asarray(decoder.order)
    damped = (np.asarray(H) + float(decoder.ridge) * np.eye(N))[np.ix_(order, order)]
    R = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1].T
    expected = np.zeros((N, C))
    for k in range(C):
        expected[order, k] = literal_beam(R, W[order, k], float(s[k]), levels, width)
    for block_size in (8, 24):
        q = beam(decoder, Levels.of(levels, jnp.float64), jnp.asarray(W), s, width=width, block_size=block_size)
        np.testing.assert_array_equal(q, expected)


def test_one_lane_decodes(rng):
    X, W = rng.normal(size=(60, 21)), jnp.asarray(rng.normal(size=(21, 5)), jnp.float32)
    H, s = jnp.asarray(X.T @ X, jnp.float32), jnp.full(5, 0.4, jnp.float32)
    decoder, levels = Decoder.of(H, descending(jnp.diagonal(H)), 0.01), Levels.of(make_alphabet("2"), jnp.float32)
    q, _ = decode(decoder, levels, W, s, block_size=8)
    np.testing.assert_array_equal(beam(decoder, levels, W, s, width=1, block_size=8), q)


def test_more_lanes_find_lower_errors(rng):
    X, W = rng.normal(size=(200, 48)) @ rng.normal(size=(48, 48)), jnp.asarray(rng.normal(size=(48, 20)), jnp.float32)
    H, s = jnp.asarray(X.T @ X, jnp.float32), jnp.full(20, 0.8, jnp.float32)
    decoder, levels = Decoder.of(H, descending(jnp.diagonal(H)), 0.01), Levels.of(make_alphabet("2"), jnp.float32)

    def error(width):
        rest = W - s[None, :] * functools.partial(beam, width=width, block_size=16)(decoder, levels, W, s)
        return float((rest * (H @ rest)).sum())

    errors = [error(width) for width in (1, 4, 16)]
    assert errors[1] < 0.97 * errors[0] and errors[2] < 0.99 * errors[1]
