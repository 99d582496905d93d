import jax
import numpy as np
import pytest

from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.sweep import INNER, even_block, lower_matmul, quadratic_form


@pytest.mark.parametrize("most", [1, 7, 12, 64, 128])
def test_blocks_are_even(most):
    step = np.gcd(most, INNER)
    for n in range(1, 300):
        size = even_block(n, most)
        blocks = -(-n // size)
        assert 1 <= size <= most and size % step == 0
        assert blocks == -(-n // most) and size * blocks - n < step * blocks


@pytest.mark.parametrize("n", [5, 259])  # whole, and by stripes
def test_triangular_products(x64, rng, n):
    M, Q = rng.normal(size=(n, n)), rng.normal(size=(n, 2))
    np.testing.assert_allclose(lower_matmul(M, Q), np.tril(M) @ Q, atol=1e-9)
    symmetric = M + M.T
    np.testing.assert_allclose(quadratic_form(symmetric, Q), (Q * (symmetric @ Q)).sum(0), atol=1e-9)


def test_a_solver_compiles_for_cpus_and_inside_other_functions():
    @jit_solver("power")
    def raised(x, *, power):
        """x to a power."""
        return x**power

    x = np.arange(3.0, dtype=np.float32)
    np.testing.assert_array_equal(raised(x, power=2), x**2)
    assert (raised.wide._cache_size(), raised.plain._cache_size()) == (1, 0)
    np.testing.assert_array_equal(jax.jit(lambda x: raised(x, power=3))(x), x**3)
    assert raised.wide._cache_size() == 1 and raised.__doc__ == "x to a power."
