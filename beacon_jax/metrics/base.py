"""What `evaluate` measures: metrics of any outputs and any batches, each with its standard error."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

Key = str | int | Callable[[Any], Any] | None  # of a batch or of outputs: tree[key], key(tree), or the tree itself


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric's value, its standard error, and the number of examples that it is of."""

    value: float
    stderr: float
    count: int


class Metric(Protocol):
    """What `evaluate` asks of a metric. It must be hashable, as a frozen dataclass is, since it is compiled.

    Attributes:
      title: in words, with the unit.
      shown: format of a value in tables, such as ".2f".
      better: "higher" or "lower".
      compares: whether it needs the reference's outputs.
    """

    title: str
    shown: str
    better: str
    compares: bool

    def check(self, outputs: Any, batch: Any) -> None:
        """Raises ValueError for what it cannot be computed of; `outputs` by shape, `batch` by value (host arrays)."""

    def keep(self, outputs: Any) -> Any:
        """What it needs of a reference's outputs: arrays of B examples. Called only where it compares."""

    def examples(self, outputs: Any, batch: Any, kept: Any) -> Any:
        """Arrays of B examples, by jax.numpy under jit, NaN where outputs are not finite; `kept` may be None."""

    def summary(self, examples: Any) -> Measured:
        """The number, of these arrays for all examples together (NumPy, float64)."""


@dataclasses.dataclass(frozen=True)
class MeanOver:
    """A metric that is a mean over examples or their parts: Σ sums / Σ weights, times `unit`.

    The standard error is that of a ratio, with the examples as clusters, since the parts of one example (tokens, say)
    are not independent: √Σ (sum_i − mean · weight_i)² / Σ weight_i. For hits this is the binomial one.
    """

    title = ""
    shown = ".2f"
    better = "higher"
    compares = False
    unit = 1.0

    def check(self, outputs, batch) -> None:
        """Any outputs will do."""

    def keep(self, outputs: Any) -> Any:
        """All of them."""
        return outputs

    def summary(self, examples) -> Measured:
        """The mean and its standard error."""
        sums, weights = examples
        total = weights.sum()
        if not total > 0:
            raise ValueError(f"nothing to measure: all weights are zero ({self.title})")
        stderr = math.sqrt(np.square(sums - sums.sum() / total * weights).sum()) / total
        # In this order 477 of 500 are 95.4 percent, to the last bit.
        value = self.unit * sums.sum() / total
        return Measured(float(value), float(self.unit * stderr), int((weights > 0).sum()))


@dataclasses.dataclass(frozen=True)
class Mean(MeanOver):
    """The mean of a function of one's own.

    Attributes:
      function: (outputs, batch, reference outputs or None) → values (B,), or (sums, weights), both (B,), where the mean
        is Σ sums / Σ weights: sums over an example's parts, and how many parts it has.
      title, shown, better, compares: as in Metric.
    """

    function: Callable[[Any, Any, Any], Any]
    title: str = ""
    shown: str = ".4g"
    better: str = "higher"
    compares: bool = False

    def __post_init__(self):
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better must be 'higher' or 'lower', got {self.better!r}")

    def examples(self, outputs: Any, batch: Any, kept: Any) -> Any:
        """What the function gives."""
        made = self.function(outputs, batch, kept)
        return made if isinstance(made, tuple) else (made, jnp.ones_like(made))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions(MeanOver):
    """A mean over all positions: outputs (B, …, classes or features), mask (B, …) or (B,), 0 for what does not count.

    Attributes:
      mask: key of the mask in a batch; None counts all.
      output: key of the array in the outputs.
    """

    mask: Key = None
    output: Key = None

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        """(B, …) by position."""
        raise NotImplementedError

    def examples(self, outputs: Any, batch: Any, kept: Any) -> tuple[Float[jax.Array, " B"], Float[jax.Array, " B"]]:
        """Sums over the positions of each example, and their weights."""
        found = floats(pick(outputs, self.output, "outputs"))
        values = self.values(found, batch, kept)
        weights = mask_weights(batch, self.mask, values.shape).astype(values.dtype)
        finite = jnp.isfinite(found).all(-1) | (weights == 0)
        values = jnp.where(weights > 0, jnp.where(finite, values, jnp.nan) * weights, 0)
        return per_example(values), per_example(weights)


def pick(tree: Any, key: Key, what: str) -> Any:
    """The part of a batch or of outputs that a key names. ValueError where there is none of that name."""
    if key is None or callable(key):
        return tree if key is None else key(tree)
    try:
        return tree[key]
    except (KeyError, IndexError, TypeError) as error:
        has = f"keys {', '.join(map(str, tree))}" if hasattr(tree, "keys") else f"type {type(tree).__name__}"
        raise ValueError(f"no {key!r} in the {what}, of {has}") from error


def floats(a: Any) -> Float[jax.Array, "*shape"]:
    """In float32, or what is more precise."""
    with jax.numpy_dtype_promotion("standard"):  # asked for here, whatever the caller forbids elsewhere
        kind = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.asarray(a).astype(kind)


def as_type_of(kept: Any, outputs: jax.Array) -> jax.Array:
    """What was kept of a reference in the type of the outputs, which may be more or less precise."""
    return jnp.asarray(kept).astype(outputs.dtype)


def mask_weights(batch: Any, mask: Key, shape: tuple[int, ...]) -> Float32[jax.Array, "*shape"]:
    """The mask, float32, of that shape."""
    if mask is None:
        return jnp.ones(shape, jnp.float32)
    found = jnp.asarray(pick(batch, mask, "batch")).astype(jnp.float32)
    if found.shape != shape[: found.ndim]:
        raise ValueError(f"a mask of shape {found.shape} does not have the first axes of values of shape {shape}")
    return jnp.broadcast_to(found.reshape(found.shape + (1,) * (len(shape) - found.ndim)), shape)


def per_example(values: Float[jax.Array, " B *positions"]) -> Float[jax.Array, " B"]:
    """(B, …) → sums (B,)."""
    return values.sum(tuple(range(1, values.ndim)))
