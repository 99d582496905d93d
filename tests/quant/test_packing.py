import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_jax.quant.packing import check_packed, grouping, pack_codes, packed_bytes, unpack_codes

ALL = range(2, 257)


def random_codes(levels, shape):
    return np.random.default_rng(levels).integers(levels, size=shape).astype(np.uint8)


def test_groups_are_the_smallest_that_are_dense_enough():
    known = {2: (1, 1), 3: (5, 8), 4: (1, 2), 5: (3, 7), 6: (5, 13), 15: (11, 43), 16: (1, 4), 256: (1, 8)}
    assert {levels: grouping(levels) for levels in known} == known
    for levels in ALL:
        g, b = grouping(levels)
        assert levels**g <= 2**b <= 2**64 and b <= 1.02 * g * math.log2(levels)
        fits = [h for h in range(1, g) if math.ceil(h * math.log2(levels)) <= 1.02 * h * math.log2(levels)]
        assert not fits


@pytest.mark.parametrize("shape", [(768, 768), (768, 1000), (768, 2304), (3072, 768)])  # the layers of DeiT-B
def test_within_two_percent_of_the_least(shape):
    for levels in range(2, 17):
        assert 8 * packed_bytes(levels, math.prod(shape)) <= 1.02 * math.log2(levels) * math.prod(shape)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 256), st.lists(st.integers(1, 13), min_size=1, max_size=3), st.integers(0, 2**32))
def test_round_trip(levels, shape, seed):
    codes = np.random.default_rng(seed).integers(levels, size=shape).astype(np.uint8)
    packed = pack_codes(codes, levels)
    assert packed.dtype == np.uint8 and packed.shape == (packed_bytes(levels, codes.size),)
    for unpacked in (unpack_codes(packed, levels, codes.shape), check_packed(packed, levels, codes.shape)):
        assert unpacked.dtype == np.uint8
        np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("shape", [(1, 1), (37, 21)])
def test_extreme_codes_of_every_alphabet(shape):
    for levels in ALL:
        for codes in (np.zeros(shape, np.uint8), np.full(shape, levels - 1, np.uint8), random_codes(levels, shape)):
            np.testing.assert_array_equal(unpack_codes(pack_codes(codes, levels), levels, shape), codes)


@pytest.mark.parametrize("levels", [2, 3, 5, 6, 15, 228, 256])  # one limb, two, three
def test_unpacking_under_jit_without_64_bits(levels):
    assert not jax.config.jax_enable_x64
    codes = random_codes(levels, (19, 23))
    unpacked = jax.jit(lambda packed: unpack_codes(packed, levels, codes.shape))(jnp.asarray(pack_codes(codes, levels)))
    assert unpacked.dtype == jnp.uint8
    np.testing.assert_array_equal(unpacked, codes)


def test_the_layout():
    np.testing.assert_array_equal(pack_codes(np.array([[1, 2, 3, 0]], np.uint8), 4), [0b0110_0101])
    # 9 ternary codes: two numbers, the even codes and the odd ones, lowest digit first.
    packed = pack_codes(np.array([[1, 2, 0], [0, 2, 1], [1, 1, 2]], np.uint8), 3)
    np.testing.assert_array_equal(packed, [1 + 0 * 3 + 2 * 9 + 1 * 27 + 2 * 81, 2 + 0 * 3 + 1 * 9 + 1 * 27])


def test_errors():
    with pytest.raises(ValueError, match="code 4 is outside an alphabet of 4 levels"):
        pack_codes(np.array([[4]], np.uint8), 4)
    with pytest.raises(ValueError, match=r"an array \(1,\) of bytes does not hold \(3, 3\) codes of 4 levels"):
        unpack_codes(np.zeros(1, np.uint8), 4, (3, 3))
    for packed, shape in (([243], (1, 5)), ([3], (1, 1))):  # 3⁵; a digit that fills up
        with pytest.raises(ValueError, match="outside their alphabet of 3 levels"):
            check_packed(np.array(packed, np.uint8), 3, shape)
