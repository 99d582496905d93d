"""COMQ (Zhang et al., arXiv 2403.07134): coordinate descent on ‖Xw − s·Xq‖² over integer codes and the scale in turn.

From Gram statistics: with v = Hq and h = Gw the best code at coordinate t, the others fixed, is the level nearest to
(h_t / s − (v_t − q_t H_tt)) / H_tt, and for fixed codes the best scale is s = ⟨h, q⟩ / ⟨q, v⟩.
"""

import jax
import jax.numpy as jnp
from jax import lax

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.checks import check_count, check_problem
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.scales import scale_and_offset
from beacon_jax.quant.sweep import blocked_pass, even_block, matmul, pad_rows, pad_square, quadratic_form

ORDERS = ("natural", "greedy")


def quantize(
    kernel: jax.Array,
    stats: GramStats,
    alphabet: jax.Array,
    *,
    sweeps: int = 4,
    scale: str = "absmax",
    symmetric: bool = True,
    order: str = "greedy",
    block_size: int = 64,
) -> QuantizedMatrix:
    """COMQ from Gram statistics: passes over the codes at fixed scale, a closed-form scale update after each.

    The codes start as the unquantized w/s, so that the first pass compensates each rounding with what follows.

    Args:
      kernel: (N, C) float.
      stats: Gram statistics of width N. The published method uses one stream; with both it fits ‖Xw − s·X̃q‖².
      alphabet: (K,) ascending levels.
      sweeps: passes, at least 1.
      scale: the first scale: "absmax" or "lsq".
      symmetric: True for scale · levels. False for a zero point, fixed by the first grid; the codes then fit w − z.
      order: "natural", or "greedy": descending ‖X̃_t‖ ‖W_t‖, one order for all channels of the layer.
      block_size: coordinates per block, at most. Speed only, not the result.

    Returns:
      QuantizedMatrix with info: objective (sweeps, C), ‖Xw − X̃ŵ‖² after each pass and scale update.

    Raises:
      ValueError: as `check_problem`; unknown scale or order; sweeps or block_size below 1.
    """
    alphabet = check_problem(kernel, stats, alphabet)
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; expected one of {', '.join(ORDERS)}")
    check_count("sweeps", sweeps, 1)
    check_count("block_size", block_size, 1)
    block_size = even_block(kernel.shape[0], block_size)
    dtype = stats.H.dtype
    levels = Levels.of(alphabet, dtype)
    kernel = jnp.asarray(kernel, dtype)
    s, z = scale_and_offset(kernel, levels, scale, symmetric)
    codes, s, objective = _solve(
        kernel, stats, levels, s, z, sweeps=sweeps, greedy=order == "greedy", block_size=block_size
    )
    info = {"objective": objective}
    return QuantizedMatrix(codes, jnp.asarray(alphabet, dtype), s, None if symmetric else z, info)


@jit_solver("sweeps", "greedy", "block_size")
def _solve(W, stats, levels, s, z, *, sweeps, greedy, block_size):
    N = W.shape[0]
    H, diagonal = stats.H, jnp.diagonal(stats.H)
    h = matmul(stats.G, W) - H.sum(1)[:, None] * z[None, :]  # ⟨X̃_t, Xw − z X̃1⟩
    # ‖Xw − z X̃1‖², the part of the objective that no code changes
    constant = quadratic_form(stats.F, W) - 2 * z * matmul(stats.G.sum(0), W) + z * z * H.sum()
    order = jnp.argsort(-diagonal * jnp.square(W).sum(1), stable=True) if greedy else jnp.arange(N)
    start = (W - z[None, :]) / s[None, :]
    H, h, start, diagonal = H[order][:, order], h[order], start[order], diagonal[order]
    M, (h_rows, start, shared) = pad_square(H, block_size), pad_rows((h, start, diagonal), block_size)

    def choose(H_tt, h, products, q, s):
        d = products[0] - q * H_tt
        p = levels.nearest((h / s - d) / jnp.where(H_tt > 0, H_tt, 1))
        return jnp.where(H_tt > 0, p, levels.smallest)

    def sweep(carry, _):
        q, s = carry
        q, _ = blocked_pass(choose, (M,), shared, h_rows, q, s, block_size=block_size)
        cross, norm = (h_rows * q).sum(0), quadratic_form(M, q)
        s = jnp.where((norm > 0) & (cross != 0), cross / jnp.where(norm > 0, norm, 1), s)
        return (q, s), constant - 2 * s * cross + s * s * norm

    (q, s), objective = lax.scan(sweep, (start, s), length=sweeps)
    return levels.index(jnp.zeros_like(W).at[order].set(q[:N])), s, objective
