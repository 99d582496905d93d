"""Per-channel scales (and offsets) fixed before rounding: what RTN, GPTQ and COMQ start from.

Beacon needs none of these; its tie rule uses `least_squares_scale` to decide the level of a channel's first code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from beacon_jax.quant.alphabets import Levels

FRACTIONS = 100
ROWS = 16
SCALES = ("absmax", "lsq")


def least_squares_scale(w: jax.Array, levels: Levels) -> jax.Array:
    """(C,) scale s of least Σ(w − s·nearest(w/s))² among 0.01, 0.02, … 1.00 times max|w|/max A, for w (N, C).

    Of equally good ones the smallest is taken.
    """
    return _best_fraction(w, levels, _full_scale(w, levels), lambda s: jnp.zeros_like(s))


def scale_and_offset(w: jax.Array, levels: Levels, scale: str, symmetric: bool) -> tuple[jax.Array, jax.Array]:
    """Scale and offset of every channel of w, for Ŵ = scale · levels + offset.

    Args:
      w: (N, C) kernel.
      levels: the alphabet.
      scale: "absmax" takes the whole range of the weights; "lsq" takes the best of 100 fractions of it, by the squared
        weight error of round-to-nearest.
      symmetric: True for max|w| → max A and offset 0. False for min/max quantization with a zero point: the channel's
        [min w, max w], or the fraction of it about its middle, is mapped to [min A, max A].

    Returns:
      scale (C,) > 0 and offset (C,).

    Raises:
      ValueError: unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; expected one of {', '.join(SCALES)}")
    if symmetric:
        full = _full_scale(w, levels)

        def offset(s):
            return jnp.zeros_like(s)
    else:
        low, high = w.min(0), w.max(0)
        full = nonzero((high - low) / (levels.last - levels.first))

        def offset(s):
            return (low + high) / 2 - s * (levels.first + levels.last) / 2

    s = _best_fraction(w, levels, full, offset) if scale == "lsq" else full
    return s, offset(s)


def nonzero(scale: jax.Array) -> jax.Array:
    """The scale, or next to nothing where it is 0 (a channel without range): its weights stay equal, and w/s finite."""
    return jnp.where(scale != 0, scale, jnp.sqrt(jnp.finfo(scale.dtype).tiny))


def _full_scale(w: jax.Array, levels: Levels) -> jax.Array:
    return nonzero(jnp.abs(w).max(0) / jnp.where(levels.last > 0, levels.last, levels.max_abs))


def _best_fraction(w: jax.Array, levels: Levels, full: jax.Array, offset: Callable) -> jax.Array:
    fractions = (jnp.arange(FRACTIONS, dtype=full.dtype) + 1) / FRACTIONS
    s = fractions[:, None] * full[None, :]  # (100, C)
    z = jax.vmap(offset)(s)
    if levels.table is None:  # count in steps of the alphabet from its first level
        unit, shift = s * levels.step, z / s / levels.step + levels.first / levels.step

        def nearest(x):  # of two equally near the even one, as the error is the same and the rounding cheaper
            return jnp.clip(jnp.round(x), 0, levels.count - 1)
    else:
        unit, shift, nearest = s, z / s, levels.nearest
    inverse = 1 / unit

    # Elementwise over all fractions, some rows at a time: XLA vectorizes that, and a sum over rows not as well.
    def add_rows(rows, error):
        for i in range(rows.shape[0]):
            x = rows[i][None, :] * inverse - shift
            error = error + jnp.square(x - nearest(x))
        return error

    whole = w.shape[0] // ROWS
    error = jnp.zeros_like(s)
    if whole:
        groups = w[: whole * ROWS].reshape(whole, ROWS, w.shape[1])
        error = lax.fori_loop(0, whole, lambda i, error: add_rows(groups[i], error), error)
    error = add_rows(w[whole * ROWS :], error) * jnp.square(unit)
    # Errors of zero, which rounding makes a little more than that, are equal.
    noise = float(jnp.finfo(w.dtype).eps) ** 1.5 * jnp.square(w).sum(0)
    return full * fractions[jnp.argmax(error <= (error.min(0) + noise)[None, :], axis=0)]
