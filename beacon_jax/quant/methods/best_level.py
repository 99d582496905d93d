"""The level of largest cosine for one coordinate, in O(1); letters as in beacon.py."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.precision import tie_tolerance


def best_level(
    levels: Levels,
    first: Float[Array, "*#shape"],
    a: Float[Array, "*#shape"],
    c: Float[Array, "*#shape"],
    h: Float[Array, "*#shape"],
    d: Float[Array, "*#shape"],
    H_tt: Float[Array, "*#shape"],
    size: Float[Array, "*#shape"] | float,
) -> Float[Array, "*_"]:
    """The level p of largest f(p) = (a + p h) / √(c + 2 p d + p² H_tt), in O(1); scalars of one channel.

    `first` is the level for an empty running sum, the one nearest to w_t/s (see `beacon.solve`); `size` is the
    magnitude of the terms that cancelled in c. Ties take the lower level.
    """
    tol = tie_tolerance(jnp.result_type(c))
    num, den = h * c - a * d, a * H_tt - h * d
    # One stationary point num/den: a maximum between two neighbouring levels, or else the ends are best.
    peaked = den > 0
    lo, hi = levels.bracket(jnp.where(peaked, num / jnp.where(peaked, den, 1), 0))
    lo, hi = jnp.where(peaked, lo, levels.first), jnp.where(peaked, hi, levels.last)
    p = jnp.where(_is_higher(num, den, a, h, lo, hi, tol), hi, lo)
    # num = den = 0: X̃_t is parallel to s (or both are orthogonal to y, and any level will do). Then f takes two values,
    # and steps from one to the other where s + p X̃_t changes sign.
    flat = (jnp.abs(num) <= tol * (jnp.abs(h) * c + jnp.abs(a * d))) & (
        jnp.abs(den) <= tol * (jnp.abs(a) * H_tt + jnp.abs(h * d))
    )
    p = jnp.where(flat, _first_of_right_sign(levels, a, d, H_tt, tol), p)
    # Empty running sum: every level of the sign of h gives the same cosine.
    empty = c <= tol * size
    p = jnp.where(empty, _right_sign(levels, first, h), p)
    return jnp.where(H_tt > 0, p, levels.smallest)


def _is_higher(num, den, a, h, lo, hi, tol):
    """Whether f(hi) > f(lo), without the square roots and the cancellation of evaluating f.

    With the numerators n = a + p h, and up to a positive factor,
    f(hi)² − f(lo)² = (hi − lo) (num (n_lo + n_hi) − den (lo n_hi + hi n_lo)).
    """
    n_lo, n_hi = a + lo * h, a + hi * h
    gain = num * (n_lo + n_hi) - den * (lo * n_hi + hi * n_lo)
    terms = jnp.abs(num) * (jnp.abs(n_lo) + jnp.abs(n_hi)) + jnp.abs(den) * (jnp.abs(lo * n_hi) + jnp.abs(hi * n_lo))
    noise = tol * terms
    both_positive, both_negative = (n_lo > 0) & (n_hi > 0), (n_lo <= 0) & (n_hi <= 0)
    # Not by selections, of which a TPU's kernel has none between truth values.
    one_sign = (both_positive & (gain > noise)) | (both_negative & (gain < -noise))
    return one_sign | (~(both_positive | both_negative) & (n_hi > n_lo))


def _first_of_right_sign(levels, a, d, H_tt, tol):
    """For X̃_t parallel to s: the lowest level p for which ⟨y, s + p X̃_t⟩ > 0, else the lowest that makes it largest."""
    turn = -d / jnp.where(H_tt > 0, H_tt, 1)  # s + p X̃_t = 0
    margin = tol * levels.max_abs
    _, above = levels.bracket(turn + margin)
    above = jnp.where(turn + margin < levels.first, levels.first, above)
    none_above = jnp.where(turn - margin <= levels.last, levels.last, levels.first)
    above = jnp.where(turn + margin < levels.last, above, none_above)
    return jnp.where(a * d > 0, above, levels.first)


def _right_sign(levels, first, h):
    """`first` where it is 0 or has the sign of h, else the smallest level of that sign, if there is one."""
    other = jnp.where(h > 0, levels.smallest_positive, levels.smallest_negative)
    return jnp.where((first * h < 0) & (other != 0), other, first)
