"""GPTQ (Frantar et al., arXiv 2210.17323): rounding in order, each error spread over the weights still to come.

The published recursion updates all later weights after each one with a row of the Cholesky factor of H⁻¹. The same
numbers come from one triangular factor R of H = RᵀR (R lower), without an inverse: when coordinate t is rounded its
weight has become

    w′_t = w_t + Σ_{j<t} (R_tj / R_tt) (w_j − ŵ_j),

a product with a fixed strictly lower matrix, which is what `sweep.blocked_pass` does fast.
"""

import dataclasses

import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.methods import beacon
from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.products import lower_matmul, matmul
from beacon_jax.quant.scales import SCALES, nonzero, scale_and_offset
from beacon_jax.quant.sweep import Rule, blocked_pass, even_block, pad_rows, pad_square


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTQOptions(Options):
    """Options of GPTQ. Raises ValueError also for Beacon's scale with a zero point."""

    scale: str = option(
        "absmax",
        "absmax; lsq: least squared weight error; beacon: the scale that Beacon finds (the paper's GPTQ*)",
        choices=(*SCALES, "beacon"),
    )
    symmetric: bool = option(True, "True for scale · levels, False for a min/max grid with a zero point (an offset)")
    act_order: bool = option(False, "round in descending order of diag(H) instead of the natural order")
    damping: float = option(0.01, "λ, added to H's diagonal", unit="mean of diag(H)", above=0)
    block_size: int = option(64, "coordinates per block, at most", unit="inputs", at_least=1, decides_result=False)

    def __post_init__(self):
        super().__post_init__()
        if self.scale == "beacon" and not self.symmetric:
            raise ValueError("scale='beacon' has no zero point; use symmetric=True")


def solve(problem: Problem, options: GPTQOptions) -> Found:
    """GPTQ from Gram statistics, on a grid fixed beforehand.

    With statistics of one stream this is the published method. With those of both (H ≠ G) it minimises
    ‖XW − X̃Ŵ‖² all the same, by starting from the least-squares weights W + (H + λI)⁻¹(G − H)W in place of W. It is
    unsound where H + λI has no Cholesky factor in the problem's dtype.
    """
    levels, W = problem.levels, problem.W
    if options.scale == "beacon":
        s = nonzero(beacon.solve(problem, beacon.BeaconOptions()).scale)
        z = jnp.zeros_like(s)
    else:
        s, z = scale_and_offset(W, levels, options.scale, options.symmetric)
    codes, factored = _solve(
        W,
        problem.stats,
        levels,
        s,
        z,
        options.damping,
        act_order=options.act_order,
        block_size=even_block(W.shape[0], options.block_size),
    )
    return Found(codes, s, None if options.symmetric else z, sound=factored)


@jit_solver("act_order", "block_size")
def _solve(W, stats, levels, s, z, damping, *, act_order, block_size):
    N = W.shape[0]
    H = stats.H
    diagonal = jnp.diagonal(H)
    # All inputs dead: any positive ridge will do.
    ridge = damping * jnp.where(diagonal.sum() > 0, diagonal.mean(), 1)
    H = H + ridge * jnp.eye(N, dtype=W.dtype)

    if not stats.one_stream:
        W = W + cho_solve((jnp.linalg.cholesky(H), True), _change(stats, W))
    order = jnp.argsort(-diagonal, stable=True) if act_order else jnp.arange(N)
    H, W = H[order][:, order], W[order]
    R = jnp.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1].T
    feedback = jnp.tril(R / jnp.diagonal(R)[:, None], -1)
    # w′_t = target_t − (feedback Ŵ)_t, and Ŵ = s q + z
    target = W + lower_matmul(feedback, W) - feedback.sum(1)[:, None] * z[None, :]
    rows, M = pad_rows(target, block_size), pad_square(feedback, block_size)
    q, _ = blocked_pass(
        Rule(_choose), (M,), levels, (), rows, jnp.zeros_like(rows), (s, z), block_size=block_size, lower=True
    )
    factored = jnp.isfinite(target).all() & jnp.isfinite(feedback).all()
    return levels.index(jnp.zeros_like(W).at[order].set(q[:N])), factored


def _choose(levels, _shared, target_t, products, _q, state):
    s, z = state
    return levels.nearest((target_t - s * products[0] - z) / s)


def _change(stats, W):
    """X̃ᵀ(X − X̃)W, the means' part apart: it cancels where the streams have the same."""
    S, C, _ = stats.centred
    mean = stats.count * stats.means()[1]
    return matmul(C - S, W) + mean[:, None] * matmul(stats.mean_change, W)[None, :]
