"""Quantization alphabets: the fixed, unscaled levels that codes are drawn from.

An alphabet is a (K,) ascending array. `make_alphabet` builds it from a name or checks a user's list;
`Levels` is the same alphabet in the form the solvers want inside jit.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array
from jaxtyping import Float, Float64, Real, UInt8

MAX_LEVELS = 256  # codes are stored as uint8


def _named() -> dict[str, tuple[float, ...]]:
    half = {bits: tuple(np.arange(2**bits) - 2 ** (bits - 1) + 0.5) for bits in range(2, 9)}
    table = {
        "1.58": (-1.0, 0.0, 1.0),
        "2.32": (-2.0, -1.0, 0.0, 1.0, 2.0),
        "2.58": (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5),
    }
    table |= {str(bits): levels for bits, levels in half.items()}
    table |= {f"int{bits}": tuple(np.arange(2**bits) - 2.0 ** (bits - 1)) for bits in range(2, 9)}
    return table


NAMED = _named()


def make_alphabet(spec: str | float | Sequence[float]) -> Float64[np.ndarray, " K"]:
    """Returns the alphabet that `spec` names or lists, as a (K,) float64 array, ascending.

    Names (Beacon, arXiv 2508.20293): "1.58" (-1, 0, 1), "2.32" (-2 … 2), "2.58" (±0.5, ±1.5, ±2.5), "2" … "8"
    (symmetric half-integers, paper v1), "int2" … "int8" (integers -2^(b-1) … 2^(b-1)-1, paper v2). A number is
    read as its name (2 is "2"). Any other sequence, or a string such as "-1,0,1", is taken as the levels themselves.

    Raises:
      ValueError: unknown name; fewer than 2 or more than 256 levels; levels not finite, not strictly ascending in
        float32, or with a largest magnitude outside 1e-4 … 1e4 (the scale is found per channel).
    """
    given: Any = spec
    if isinstance(spec, str) and "," in spec:
        given = [level for level in spec.strip("()[]").split(",") if level.strip()]
    elif isinstance(spec, (str, numbers.Real)):
        name = spec if isinstance(spec, str) else f"{spec:g}"
        if name not in NAMED:
            raise ValueError(
                f"unknown alphabet {spec!r}; expected one of {', '.join(NAMED)} or a list of levels such as -1,0,1"
            )
        return np.asarray(NAMED[name], np.float64)
    try:
        levels = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an alphabet is a name or a list of numbers, got {spec!r}") from error
    if levels.ndim != 1 or not 2 <= levels.size <= MAX_LEVELS:
        raise ValueError(f"an alphabet is a list of 2 to {MAX_LEVELS} levels, got shape {levels.shape}: {given!r}")
    with np.errstate(over="ignore"):  # of levels that are too large, which the last check finds
        ascending = np.all(np.diff(levels.astype(np.float32)) > 0)
    if not np.all(np.isfinite(levels)) or not ascending:
        raise ValueError(f"alphabet levels must be finite, distinct and in ascending order, got {levels.tolist()}")
    if not 1e-4 <= np.abs(levels).max() <= 1e4:
        raise ValueError(f"alphabet levels are unscaled: give the largest a magnitude near 1, got {levels.tolist()}")
    return levels


def nearest_index(x: Float[Array, "*shape"], count: Float[Array, ""]) -> Float[Array, "*shape"]:
    """The integer of 0 … count−1 nearest to x, the lower one of two equally near."""
    return jnp.clip(jnp.ceil(x - 0.5), 0, count - 1)


def is_symmetric(alphabet: Float[np.ndarray, " K"]) -> bool:
    """Whether A = −A, so that the sign of a scale is free."""
    return bool(np.array_equal(alphabet, -alphabet[::-1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """An alphabet as the solvers use it; every field is a scalar but `table` and `exact`.

    Invariants: level i is first + i·step exactly when `table` is None (every named alphabet), else table[i]. Only a
    table's shape depends on K, so one compiled solver serves all evenly spaced alphabets, whatever their size.
    """

    first: Float[Array, ""]
    last: Float[Array, ""]
    step: Float[Array, ""]
    count: Float[Array, ""]  # K, as a float
    smallest: Float[Array, ""]  # the level of smallest magnitude
    smallest_positive: Float[Array, ""]  # 0 if there is none
    smallest_negative: Float[Array, ""]  # negative level of smallest magnitude, 0 if there is none
    # A tuple of scalars in kernels, which have no gather.
    table: Float[Array, " K"] | tuple[Float[Array, ""], ...] | None
    exact: bool = dataclasses.field(metadata={"static": True})  # whether bfloat16 holds every level

    @classmethod
    def of(cls, alphabet: Float[np.ndarray, " K"], dtype) -> "Levels":
        """Builds the levels from a (K,) ascending alphabet."""
        alphabet = np.asarray(alphabet, dtype)
        step = alphabet[1] - alphabet[0]
        even = np.array_equal(alphabet[0] + np.arange(alphabet.size, dtype=alphabet.dtype) * step, alphabet)
        above, below = alphabet[alphabet > 0], alphabet[alphabet < 0]
        scalars = (
            alphabet[0],
            alphabet[-1],
            step,
            alphabet.size,
            alphabet[np.argmin(np.abs(alphabet))],
            above[0] if above.size else 0.0,
            below[-1] if below.size else 0.0,
        )
        exact = np.array_equal(alphabet.astype(ml_dtypes.bfloat16).astype(alphabet.dtype), alphabet)
        table = None if even else jnp.asarray(alphabet)
        first, last, step, count, smallest, positive, negative = (jnp.asarray(s, dtype) for s in scalars)
        return cls(first, last, step, count, smallest, positive, negative, table, exact)

    @property
    def max_abs(self) -> Float[Array, ""]:
        """The largest magnitude of a level."""
        return jnp.maximum(jnp.abs(self.first), jnp.abs(self.last))

    def lower_index(self, p: Float[Array, "*shape"]) -> Real[Array, "*shape"]:
        """Position i of the neighbouring levels i and i + 1 around p, of the two end levels on that side where p is
        outside the alphabet; a float of p's dtype where the alphabet is evenly spaced, else an integer.
        """
        if self.table is None:
            return jnp.clip(jnp.floor((p - self.first) * (1 / self.step)), 0, self.count - 2)
        if isinstance(self.table, tuple):
            return jnp.clip(sum((p >= level).astype(jnp.int32) for level in self.table) - 1, 0, len(self.table) - 2)
        k = self.table.size
        return jnp.clip(jnp.searchsorted(self.table, p, side="right", method="scan_unrolled") - 1, 0, k - 2)

    def at(self, i: Real[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The levels at these positions, of any real dtype."""
        if self.table is None:
            return self.first + i.astype(self.first.dtype) * self.step
        if isinstance(self.table, tuple):
            level = jnp.full(i.shape, self.table[0])
            for k in range(1, len(self.table)):
                level = jnp.where(i >= k, self.table[k], level)
            return level
        return self.table[i.astype(jnp.int32)]

    def bracket(self, p: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """The neighbouring levels lo ≤ p < hi; the two end levels on that side where p is outside the alphabet."""
        i = self.lower_index(p)
        return self.at(i), self.at(i + 1)

    def nearest(self, p: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The level nearest to p, the lower one of two equally near."""
        if self.table is None:
            return self.first + nearest_index((p - self.first) * (1 / self.step), self.count) * self.step
        lo, hi = self.bracket(p)
        return jnp.where(p - lo > hi - p, hi, lo)

    def index(self, q: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
        """uint8 position in the alphabet of values q that are levels."""
        if self.table is None:
            i = jnp.round((q - self.first) / self.step)
        else:
            i = jnp.searchsorted(jnp.asarray(self.table), q, method="scan_unrolled")
        return i.astype(jnp.uint8)
