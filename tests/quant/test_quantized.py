import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.quantized import QuantizedMatrix


def matrix(rng, *groups, offset=True):
    """Random codes (*groups, 4, 3) of three levels."""
    scale, offsets = (jnp.asarray(rng.normal(size=(*groups, 3)), jnp.float32) for _ in range(2))
    codes = jnp.asarray(rng.integers(0, 3, (*groups, 4, 3)), jnp.uint8)
    levels = jnp.array([-1.0, 0.0, 1.0])
    info = {"cosine": scale, "history": jnp.stack([scale, scale], -2)}
    return QuantizedMatrix(codes, levels, scale, offsets if offset else None, info)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("groups", [(), (2,)])
def test_dequantize(rng, groups, offset):
    m = matrix(rng, *groups, offset=offset)
    assert m.shape == (*groups, 4, 3) and m.dequantize().dtype == jnp.float32
    added = 0 if m.offset is None else np.asarray(m.offset)[..., None, :]
    expected = (np.asarray(m.codes, np.float32) - 1) * np.asarray(m.scale)[..., None, :] + added
    np.testing.assert_allclose(m.dequantize(), expected, rtol=1e-6)


def test_groups_dequantize_as_each_does_alone(rng):
    m = matrix(rng, 2)
    for e in range(2):
        alone = QuantizedMatrix(m.codes[e], m.alphabet, m.scale[e], m.offset[e])
        np.testing.assert_array_equal(m.dequantize()[e], alone.dequantize())


@pytest.mark.parametrize("groups", [(), (2,)])
def test_first_channels(rng, groups):
    m = matrix(rng, *groups)
    part = m.first_channels(2)
    np.testing.assert_array_equal(part.dequantize(), m.dequantize()[..., :2])
    assert {a.shape[-1] for a in part.info.values()} == {2}
    assert m.first_channels(3) is m


def test_astype(rng):
    m = matrix(rng).astype(jnp.bfloat16)
    assert m.dequantize().dtype == jnp.bfloat16 and m.codes.dtype == jnp.uint8
    assert {a.dtype for a in jax.tree.leaves((m.alphabet, m.scale, m.offset))} == {jnp.dtype(jnp.bfloat16)}
