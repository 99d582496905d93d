"""GPTQ (Frantar et al., arXiv 2210.17323): rounding in order, each error spread over the weights still to come.

The published recursion updates all later weights after each one with a row of the Cholesky factor of H⁻¹. The same
numbers come from one triangular factor R of H = RᵀR (R lower), without an inverse: when coordinate t is rounded its
weight has become

    w′_t = w_t + Σ_{j<t} (R_tj / R_tt) (w_j − ŵ_j),

a product with a fixed strictly lower matrix, which is what `sweep.blocked_pass` does fast.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from beacon_jax.quant import beacon
from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.checks import check_count, check_problem
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.scales import SCALES, nonzero, scale_and_offset
from beacon_jax.quant.sweep import blocked_pass, even_block, lower_matmul, matmul, pad_rows, pad_square


def quantize(
    kernel: jax.Array,
    stats: GramStats,
    alphabet: jax.Array,
    *,
    scale: str = "absmax",
    symmetric: bool = True,
    act_order: bool = False,
    damping: float = 0.01,
    block_size: int = 64,
) -> QuantizedMatrix:
    """GPTQ from Gram statistics, on a grid fixed beforehand.

    With statistics of one stream this is the published method. With those of both (H ≠ G) it minimises
    ‖XW − X̃Ŵ‖² all the same, by starting from the least-squares weights W + (H + λI)⁻¹(G − H)W in place of W.

    Args:
      kernel: (N, C) float.
      stats: Gram statistics of width N.
      alphabet: (K,) ascending levels.
      scale: "absmax", "lsq" (least squared weight error), or "beacon": the scale that Beacon finds for the channel,
        the paper's GPTQ* (symmetric only).
      symmetric: True for scale · levels, False for a min/max grid with a zero point (an offset).
      act_order: round the coordinates in descending order of diag(H) instead of their natural order.
      damping: λ as a fraction of the mean of diag(H).
      block_size: coordinates per block, at most. Speed only, not the result.

    Raises:
      ValueError: as `check_problem`; unknown scale, or "beacon" with a zero point; damping not positive, or too small
        to factor H + λI; block_size below 1.
    """
    alphabet = check_problem(kernel, stats, alphabet)
    check_count("block_size", block_size, 1)
    block_size = even_block(kernel.shape[0], block_size)
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    if scale not in (*SCALES, "beacon"):
        raise ValueError(f"unknown scale {scale!r}; expected one of {', '.join(SCALES)}, beacon")
    if scale == "beacon" and not symmetric:
        raise ValueError("scale='beacon' has no zero point; use symmetric=True")
    dtype = stats.H.dtype
    kernel, levels = jnp.asarray(kernel, dtype), Levels.of(alphabet, dtype)
    if scale == "beacon":
        s = nonzero(beacon.quantize(kernel, stats, alphabet).scale)
        z = jnp.zeros_like(s)
    else:
        s, z = scale_and_offset(kernel, levels, scale, symmetric)
    codes, factored = _solve(kernel, stats, levels, s, z, damping, act_order=act_order, block_size=block_size)
    if not isinstance(factored, jax.core.Tracer) and not factored:
        raise ValueError(f"H + λI is not positive definite in {dtype}; damping={damping} is too small")
    return QuantizedMatrix(codes, jnp.asarray(alphabet, dtype), s, None if symmetric else z)


@jit_solver("act_order", "block_size")
def _solve(W, stats, levels, s, z, damping, *, act_order, block_size):
    N = W.shape[0]
    diagonal = jnp.diagonal(stats.H)
    # All inputs dead: any positive ridge will do.
    ridge = damping * jnp.where(diagonal.sum() > 0, diagonal.mean(), 1)
    H = stats.H + ridge * jnp.eye(N, dtype=W.dtype)

    if not stats.one_stream:
        W = W + cho_solve((jnp.linalg.cholesky(H), True), matmul(stats.G - stats.H, W))
    order = jnp.argsort(-diagonal, stable=True) if act_order else jnp.arange(N)
    H, W = H[order][:, order], W[order]
    R = jnp.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1].T
    feedback = jnp.tril(R / jnp.diagonal(R)[:, None], -1)
    # w′_t = target_t − (feedback Ŵ)_t, and Ŵ = s q + z
    target = W + lower_matmul(feedback, W) - feedback.sum(1)[:, None] * z[None, :]

    def choose(_, target_t, products, _q, state):
        s, z = state
        return levels.nearest((target_t - s * products[0] - z) / s)

    rows, M = pad_rows(target, block_size), pad_square(feedback, block_size)
    q, _ = blocked_pass(choose, (M,), (), rows, jnp.zeros_like(rows), (s, z), block_size=block_size, lower=True)
    factored = jnp.isfinite(target).all() & jnp.isfinite(feedback).all()
    return levels.index(jnp.zeros_like(W).at[order].set(q[:N])), factored
