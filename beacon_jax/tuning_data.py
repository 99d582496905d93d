"""What norm tuning trains on: batches that come again and again, each with what the outputs shall be."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.batches import example_count, fingerprint, take
from beacon_jax.metrics.base import Key, pick
from beacon_jax.metrics.classes import check_labels


@dataclasses.dataclass
class TuningData:
    """Batches with their targets and weights, each split into a part to train on and one held out."""

    batches: Iterable[Any]
    reference: Callable[[Any], Any]  # the float model
    tuned: Callable[[Any], Any]  # the model to be tuned, for the shapes of its outputs
    weights: Callable[[Any], Any] | None
    held_out: float
    output: Key
    label: Key = None
    labelled: bool = False  # whether the targets are labels, and not the float model's outputs
    seen: list[tuple[str, Any]] = dataclasses.field(default_factory=list)  # each batch's digest and target
    complete: bool = False  # whether all of them were seen
    shapes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of outputs, by those of a batch

    def split(self) -> Iterator[tuple[tuple, tuple]]:
        """((batch, target, weights) to train on, the same held out) of every batch of two or more examples.

        Raises ValueError where the batches are others than in the first pass.
        """
        count = -1
        for i, batch in enumerate(self.batches):
            digest, count = fingerprint(batch), example_count(batch)
            weights = None if self.weights is None else np.asarray(self.weights(batch), np.float32)
            if weights is not None and (weights.ndim == 0 or len(weights) != count):
                raise ValueError(f"weights of shape {weights.shape} do not fit a batch of {count} examples")
            if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
                raise ValueError(f"weights of batch {i} of norm tuning must be finite and at least 0")
            if i == len(self.seen) and not self.complete:
                self.seen.append((digest, self._target(batch, weights) if count > 1 else None))
            if i >= len(self.seen) or self.seen[i][0] != digest:
                raise ValueError(
                    f"batch {i} of norm tuning is another one than when the batches were first read; they must be the "
                    "same in the same order every time, not shuffled or drawn anew"
                )
            if count > 1:
                whole, cut = (batch, self.seen[i][1], weights), trained_on(count, self.held_out)
                yield take(whole, 0, cut), take(whole, cut, None)
        read = i + 1 if count >= 0 else 0
        if read < len(self.seen):
            raise ValueError(f"norm tuning read {len(self.seen)} batches the first time, and now {read}")
        self.complete = True

    def _target(self, batch, weights):
        if not self.labelled:
            outputs = pick(self.reference(batch), self.output, "outputs")
            return jax.tree.map(lambda a: np.asarray(a, np.float32), outputs)
        labels = np.asarray(pick(batch, self.label, "batch"))
        logits = jax.tree.leaves(self._outputs(batch))
        if len(logits) == 1:  # of more the loss itself complains
            check_labels(
                labels,
                logits[0].shape,
                None if weights is None else lambda: np.asarray(weights_over(weights, labels.shape)),
            )
        return labels

    def _outputs(self, batch):
        """The shapes of the tuned model's outputs; traced once for batches of one shape."""
        key = str(jax.tree.map(lambda a: (np.shape(a), a.dtype), batch))
        if key not in self.shapes:
            self.shapes[key] = jax.eval_shape(self.tuned, batch)
        return pick(self.shapes[key], self.output, "outputs")


def trained_on(count: int, held_out: float) -> int:
    """How many of a batch's examples are trained on, the first ones; this fraction of them is held out."""
    return count - max(1, round(held_out * count))


def weights_over(weights, shape: tuple[int, ...]) -> jax.Array:
    """Weights (B, …) of examples or positions for values of that shape; where these have fewer axes the largest counts.

    Raises ValueError where the first axes differ.
    """
    weights = weights.max(tuple(range(len(shape), weights.ndim)))
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(f"weights of shape {weights.shape} do not have the first axes of outputs by {shape}")
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)
