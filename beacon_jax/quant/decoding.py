"""Rounding in order, each error spread over the weights still to come: GPTQ's recursion, or Babai's nearest plane.

The published recursion (arXiv 2210.17323) updates all later weights after each one with a row of the Cholesky factor of
H⁻¹. The same numbers come from one triangular factor R of H = RᵀR (R lower), without an inverse: when coordinate t is
rounded its weight has become

    w′_t = w_t + Σ_{j<t} (R_tj / R_tt) (w_j − ŵ_j),

a product with a fixed strictly lower matrix, which is what `sweep.blocked_pass` does fast. The squared error of the
result is a sum over the coordinates, ‖R(w − ŵ)‖² = Σ R_tt² (w′_t − ŵ_t)².
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.sweep import Rule, blocked_pass, pad_rows, pad_square
from beacon_jax.quant.triangular import lower_matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    """A positive definite matrix H, factored in an order of the coordinates.

    Fields:
      order: (N,) int, the coordinate that is rounded at each step.
      feedback: (N, N) strictly lower, R_tj / R_tt, in this order.
      weight: (N,) R_tt², what the error of each step counts.
      ridge: a scalar, what was added to the diagonal of H before.
    """

    order: Int[Array, " N"]
    feedback: Float[Array, "N N"]
    weight: Float[Array, " N"]
    ridge: Float[Array, ""]

    @classmethod
    def of(cls, H: Float[Array, "N N"], order: Int[Array, " N"], damping: Float[Array, ""] | float) -> "Decoder":
        """Factors H (N, N) plus `damping` times the mean of its diagonal (plus it where H is zero: any ridge will do).

        Not finite where that is not positive definite in its dtype.
        """
        ridge = ridge_of(H, damping)
        H = (H + ridge * jnp.eye(H.shape[0], dtype=H.dtype))[order][:, order]
        R = jnp.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1].T
        diagonal = jnp.diagonal(R)
        return cls(order, jnp.tril(R / diagonal[:, None], -1), jnp.square(diagonal), ridge)

    def in_order(self, W: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """W + feedback W for the rows W (N, C), put into the order: what is rounded if nothing was rounded before."""
        W = W[self.order]
        return W + lower_matmul(self.feedback, W)

    def back(self, q: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """Rows in the decoder's order, put into that of the coordinates."""
        return jnp.zeros_like(q).at[self.order].set(q)


def descending(diagonal: Float[Array, " N"]) -> Int[Array, " N"]:
    """(N,) coordinates in descending order of diag(H), GPTQ's act_order."""
    return jnp.argsort(-diagonal, stable=True)


def ridge_of(H: Float[Array, "N N"], damping: Float[Array, ""] | float) -> Float[Array, ""]:
    """`damping` times the mean of diag(H), or itself where H is zero."""
    mean = jnp.diagonal(H).mean()
    return damping * jnp.where(mean > 0, mean, 1)


def decode(
    decoder: Decoder,
    levels: Levels,
    W: Float[Array, "N C"],
    s: Float[Array, " C"],
    z: Float[Array, " C"] | None = None,
    *,
    block_size: int,
    block: str = "xla",
) -> tuple[Float[Array, "N C"], Float[Array, " C"]]:
    """Rounds the columns of W (N, C) to levels q, Ŵ = s q + z.

    Args:
      decoder: of H.
      levels: the alphabet.
      W: (N, C) weights.
      s: (C,) scales, of either sign, none 0.
      z: (C,) offsets, None for none.
      block_size: coordinates per block; any that is at least 1.
      block: "xla" or "pallas", as for `sweep.blocked_pass`.

    Returns:
      q (N, C) and (w − ŵ)ᵀH(w − ŵ), (C,).
    """
    N = W.shape[0]
    target = decoder.in_order(W) / s[None, :]
    if z is not None:
        target = target - (z / s)[None, :] * (1 + decoder.feedback.sum(1))[:, None]
    rows, weight = pad_rows((target, decoder.weight), block_size)
    q, error = blocked_pass(
        Rule(_choose, _update),
        (pad_square(decoder.feedback, block_size),),
        levels,
        weight,
        rows,
        jnp.zeros_like(rows),
        jnp.zeros_like(s),
        block_size=block_size,
        block=block,
        codes=levels.exact,
        lower=True,
    )
    return decoder.back(q[:N]), jnp.square(s) * error


def _choose(levels, _weight, target, products, _q, _error):
    return levels.nearest(target - products[0])


def _update(_levels, weight, target, products, _old, q, error):
    return error + weight * jnp.square(target - products[0] - q)
