"""When float32 is not enough for a layer, and double precision instead.

Where the mean of a channel's output Xw is ρ times its spread, Xw, the running sum and the columns of X̃ are parallel but
for a part of 1/ρ. What decides between two levels, h c − a d in the notation of `methods/beacon.py`, is then a
difference of terms that agree but for 1/ρ² of their size. Differences below eps^0.8 of their terms count as rounding
(`tie_tolerance`). For these to be at most 1 % of what is left after the cancellation, ρ² must not exceed
0.01 / eps^0.8: ρ ≤ 58 in float32, ρ ≤ 1.8e5 in float64. Partial sums of outputs count as well, down to single columns
of X̃, so the ratio of the inputs is looked at beside those of the outputs.

The statistics keep the means apart (see gram.py), so they are exact enough as float32 sums at any ρ; only what is
computed from them has to be in float64, to which they are cast before the mean's part is added.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.products import matmul

LARGEST_SHARE = 0.01  # of what the cancellation leaves, that rounding may take


def tie_tolerance(dtype) -> float:
    """Relative difference up to which two numbers of a solver are equal: eps^0.8."""
    return float(jnp.finfo(dtype).eps) ** 0.8


def largest_mean_over_spread(dtype) -> float:
    """The ρ up to which this dtype is enough."""
    return (LARGEST_SHARE / tie_tolerance(dtype)) ** 0.5


def mean_over_spread(stats: GramStats, kernel: Float[Array, "*groups N C"] | None = None) -> Float[Array, ""]:
    """ρ, a scalar: of the inputs and, with a kernel (N, C), of the channels' outputs the largest; of groups likewise.

    Of the inputs: root mean square of the means over that of the standard deviations. Of an output: |μᵀw| over
    √Σ(w_t σ_t)², the spread that it has with uncorrelated inputs. Both for X and for X̃. Infinite for what never
    changes and is not zero, 0 for what is zero.
    """
    streams = [stats.x_tilde] if stats.x is None else [stats.x_tilde, stats.x]
    ratios = []
    for stream in streams:
        mean = stream.mean(stats.count)
        variance = (
            jnp.maximum(stream.variance_sums(stats.count), 0) / jnp.where(stats.count > 0, stats.count, 1)[..., None]
        )
        ratios.append(_ratio(jnp.square(mean).sum(-1), variance.sum(-1)))
        if kernel is not None:
            output = matmul(mean[..., None, :], kernel)
            ratios.append(_ratio(jnp.square(output), matmul(variance[..., None, :], jnp.square(kernel))))
    return jnp.sqrt(jnp.stack([ratio.max() for ratio in ratios]).max())


def working_dtype(dtype, ratio: jax.Array | float | None) -> np.dtype:
    """What to compute in from statistics of this dtype and this ρ: float64 where the dtype is not enough.

    The dtype itself where ρ is None or has no value yet because the caller is being traced (jit, vmap).
    """
    if ratio is None or isinstance(ratio, jax.core.Tracer) or float(ratio) <= largest_mean_over_spread(dtype):
        return np.dtype(dtype)
    return np.dtype(np.float64)


def in_dtype(dtype) -> contextlib.AbstractContextManager:
    """Context in which arrays of this dtype can be made and computed with, whatever JAX is set to."""
    return jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext()


def _ratio(square, variance):
    return jnp.where(square > 0, square / variance, 0)
