import numpy as np
import pytest

from beacon_jax.quant.sweep import INNER, even_block


@pytest.mark.parametrize("most", [1, 7, 12, 64, 128])
def test_blocks_are_even(most):
    step = np.gcd(most, INNER)
    for n in range(1, 300):
        size = even_block(n, most)
        blocks = -(-n // size)
        assert 1 <= size <= most and size % step == 0
        assert blocks == -(-n // most) and size * blocks - n < step * blocks
