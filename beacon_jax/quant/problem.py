"""A quantization problem, checked and prepared once for every method, and its solution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float64, UInt8

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.moments import outer
from beacon_jax.quant.precision import in_dtype, mean_over_spread, working_dtype
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.units import in_units


class NothingToCalibrateOn(ValueError):
    """All inputs of a layer, or of one of its groups, are zero in every calibration row."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Find codes and scales such that X̃Ŵ is near XW.

    Fields:
      W: kernel (N, C), or (E, N, C) for E groups that are solved together, over `kernel_unit`.
      stats: statistics of the inputs over `input_unit`, of width N (and E groups).
      live: (N,), or (E, N), bool: inputs that are not zero in all rows; all of them where none is.
      alphabet: (K,) float64, ascending levels.
      kernel_unit, input_unit: powers of two near the largest weight and input (see units.py), scalars or (E,).
      informed: bool, (E,) for groups: whether some input has a square that is not zero; None where not known (traced).
      mean_over_spread: of inputs and outputs (see precision.py); None where it is not known (traced) or of no concern.
      has_bias: whether the layer has a bias that may change.

    Invariant: W and stats share one dtype, that in which the problem is to be solved (see precision.py).
    """

    W: Float[Array, "*groups N C"]
    stats: GramStats
    live: Bool[Array, "*groups N"]
    alphabet: Float64[np.ndarray, " K"]
    kernel_unit: Float[Array, "*groups"]
    input_unit: Float[Array, "*groups"]
    informed: Bool[np.ndarray, "*all_groups"] | None = None
    mean_over_spread: float | None = None
    has_bias: bool = False

    @classmethod
    def of(
        cls, kernel: AnyArray, stats: GramStats, alphabet: Any, *, has_bias: bool = False, reads_means: bool = True
    ) -> "Problem":
        """Checks the parts (the values of traced arrays are taken on trust) and puts them into the dtype to solve in.

        reads_means=False is for methods that do not look at the inputs' means, for which the dtype of the statistics
        will do.

        Raises:
          ValueError: kernel no array, not (N, C) or (E, N, C), empty, or complex; statistics that are none, of another
            width or other groups, of no rows, not finite, or no Gram matrices; kernel not finite; an alphabet that is
            not ascending.
        """
        if not isinstance(kernel, (np.ndarray, jax.Array)) or not isinstance(stats, GramStats):
            given = f"{type(kernel).__name__} and {type(stats).__name__}"
            raise ValueError(f"expected a kernel that is an array, and GramStats of its inputs, got {given}")
        _check_shapes(kernel.shape, stats)
        if jnp.issubdtype(jnp.result_type(kernel), jnp.complexfloating):
            raise ValueError(f"expected a kernel of real numbers, got {jnp.result_type(kernel)}")
        W, own, live, some_input, kernel_unit, input_unit, facts = _prepared(stats, kernel)
        ratio = informed = None
        if not isinstance(facts, jax.core.Tracer):
            some_rows, finite_stats, finite_kernel, gram, ratio = np.asarray(facts).tolist()
            if not some_rows:
                raise ValueError("no calibration rows: the statistics are empty; update them with at least one batch")
            if not finite_stats:
                raise ValueError("NaN or infinity in the calibration statistics: the layer's inputs are not all finite")
            if not finite_kernel:
                raise ValueError(f"NaN or infinity in the kernel of shape {kernel.shape}")
            if not gram:
                raise ValueError("the statistics are no Gram matrices: not symmetric, or a product above that of norms")
            informed = np.asarray(some_input)
        alphabet, ratio = make_alphabet(alphabet), ratio if reads_means else None
        dtype = working_dtype(stats.dtype, ratio)
        with in_dtype(dtype):
            W, kernel_unit, input_unit = (jnp.asarray(a, dtype) for a in (W, kernel_unit, input_unit))
            own = own.astype(dtype)
            return cls(W, own, live, alphabet, kernel_unit, input_unit, informed, ratio, has_bias)

    @property
    def dtype(self) -> np.dtype:
        """To solve in."""
        return self.W.dtype

    @property
    def levels(self) -> Levels:
        """The alphabet as the solvers use it."""
        return Levels.of(self.alphabet, self.dtype)

    def solved_by(self, solver: Callable[["Problem"], "Found"]) -> "Found":
        """What a solver of one layer's (N, C) problem finds, times the units; of each group where there are groups."""

        def solve(W, stats, live, kernel_unit, input_unit):
            own = dict(W=W, stats=stats, live=live, kernel_unit=kernel_unit, input_unit=input_unit)
            found = solver(dataclasses.replace(self, **own))
            return found.times(kernel_unit, input_unit, None if stats.residual is not None else W)

        arrays = self.W, self.stats, self.live, self.kernel_unit, self.input_unit
        return (solve if self.W.ndim == 2 else jax.vmap(solve))(*arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """What a solver returns for one layer.

    codes (N, C) uint8; scale (C,); offset (C,) or None; bias_change (C,) or None, see `QuantizedMatrix`; info, (…, C)
    arrays to report; sound, a bool scalar, False where the numbers are worthless, or None where that cannot be.
    """

    codes: UInt8[Array, "*groups N C"]
    scale: Float[Array, "*groups C"]
    offset: Float[Array, "*groups C"] | None = None
    bias_change: Float[Array, "*groups C"] | None = None
    info: dict[str, Array] = dataclasses.field(default_factory=dict)
    sound: Bool[Array, "*groups"] | None = None

    def where(self, groups: Bool[np.ndarray, " E"], other: "Found") -> "Found":
        """Of some groups, (E,) bool, what another solver found, their bias as it is; the report's arrays stay."""

        def chosen(own, others):
            some = jnp.asarray(groups).reshape((-1,) + (1,) * (own.ndim - 1))
            return jnp.where(some, jnp.zeros_like(own) if others is None else others.astype(own.dtype), own)

        return Found(
            chosen(self.codes, other.codes),
            chosen(self.scale, other.scale),
            None if self.offset is None else chosen(self.offset, other.offset),
            None if self.bias_change is None else chosen(self.bias_change, other.bias_change),
            self.info,
            None if self.sound is None else self.sound | jnp.asarray(groups),
        )

    def times(
        self, kernel_unit: Float[Array, ""], input_unit: Float[Array, ""], W: Float[Array, "N C"] | None
    ) -> "Found":
        """The same for a kernel and inputs that are so many times as large.

        With the kernel W its channels of zeros have nothing at all, whatever their codes.
        """
        own = self.scale, self.offset, self.bias_change
        scale, offset, change = _times(own, kernel_unit, input_unit, W)
        return dataclasses.replace(self, scale=scale, offset=offset, bias_change=change)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """A solved problem.

    Fields:
      matrix: the quantized kernel (and the change of the layer's bias), its floats in the dtype of the statistics.
      solved_in: name of the dtype that the solver used, "float32" or "float64".
      mean_over_spread: of inputs and outputs (see precision.py), None where not known or of no concern.
      rounded: number of groups that were rounded to nearest because their inputs are always zero.
    """

    matrix: QuantizedMatrix
    solved_in: str = dataclasses.field(metadata={"static": True})
    mean_over_spread: float | None = dataclasses.field(metadata={"static": True})
    rounded: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def note(self) -> str | None:
        """For a report, where groups were rounded or float64 was needed; else None."""
        notes = []
        if self.rounded:
            groups = self.matrix.scale.shape[0]
            notes.append(f"{self.rounded} of {groups} groups rounded to nearest because their inputs are always zero")
        if self.solved_in != self.matrix.scale.dtype.name:
            reason = "inputs or an output never change"
            if self.mean_over_spread is not None and np.isfinite(self.mean_over_spread):
                times = f"{self.mean_over_spread:,.0f}"
                reason = f"the mean of the inputs, or of an output, is {times} times its spread"
            notes.append(f"solved in {self.solved_in} because {reason}")
        return "; ".join(notes) or None


def _check_shapes(shape: tuple[int, ...], stats: GramStats) -> None:
    if len(shape) not in (2, 3):
        raise ValueError(f"expected a kernel (inputs, outputs) or (groups, inputs, outputs), got shape {shape}")
    if not min(shape):
        raise ValueError(f"a kernel of shape {shape} has no weights to quantize")
    if stats.width != shape[-2]:
        raise ValueError(
            f"the statistics are for {stats.width} inputs, but the kernel of shape {shape} has {shape[-2]}"
        )
    if stats.groups != shape[:-2]:
        given, expected = (f"{g[0]} groups" if g else "one layer" for g in (stats.groups, shape[:-2]))
        raise ValueError(f"the statistics are of {given}, but the kernel of shape {shape} is of {expected}")


@jax.jit
def _times(own, kernel_unit, input_unit, W):
    scale, offset, change = own
    if W is not None:
        zero = (W == 0).all(0)
        scale = jnp.where(zero, 0, scale)
        offset = None if offset is None else jnp.where(zero, 0, offset)
    return (
        scale * kernel_unit,
        None if offset is None else offset * kernel_unit,
        None if change is None else change * kernel_unit * input_unit,
    )


@jax.jit
def _prepared(stats, kernel):
    """In one call: kernel, statistics, live inputs and `informed` of a Problem, the units, and facts (5,).

    These are whether there are rows (in every group); the statistics are finite; the kernel is; they are Gram matrices;
    and ρ.
    """
    finite = [jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(tree)]).all() for tree in (stats, kernel)]
    wide = kernel if kernel.dtype == jnp.float64 else kernel.astype(stats.dtype)
    W, own, kernel_unit, input_unit = in_units(wide, stats)
    W = W.astype(stats.dtype)
    live = ~stats.dead
    live = live | ~live.any(-1, keepdims=True)
    informed = (stats.squares > 0).any(-1)
    facts = (stats.count > 0).all(), *finite, _are_gram(own), mean_over_spread(own, W)
    return W, own, live, informed, kernel_unit, input_unit, jnp.stack([fact.astype(stats.dtype) for fact in facts])


def _are_gram(stats):
    """Whether the matrices are symmetric, and no product of two inputs is larger than the product of their norms."""
    slack = jnp.finfo(stats.dtype).eps ** 0.5
    own = stats.x_tilde.products
    streams = [own] if stats.one_stream else [own, stats.x.products]
    squares = [jnp.diagonal(M, axis1=-2, axis2=-1) for M in streams]
    norms = [jnp.sqrt(jnp.maximum(square, 0)) for square in squares]
    bounds = [(M, outer(norm, norm)) for M, norm in zip(streams, norms, strict=True)]
    symmetric = [(jnp.abs(M - M.mT) <= slack * bound).all() for M, bound in bounds]
    if not stats.one_stream:
        bounds.append((stats.cross, outer(*norms)))
    least = slack * jnp.finfo(stats.dtype).tiny ** 0.5
    within = [(jnp.abs(M) <= (1 + slack) * bound + least).all() for M, bound in bounds]
    return jnp.stack([*[(square >= 0).all() for square in squares], *symmetric, *within]).all()
