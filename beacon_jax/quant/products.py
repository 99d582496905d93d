"""Matrix products in true float32 (float64) on every backend, and those of triangular and symmetric matrices."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

TPU_ROWS = 128
STRIPES = 4  # pieces of a triangular product, each as long as what is not zero


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in true float32 (float64) on every backend.

    TF32 and bfloat16 products, the default on GPU and TPU, lose the small eigenvalues that the solvers live on.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def square_matmul(M: jax.Array, Q: jax.Array) -> jax.Array:
    """M @ Q for (N, N) and (N, C), on a TPU a few rows of M at a time.

    Where all of it fits on chip, a TPU's compiler writes the product out, which takes it 10 seconds at N = C = 768.
    """
    return lax.platform_dependent(M, Q, tpu=_row_by_row, default=matmul)


def _row_by_row(M, Q):
    N = M.shape[0]
    stripes = jnp.pad(M, [(0, -N % TPU_ROWS), (0, 0)]).reshape(-1, TPU_ROWS, N)
    return lax.map(lambda stripe: matmul(stripe, Q), stripes).reshape(-1, Q.shape[1])[:N]


def lower_matmul(M: jax.Array, Q: jax.Array) -> jax.Array:
    """tril(M) @ Q for (N, N) and (N, C), on a CPU in less time than the whole product."""
    return lax.platform_dependent(jnp.tril(M), Q, cpu=_in_stripes, tpu=_row_by_row, default=matmul)


def lower_and_whole(M: jax.Array, Q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """tril(M) @ Q and M @ Q for (N, N) and (N, C), on a CPU in little more time than the second."""

    def both(M, Q):
        return matmul(jnp.tril(M), Q), square_matmul(M, Q)

    return lax.platform_dependent(M, Q, cpu=_both_in_stripes, default=both)


def _both_in_stripes(M, Q):
    lower, whole = [], []
    for i, j in _stripes(M.shape[0]):
        before, corner, own = matmul(M[i:j, :i], Q[:i]), M[i:j, i:j], Q[i:j]
        lower.append(before + matmul(jnp.tril(corner), own))
        whole.append(before + matmul(M[i:j, i:], Q[i:]))
    return jnp.concatenate(lower), jnp.concatenate(whole)


def _in_stripes(M, Q):
    return jnp.concatenate([matmul(M[i:j, :j], Q[:j]) for i, j in _stripes(M.shape[0])])


def _stripes(N):
    return list(itertools.pairwise([N * i // STRIPES for i in range(STRIPES + 1)] if N >= 256 else [0, N]))


def quadratic_form(M: jax.Array, Q: jax.Array) -> jax.Array:
    """(C,) values qᵀMq for the columns q of Q, M symmetric; of half of M on a CPU, as `lower_matmul`."""
    return lax.platform_dependent(M, Q, cpu=_form_of_half, default=lambda M, Q: (Q * square_matmul(M, Q)).sum(0))


def _form_of_half(M, Q):
    return (Q * (2 * _in_stripes(jnp.tril(M), Q) - jnp.diagonal(M)[:, None] * Q)).sum(0)
