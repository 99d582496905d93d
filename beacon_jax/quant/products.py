"""Matrix products in true float32 (float64) on every backend, and those of triangular and symmetric matrices."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

STRIPES = 4  # pieces of a triangular product, each as long as what is not zero
_WIDE = {"cpu": 256, "others": 2048}  # inputs from which a symmetric product is made in pieces


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


def add_gram(total: jax.Array, x: jax.Array) -> jax.Array:
    """total + xᵀx below the diagonal and on it, for (N, N) and (m, N); what is above is left as it may be.

    Panel of columns by panel, in 5/8 of the operations of the whole product; see `mirrored`.
    """

    def add(least, total, x):
        N = x.shape[1]
        edges = [N * i // STRIPES for i in range(STRIPES + 1)] if N >= least else [0, N]
        panels = [(start, x[:, start:stop]) for start, stop in itertools.pairwise(edges)]
        for i, (row, a) in enumerate(panels):
            for column, b in panels[: i + 1]:
                total = total.at[row : row + a.shape[1], column : column + b.shape[1]].add(matmul(a.T, b))
        return total

    cpu, others = (functools.partial(add, _WIDE[name]) for name in ("cpu", "others"))
    return lax.platform_dependent(total, x, cpu=cpu, default=others)


def mirrored(M: jax.Array) -> jax.Array:
    """The symmetric matrices (…, N, N) of which what is below the diagonal and on it is given."""
    return jnp.where(jnp.tri(M.shape[-1], dtype=bool), M, M.mT)
