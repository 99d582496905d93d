import numpy as np
import pytest

from beacon_jax.quant.packing import bits_per_code, pack_codes, unpack_codes


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 3), (16, 4), (256, 8)])
def test_round_trip(rng, levels, bits):
    assert bits_per_code(levels) == bits
    for shape in ((1, 1), (7, 3), (64, 48), (2, 3, 5)):
        codes = rng.integers(levels, size=shape).astype(np.uint8)
        packed = pack_codes(codes, levels)
        assert packed.dtype == np.uint8 and packed.size == -(-codes.size * bits // 8)
        np.testing.assert_array_equal(unpack_codes(packed, levels, shape), codes)


def test_low_bits_come_first():
    np.testing.assert_array_equal(pack_codes(np.array([[1, 2, 3, 0]], np.uint8), 4), [0b00111001])


def test_errors():
    with pytest.raises(ValueError, match="code 4 is outside an alphabet of 4 levels"):
        pack_codes(np.array([[4]], np.uint8), 4)
    with pytest.raises(ValueError, match=r"1 bytes do not hold \(3, 3\) codes of 2 bits"):
        unpack_codes(np.zeros(1, np.uint8), 4, (3, 3))
