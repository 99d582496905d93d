import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.triangular import add_gram, lower_and_whole, lower_matmul, mirrored, quadratic_form


@pytest.mark.parametrize("n", [5, 259])  # whole, and by stripes
def test_triangular_products(x64, rng, n):
    M, Q = jnp.asarray(rng.normal(size=(n, n))), jnp.asarray(rng.normal(size=(n, 2)))
    np.testing.assert_allclose(lower_matmul(M, Q), np.tril(M) @ Q, atol=1e-9)
    for found, expected in zip(lower_and_whole(M, Q), (np.tril(M) @ Q, M @ Q), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    symmetric = M + M.T
    np.testing.assert_allclose(quadratic_form(symmetric, Q), (Q * (symmetric @ Q)).sum(0), atol=1e-9)


@pytest.mark.parametrize("n", [5, 259])  # whole, and by panels
def test_symmetric_products(x64, rng, n):
    x, total = jnp.asarray(rng.normal(size=(7, n))), jnp.zeros((n, n))
    lower = add_gram(add_gram(total, x[:3]), x[3:])
    np.testing.assert_allclose(mirrored(lower), x.T @ x, atol=1e-12)


def test_mirrored_compiles_at_powers_of_two():
    """XLA's CPU compiler takes minutes for some forms of it at these sizes."""
    shape = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    assert jax.jit(mirrored).lower(shape).compile().out_tree.num_leaves == 1
