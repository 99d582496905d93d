import jax
import numpy as np

from beacon_jax.quant.compiling import jit_solver


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
