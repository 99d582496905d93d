"""Products of triangular and symmetric matrices, of which half is enough."""

import functools
import itertools

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.products import large_matmul, matmul

STRIPES = 4  # pieces of a triangular product, each as long as what is not zero
# Inputs from which a symmetric product is made in pieces. Not on a TPU, whose compiler takes four minutes in place of
# 40 seconds for the batches of a layer of 3,072 inputs, more than the run then saves.
_WIDE = {"cpu": 256, "tpu": 2**30, "others": 2048}


def lower_matmul(M: Float[Array, "N N"], Q: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """tril(M) @ Q for (N, N) and (N, C), on a CPU in less time than the whole product."""
    return lax.platform_dependent(jnp.tril(M), Q, cpu=_in_stripes, default=large_matmul)


def lower_and_whole(M: Float[Array, "N N"], Q: Float[Array, "N C"]) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
    """tril(M) @ Q and M @ Q for (N, N) and (N, C), on a CPU in little more time than the second."""

    def both(M, Q):
        return large_matmul(jnp.tril(M), Q), large_matmul(M, Q)

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


def _stripes(N, least=_WIDE["cpu"]):
    return list(itertools.pairwise([N * i // STRIPES for i in range(STRIPES + 1)] if N >= least else [0, N]))


def quadratic_form(M: Float[Array, "N N"], Q: Float[Array, "N C"]) -> Float[Array, " C"]:
    """(C,) values qᵀMq for the columns q of Q, M symmetric; of half of M on a CPU, as `lower_matmul`."""
    return lax.platform_dependent(M, Q, cpu=_form_of_half, default=lambda M, Q: (Q * large_matmul(M, Q)).sum(0))


def _form_of_half(M, Q):
    return (Q * (2 * _in_stripes(jnp.tril(M), Q) - jnp.diagonal(M)[:, None] * Q)).sum(0)


def add_gram(total: Float[Array, "N N"], x: Float[Array, "m N"]) -> Float[Array, "N N"]:
    """total + xᵀx below the diagonal and on it, for (N, N) and (m, N); what is above is left as it may be.

    Panel of columns by panel, in 5/8 of the operations of the whole product; see `mirrored`.
    """

    def add(least, total, x):
        panels = [(start, x[:, start:stop]) for start, stop in _stripes(x.shape[1], least)]
        for i, (row, a) in enumerate(panels):
            for column, b in panels[: i + 1]:
                total = total.at[row : row + a.shape[1], column : column + b.shape[1]].add(matmul(a.T, b))
        return total

    cpu, tpu, others = (functools.partial(add, _WIDE[name]) for name in ("cpu", "tpu", "others"))
    return lax.platform_dependent(total, x, cpu=cpu, tpu=tpu, default=others)


def mirrored(M: Float[AnyArray, "*groups N N"]) -> Float[Array, "*groups N N"]:
    """The symmetric matrices (…, N, N) of which what is below the diagonal and on it is given."""
    # A choice between M and its transpose takes XLA's CPU compiler minutes for 2,048 and 4,096 rows.
    return jnp.tril(M) + jnp.tril(M, -1).mT
