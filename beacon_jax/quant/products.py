"""Matrix products in true float32 (float64) on every backend, and those of triangular and symmetric matrices."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

STRIPES = 4  # pieces of a triangular product, each as long as what is not zero


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in true float32 (float64) on every backend.

    TF32 and bfloat16 products, the default on GPU and TPU, lose the small eigenvalues that the solvers live on.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def lower_matmul(M: jax.Array, Q: jax.Array) -> jax.Array:
    """tril(M) @ Q for (N, N) and (N, C), in less time than the whole product."""
    M, N = jnp.tril(M), M.shape[0]
    edges = [N * i // STRIPES for i in range(STRIPES + 1)] if N >= 256 else [0, N]
    return jnp.concatenate([matmul(M[i:j, :j], Q[:j]) for i, j in itertools.pairwise(edges)])


def quadratic_form(M: jax.Array, Q: jax.Array) -> jax.Array:
    """(C,) values qᵀMq for the columns q of Q, M symmetric."""
    return (Q * (2 * lower_matmul(M, Q) - jnp.diagonal(M)[:, None] * Q)).sum(0)
