"""GPTQ (Frantar et al., arXiv 2210.17323): rounding in order, each error spread over the weights still to come."""

import dataclasses

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.decoding import Decoder, decode, descending, ridge_of
from beacon_jax.quant.methods import beacon
from beacon_jax.quant.methods.block_options import BlockOptions
from beacon_jax.quant.methods.options import option
from beacon_jax.quant.objective import bias_change
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.products import matmul
from beacon_jax.quant.scales import SCALES, nonzero, scale_and_offset


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTQOptions(BlockOptions):
    """Options of GPTQ. Raises ValueError also for Beacon's scale with a zero point."""

    scale: str = option(
        "absmax",
        "absmax; lsq: least squared weight error; beacon: the scale that Beacon finds (the paper's GPTQ*)",
        choices=(*SCALES, "beacon"),
    )
    symmetric: bool = option(True, "True for scale · levels, False for a min/max grid with a zero point (an offset)")
    act_order: bool = option(False, "round in descending order of diag(H) instead of the natural order")
    bias: bool = option(False, "let the layer's bias change, where it has one, and round for what varies alone")
    damping: float = option(0.01, "λ, added to H's diagonal", unit="mean of diag(H)", above=0)

    def __post_init__(self):
        super().__post_init__()
        if self.scale == "beacon" and not self.symmetric:
            raise ValueError("scale='beacon' has no zero point; use symmetric=True")

    def frees_bias(self, has_bias: bool) -> bool:
        """Whether the bias is free: it is there, and was asked for."""
        return self.bias and has_bias


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
        s, z = scale_and_offset(W, levels, options.scale, options.symmetric, problem.live)
    codes, change, factored = _solve(
        W,
        problem.stats,
        levels,
        s,
        z,
        options.damping,
        act_order=options.act_order,
        bias=options.frees_bias(problem.has_bias),
        **options.blocks(W),
    )
    return Found(codes, s, None if options.symmetric else z, change, sound=factored)


@jit_solver("act_order", "bias", "block_size", "block")
def _solve(W, stats, levels, s, z, damping, *, act_order, bias, block_size, block):
    H, target = stats.centred[0] if bias else stats.H, W
    if not stats.one_stream:
        regular = H + ridge_of(H, damping) * jnp.eye(W.shape[0], dtype=W.dtype)
        target = W + cho_solve(cho_factor(regular, lower=True), _change(stats, W, bias))
    order = descending(jnp.diagonal(H)) if act_order else jnp.arange(W.shape[0])
    decoder = Decoder.of(H, order, damping)
    q, error = decode(decoder, levels, target, s, z, block_size=block_size, block=block)
    change = bias_change(stats, W, s[None, :] * q + z[None, :]) if bias else None
    return levels.index(q), change, jnp.isfinite(error).all() & jnp.isfinite(decoder.feedback).all()


def _change(stats, W, centred):
    """X̃ᵀ(X − X̃)W, the means' part apart, where it counts: it cancels where the streams have the same."""
    S, C, _ = stats.centred
    change = matmul(C - S, W)
    if centred:
        return change
    return change + (stats.count * stats.means()[1])[:, None] * matmul(stats.mean_change, W)[None, :]
