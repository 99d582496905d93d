"""Metrics of outputs as vectors, against those of a reference."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from beacon_jax.metrics.base import (
    Key,
    MeanOver,
    Measured,
    Positions,
    as_type_of,
    floats,
    mask_weights,
    per_example,
    pick,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanCosine(Positions):
    """Mean cosine between the outputs' vectors, along the last axis, and the reference's; of a zero vector it is 0."""

    title = "Mean cosine to the float model's outputs"
    shown = ".4f"
    compares = True

    def keep(self, outputs: Any) -> Any:
        """The vectors."""
        return pick(outputs, self.output, "outputs")

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        """(B, …) by position."""
        return (unit_vectors(outputs) * unit_vectors(as_type_of(kept, outputs))).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeOutputError(MeanOver):
    """‖outputs − reference‖² / ‖reference‖², over all examples and all arrays of the outputs together.

    Attributes:
      mask: key in a batch of what counts, (B,) or the first axes of the arrays; None for all.
      output: key of what is compared in the outputs, which may be a pytree.
    """

    mask: Key = None
    output: Key = None
    title = "Relative error of the outputs against the float model's"
    shown = ".2e"
    better = "lower"
    compares = True

    def keep(self, outputs: Any) -> Any:
        """What is compared."""
        return pick(outputs, self.output, "outputs")

    def examples(self, outputs: Any, batch: Any, kept: Any) -> tuple[Float[jax.Array, " B"], Float[jax.Array, " B"]]:
        """Sums of squares of the differences and of the reference."""

        def squares(tree):
            leaves = [floats(a) for a in jax.tree.leaves(tree)]
            weights = [mask_weights(batch, self.mask, a.shape) for a in leaves]
            return sum(
                per_example(jnp.where(w > 0, w.astype(a.dtype) * a * a, 0))
                for a, w in zip(leaves, weights, strict=True)
            )

        found = pick(outputs, self.output, "outputs")
        return squares(jax.tree.map(lambda a, b: floats(a) - as_type_of(b, floats(a)), found, kept)), squares(kept)


@dataclasses.dataclass(frozen=True)
class NeighbourOverlap:
    """Percentage of an example's k nearest other examples, by cosine, that are the same as for the reference.

    It is of vectors (B, width), one per example, and compares all examples with one another after the last batch. The
    standard error takes the examples as independent, which overlapping neighbourhoods are not quite.

    Attributes:
      k: neighbours of each example.
      output: key of the vectors in the outputs.
    """

    k: int = 10
    output: Key = None
    shown = ".2f"
    better = "higher"
    compares = True

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    @property
    def title(self) -> str:
        """In words, with the unit."""
        return f"Overlap of the {self.k} nearest neighbours with the float model's, in percent"

    def check(self, outputs, batch) -> None:
        """The outputs must be one vector for each example."""
        if pick(outputs, self.output, "outputs").ndim != 2:
            shape = pick(outputs, self.output, "outputs").shape
            raise ValueError(f"nearest neighbours are those of vectors (B, width), but the outputs have shape {shape}")

    def keep(self, outputs: Any) -> Any:
        """The vectors."""
        return pick(outputs, self.output, "outputs")

    def examples(
        self, outputs: Any, batch: Any, kept: Any
    ) -> tuple[Float[jax.Array, "B values"], Float[jax.Array, "B values"]]:
        """Vectors of length 1, of both models."""
        return unit_vectors(floats(pick(outputs, self.output, "outputs"))), unit_vectors(floats(kept))

    def summary(self, examples) -> Measured:
        """The mean over all examples and its standard error."""
        count = len(examples[0])
        if count <= self.k:
            raise ValueError(f"{self.k} nearest neighbours need more than {self.k} examples, there are {count}")
        one, two = (self._nearest(vectors) for vectors in examples)
        same = np.array([len(np.intersect1d(a, b)) for a, b in zip(one, two, strict=True)]) / self.k
        return Measured(float(100 * same.mean()), float(100 * same.std() / math.sqrt(count)), count)

    def _nearest(self, vectors):
        """(count, k), a block of rows at a time, so that memory stays small; among equals the first examples."""
        rows = []
        for start in range(0, len(vectors), 256):
            cosines = vectors[start : start + 256] @ vectors.T
            cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -np.inf
            rows.append(np.argsort(-cosines, axis=1, kind="stable")[:, : self.k])
        return np.concatenate(rows)


def unit_vectors(vectors: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Divided by their lengths along the last axis; zero vectors stay zero."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length == 0, 1, length)
