"""Round to nearest: the baseline that looks at the weights alone."""

import jax
import jax.numpy as jnp

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.checks import check_problem
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.scales import scale_and_offset


def quantize(
    kernel: jax.Array,
    stats: GramStats,
    alphabet: jax.Array,
    *,
    scale: str = "absmax",
    symmetric: bool = True,
) -> QuantizedMatrix:
    """Rounds every weight to the nearest level; the statistics are checked but not used.

    Args:
      kernel: (N, C) float.
      stats: Gram statistics of width N.
      alphabet: (K,) ascending levels.
      scale: "absmax" (the whole range of the weights) or "lsq" (least squared weight error).
      symmetric: True for scale · levels, False for min/max quantization with a zero point (an offset).

    Raises:
      ValueError: as `check_problem`, or an unknown scale.
    """
    alphabet = check_problem(kernel, stats, alphabet)
    dtype = stats.H.dtype
    codes, s, offset = _round(jnp.asarray(kernel, dtype), Levels.of(alphabet, dtype), scale=scale, symmetric=symmetric)
    return QuantizedMatrix(codes, jnp.asarray(alphabet, dtype), s, None if symmetric else offset)


@jit_solver("scale", "symmetric")
def _round(W, levels, *, scale, symmetric):
    s, z = scale_and_offset(W, levels, scale, symmetric)
    return levels.index(levels.nearest((W - z[None, :]) / s[None, :])), s, z
