"""Round to nearest: the baseline that looks at the weights alone."""

import dataclasses

from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.scales import SCALES, scale_and_offset


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTNOptions(Options):
    """Options of round to nearest."""

    scale: str = option("absmax", "absmax: the weights' whole range; lsq: least squared weight error", choices=SCALES)
    symmetric: bool = option(True, "True for scale · levels, False for a min/max grid with a zero point (an offset)")


def solve(problem: Problem, options: RTNOptions) -> Found:
    """Rounds every weight to the nearest level; of the statistics only which inputs are always zero is used."""
    codes, s, z = _round(problem.W, problem.live, problem.levels, scale=options.scale, symmetric=options.symmetric)
    return Found(codes, s, None if options.symmetric else z)


@jit_solver("scale", "symmetric")
def _round(W, live, levels, *, scale, symmetric):
    s, z = scale_and_offset(W, levels, scale, symmetric, live)
    return levels.index(levels.nearest((W - z[None, :]) / s[None, :])), s, z
