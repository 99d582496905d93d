"""Per-channel scales (and offsets) fixed before rounding: what RTN, GPTQ and COMQ start from.

Beacon needs none of these; its tie rule uses `least_squares_scale` to decide the level of a channel's first code.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from beacon_jax.quant.alphabets import Levels

FRACTIONS = 100
ROWS = 16
SCALES = ("absmax", "lsq")


def least_squares_scale(
    w: Float[Array, "N C"], levels: Levels, live: Bool[Array, " N"] | None = None
) -> Float[Array, " C"]:
    """(C,) scale s of least Σ(w − s·nearest(w/s))² among 0.01, 0.02, … 1.00 times max|w|/max A, for w (N, C).

    Of equally good ones the smallest is taken. live (N,) bool: the weights that count; None for all.
    """
    return _best_fraction(w, levels, _full_scale(w, levels, live), lambda s: jnp.zeros_like(s), live)


@functools.partial(jax.jit, static_argnames=("scale", "symmetric"))
def scale_and_offset(
    w: Float[Array, "N C"], levels: Levels, scale: str, symmetric: bool, live: Bool[Array, " N"] | None = None
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Scale and offset of every channel of w, for Ŵ = scale · levels + offset.

    Args:
      w: (N, C) kernel.
      levels: the alphabet.
      scale: "absmax" takes the whole range of the weights; "lsq" takes the best of 100 fractions of it, by the squared
        weight error of round-to-nearest.
      symmetric: True for max|w| → max A and offset 0. False for min/max quantization with a zero point: the channel's
        [min w, max w], or the fraction of it about its middle, is mapped to [min A, max A].
      live: (N,) bool, the weights that count: those of inputs that are not always zero. None for all.

    Returns:
      scale (C,) > 0 and offset (C,).

    Raises:
      ValueError: unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; expected one of {', '.join(SCALES)}")
    if symmetric:
        full = _full_scale(w, levels, live)

        def offset(s):
            return jnp.zeros_like(s)
    else:
        counted = None if live is None else live[:, None]
        low = w.min(0, where=counted, initial=None if live is None else jnp.inf)
        high = w.max(0, where=counted, initial=None if live is None else -jnp.inf)
        full = nonzero((high - low) / (levels.last - levels.first))

        def offset(s):
            return (low + high) / 2 - s * (levels.first + levels.last) / 2

    s = _best_fraction(w, levels, full, offset, live) if scale == "lsq" else full
    return s, offset(s)


def nonzero(scale: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The scale, or next to nothing where it is 0 (a channel without range): its weights stay equal, and w/s finite."""
    return jnp.where(scale != 0, scale, jnp.sqrt(jnp.finfo(scale.dtype).tiny))


def _full_scale(w: Float[Array, "N C"], levels: Levels, live: Bool[Array, " N"] | None) -> Float[Array, " C"]:
    size = jnp.abs(w) if live is None else jnp.where(live[:, None], jnp.abs(w), 0)
    return nonzero(size.max(0) / jnp.where(levels.last > 0, levels.last, levels.max_abs))


def _best_fraction(
    w: Float[Array, "N C"],
    levels: Levels,
    full: Float[Array, " C"],
    offset: Callable,
    live: Bool[Array, " N"] | None,
) -> Float[Array, " C"]:
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

    def squares(row, counts):
        x = row * inverse - shift
        square = jnp.square(x - nearest(x))
        return square if counts is None else square * counts

    # Elementwise over all fractions, some rows at a time: a CPU vectorizes that, and a sum over rows not as well.
    def by_rows(w, counted):
        def add_rows(rows, counted, error):
            for i in range(rows.shape[0]):
                error = error + squares(rows[i][None, :], None if counted is None else counted[i])
            return error

        whole = w.shape[0] // ROWS
        error = jnp.zeros_like(s)
        if whole:
            groups = jax.tree.map(lambda a: a[: whole * ROWS].reshape(whole, ROWS, *a.shape[1:]), (w, counted))

            def add_group(i, error):
                rows, counts = jax.tree.map(lambda a: a[i], groups)
                return add_rows(rows, counts, error)

            error = lax.fori_loop(0, whole, add_group, error)
        rows, counts = jax.tree.map(lambda a: a[whole * ROWS :], (w, counted))
        return add_rows(rows, counts, error)

    def at_once(w, counted):
        return jax.vmap(lambda row, count: squares(row[None, :], count))(w, counted).sum(0)

    counted = None if live is None else live.astype(w.dtype)
    error = lax.platform_dependent(w, counted, cpu=by_rows, default=at_once) * jnp.square(unit)
    # Errors of zero, which rounding makes a little more than that, are equal.
    size = jnp.square(w) if counted is None else jnp.square(w) * counted[:, None]
    noise = float(jnp.finfo(w.dtype).eps) ** 1.5 * size.sum(0)
    return full * fractions[jnp.argmax(error <= (error.min(0) + noise)[None, :], axis=0)]
