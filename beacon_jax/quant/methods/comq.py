"""COMQ (Zhang et al., arXiv 2403.07134): coordinate descent on ‖Xw − s·Xq‖² over integer codes and the scale in turn.

From Gram statistics: with v = Hq and h = Gw the best code at coordinate t, the others fixed, is the level nearest to
(h_t / s − (v_t − q_t H_tt)) / H_tt, and for fixed codes the best scale is s = ⟨h, q⟩ / ⟨q, v⟩.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax

from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.methods.block_options import BlockOptions
from beacon_jax.quant.methods.options import option
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.products import matmul
from beacon_jax.quant.scales import SCALES, scale_and_offset
from beacon_jax.quant.sweep import Rule, blocked_pass, pad_rows, pad_square, room_for
from beacon_jax.quant.triangular import quadratic_form

ORDERS = ("natural", "greedy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class COMQOptions(BlockOptions):
    """Options of COMQ. The published method uses statistics of one stream; with both it fits ‖Xw − s·X̃q‖²."""

    sweeps: int = option(4, "passes over the codes, a scale update after each", unit="passes", at_least=1)
    scale: str = option("absmax", "the first scale, as for rtn", choices=SCALES)
    symmetric: bool = option(True, "False for a zero point, fixed by the first grid; the codes then fit w − z")
    order: str = option(
        "greedy", "natural, or greedy: descending ‖X̃_t‖ ‖W_t‖, one order for all channels", choices=ORDERS
    )


def solve(problem: Problem, options: COMQOptions) -> Found:
    """COMQ from Gram statistics: passes over the codes at fixed scale, a closed-form scale update after each.

    The codes start as the unquantized w/s, so that the first pass compensates each rounding with what follows. Info:
    objective (sweeps, C), ‖Xw − X̃ŵ‖² after each pass and scale update.
    """
    levels, W = problem.levels, problem.W
    s, z = scale_and_offset(W, levels, options.scale, options.symmetric, problem.live)
    codes, s, objective = _solve(
        W,
        problem.stats,
        levels,
        s,
        z,
        problem.kernel_unit * problem.input_unit,
        options.sweeps,
        room=room_for(options.sweeps),
        greedy=options.order == "greedy",
        **options.blocks(W),
    )
    return Found(
        codes,
        s,
        None if options.symmetric else z,
        info={"objective": objective[: options.sweeps]},
    )


@jit_solver("room", "greedy", "block_size", "block")
def _solve(W, stats, levels, s, z, unit, sweeps, *, room, greedy, block_size, block):
    N = W.shape[0]
    H, G, F = stats.H, stats.G, stats.F
    diagonal = jnp.diagonal(H)
    h = matmul(G, W) - H.sum(1)[:, None] * z[None, :]  # ⟨X̃_t, Xw − z X̃1⟩
    # ‖Xw − z X̃1‖², the part of the objective that no code changes
    constant = quadratic_form(F, W) - 2 * z * matmul(G.sum(0), W) + z * z * H.sum()
    order = jnp.argsort(-diagonal * jnp.square(W).sum(1), stable=True) if greedy else jnp.arange(N)
    start = (W - z[None, :]) / s[None, :]
    H, h, start, diagonal = H[order][:, order], h[order], start[order], diagonal[order]
    M, (h_rows, start, diagonal) = pad_square(H, block_size), pad_rows((h, start, diagonal), block_size)

    def sweep(k, carry):
        q, s, objective = carry
        q, _ = blocked_pass(Rule(_choose), (M,), levels, diagonal, h_rows, q, s, block_size=block_size, block=block)
        cross, norm = (h_rows * q).sum(0), quadratic_form(M, q)
        s = jnp.where((norm > 0) & (cross != 0), cross / jnp.where(norm > 0, norm, 1), s)
        return q, s, objective.at[k].set(constant - 2 * s * cross + s * s * norm)

    q, s, objective = lax.fori_loop(0, sweeps, sweep, (start, s, jnp.zeros((room, *s.shape), s.dtype)))
    return levels.index(jnp.zeros_like(W).at[order].set(q[:N])), s, objective * jnp.square(unit)


def _choose(levels, H_tt, h, products, q, s):
    d = products[0] - q * H_tt
    p = levels.nearest((h / s - d) / jnp.where(H_tt > 0, H_tt, 1))
    return jnp.where(H_tt > 0, p, levels.smallest)
