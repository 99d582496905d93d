"""When float32 is not enough for a layer, and double precision instead.

Where the inputs' mean is ρ times their spread, all of X̃'s columns are parallel but for a part of 1/ρ. What decides
between two levels, h c − a d in the notation of `methods/beacon.py`, is then a difference of terms that agree but for
1/ρ² of their size, and so are errors and cosines computed from Gram matrices that hold the mean's part. Differences
below eps^0.8 of their terms count as rounding (`tie_tolerance`). For these to be at most 1 % of what is left after the
cancellation, ρ² must not exceed 0.01 / eps^0.8: ρ ≤ 58 in float32, ρ ≤ 1.8e5 in float64.

The statistics keep the means apart (see gram.py), so they are exact enough as float32 sums at any ρ; only what is
computed from them has to be in float64, to which they are cast before the mean's part is added.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_SHARE = 0.01  # of what the cancellation leaves, that rounding may take


def tie_tolerance(dtype) -> float:
    """Relative difference up to which two numbers of a solver are equal: eps^0.8."""
    return float(jnp.finfo(dtype).eps) ** 0.8


def largest_mean_over_spread(dtype) -> float:
    """The ρ up to which this dtype is enough."""
    return (LARGEST_SHARE / tie_tolerance(dtype)) ** 0.5


def working_dtype(dtype, mean_over_spread: float | None) -> np.dtype:
    """What to compute in from statistics of this dtype and ρ: float64 where the dtype is not enough.

    The dtype itself where ρ is None, that is, not known because the caller is being traced (jit, vmap).
    """
    enough = mean_over_spread is None or mean_over_spread <= largest_mean_over_spread(dtype)
    return np.dtype(dtype if enough else np.float64)


def in_dtype(dtype) -> contextlib.AbstractContextManager:
    """Context in which arrays of this dtype can be made and computed with, whatever JAX is set to."""
    return jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext()
