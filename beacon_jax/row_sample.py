"""A seeded part of the rows that each calibration example gives a layer, for less arithmetic.

The rows of one image's tokens repeat each other in part, and Gram statistics of a layer's inputs cost as much for each
of them. Which rows are taken is drawn anew for every example, and is the same for both streams.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int, Int32, Real, Shaped


@dataclasses.dataclass(frozen=True)
class RowSample:
    """At most `count` rows of each example, drawn with `seed`; rows of weight 0 only where no others are left.

    Examples are equal runs of consecutive rows. Where the rows cannot be cut so, all of them are taken.
    """

    count: int
    seed: int = 0

    def thins(self, rows: int, examples: int) -> bool:
        """Whether any of the `rows` of a batch of so many examples are left out."""
        return examples > 0 and rows % examples == 0 and rows // examples > self.count

    def rows(self, rows: int, examples: int, weights: Real[np.ndarray, " rows"] | None = None) -> int:
        """How many rows of positive weight (rows,) are taken; of all rows where no weights are given."""
        positive = np.ones(rows, int) if weights is None else (np.asarray(weights) > 0).astype(int)
        if self.thins(rows, examples):
            positive = np.minimum(positive.reshape(examples, -1).sum(1), self.count)
        return int(positive.sum())

    def chosen(
        self, rows: int, examples: int, number: jax.Array, weights: Real[jax.Array, " rows"] | None = None
    ) -> Int32[jax.Array, "{examples} {self.count}"]:
        """(examples, count) int32 numbers of the rows taken, in ascending order in each example.

        Args:
          rows, examples: of a batch that is thinned.
          number: int32, the batch's.
          weights: (rows,), None for rows that count alike.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        # Whether double precision is on decides nothing.
        order = jax.random.uniform(key, (examples, rows // examples), jnp.float32)
        if weights is not None:
            order = jnp.where(weights.reshape(order.shape) > 0, order, -1)
        _, within = lax.top_k(order, self.count)
        start = jnp.arange(examples, dtype=jnp.int32)[:, None] * (rows // examples)
        return jnp.sort(within, axis=1) + start


def taken(
    rows: Shaped[jax.Array, "*shape"], chosen: Int[jax.Array, "examples count"], axis: int
) -> Shaped[jax.Array, "*part"]:
    """These rows of an array that has rows along `axis`."""
    return jnp.take(rows, chosen.reshape(-1), axis, indices_are_sorted=True, unique_indices=True)
