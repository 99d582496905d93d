"""A quantization problem, checked and prepared once for every method, and its solution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.precision import in_dtype, mean_over_spread, working_dtype
from beacon_jax.quant.quantized import QuantizedMatrix


@dataclasses.dataclass(frozen=True)
class Problem:
    """Find codes and scales such that X̃Ŵ is near XW.

    Fields:
      W: kernel (N, C), or (E, N, C) for E groups that are solved together.
      stats: statistics of the inputs, of width N (and E groups).
      alphabet: (K,) float64, ascending levels.
      mean_over_spread: of inputs and outputs (see precision.py); None where it is not known (traced) or of no concern.
      has_bias: whether the layer has a bias that may change.

    Invariant: W and stats share one dtype, that in which the problem is to be solved (see precision.py).
    """

    W: jax.Array
    stats: GramStats
    alphabet: np.ndarray
    mean_over_spread: float | None = None
    has_bias: bool = False

    @classmethod
    def of(
        cls, kernel: jax.Array, stats: GramStats, alphabet: Any, *, has_bias: bool = False, reads_means: bool = True
    ) -> "Problem":
        """Checks the parts (the values of traced arrays are taken on trust) and puts them into the dtype to solve in.

        reads_means=False is for methods that do not look at the inputs' means, for which the dtype of the statistics
        will do.

        Raises:
          ValueError: kernel not (N, C) or (E, N, C); statistics of another width or other groups, of no rows or not
            finite; kernel not finite; an alphabet that is not ascending.
        """
        _check_shapes(jnp.shape(kernel), stats)
        facts = _facts(stats, kernel)
        ratio = None
        if not isinstance(facts, jax.core.Tracer):
            some_rows, finite_stats, finite_kernel, ratio = np.asarray(facts).tolist()
            if not some_rows:
                raise ValueError("no calibration rows: the statistics are empty; update them with at least one batch")
            if not finite_stats:
                raise ValueError("NaN or infinity in the calibration statistics: the layer's inputs are not all finite")
            if not finite_kernel:
                raise ValueError(f"NaN or infinity in the kernel of shape {kernel.shape}")
        alphabet, ratio = make_alphabet(alphabet), ratio if reads_means else None
        dtype = working_dtype(stats.dtype, ratio)
        with in_dtype(dtype):
            return cls(jnp.asarray(kernel, dtype), stats.astype(dtype), alphabet, ratio, has_bias)

    @property
    def dtype(self) -> np.dtype:
        """To solve in."""
        return self.W.dtype

    @property
    def levels(self) -> Levels:
        """The alphabet as the solvers use it."""
        return Levels.of(self.alphabet, self.dtype)

    def solved_by(self, solver: Callable[["Problem"], "Found"]) -> "Found":
        """What a solver of one layer's (N, C) problem finds, for each group where there are groups."""

        def solve(W, stats):
            return solver(dataclasses.replace(self, W=W, stats=stats))

        return (solve if self.W.ndim == 2 else jax.vmap(solve))(self.W, self.stats)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """What a solver returns for one layer.

    codes (N, C) uint8; scale (C,); offset (C,) or None; bias_change (C,) or None, see `QuantizedMatrix`; info, (…, C)
    arrays to report; sound, a bool scalar, False where the numbers are worthless, or None where that cannot be.
    """

    codes: jax.Array
    scale: jax.Array
    offset: jax.Array | None = None
    bias_change: jax.Array | None = None
    info: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    sound: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """A solved problem.

    Fields:
      matrix: the quantized kernel (and the change of the layer's bias), its floats in the dtype of the statistics.
      solved_in: name of the dtype that the solver used, "float32" or "float64".
      mean_over_spread: of inputs and outputs (see precision.py), None where not known or of no concern.
    """

    matrix: QuantizedMatrix
    solved_in: str = dataclasses.field(metadata={"static": True})
    mean_over_spread: float | None = dataclasses.field(metadata={"static": True})

    @property
    def note(self) -> str | None:
        """One line for a report where float64 was needed, else None."""
        if self.solved_in == self.matrix.scale.dtype.name:
            return None
        if not np.isfinite(self.mean_over_spread):
            return f"solved in {self.solved_in} because inputs or an output never change"
        ratio = f"{self.mean_over_spread:,.0f}"
        return (
            f"solved in {self.solved_in} because the mean of the inputs, or of an output, is {ratio} times its spread"
        )


def _check_shapes(shape: tuple[int, ...], stats: GramStats) -> None:
    if len(shape) not in (2, 3):
        raise ValueError(f"expected a kernel (inputs, outputs) or (groups, inputs, outputs), got shape {shape}")
    if stats.width != shape[-2]:
        raise ValueError(
            f"the statistics are for {stats.width} inputs, but the kernel of shape {shape} has {shape[-2]}"
        )
    if stats.groups != shape[:-2]:
        given, expected = (f"{g[0]} groups" if g else "one layer" for g in (stats.groups, shape[:-2]))
        raise ValueError(f"the statistics are of {given}, but the kernel of shape {shape} is of {expected}")


@jax.jit
def _facts(stats, kernel):
    """(4,), in one call: whether there are rows (in every group); the statistics are finite; the kernel is; and ρ."""
    finite = [jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(tree)]).all() for tree in (stats, kernel)]
    facts = (stats.count > 0).all(), *finite, mean_over_spread(stats, kernel.astype(stats.dtype))
    return jnp.stack([fact.astype(stats.dtype) for fact in facts])
