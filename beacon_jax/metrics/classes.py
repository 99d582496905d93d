"""Metrics of classes: outputs (B, …, classes) against labels, or against the reference's most likely classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from beacon_jax.metrics.base import Key, Measured, Positions, as_type_of, mask_weights, pick


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Positions):
    """Of labels (B, …) int, as class indices.

    Attributes:
      label: key of the labels in a batch.
    """

    label: Key = "label"

    def check(self, outputs, batch) -> None:
        """What `check_labels` says of the labels that the mask counts."""
        logits = pick(outputs, self.output, "outputs")
        labels = np.asarray(pick(batch, self.label, "batch"))
        check_labels(labels, logits.shape, lambda: np.asarray(mask_weights(batch, self.mask, labels.shape)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TopK(Labelled):
    unit = 100.0
    k = 1

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        own = jnp.take_along_axis(outputs, label_indices(batch, self.label), axis=-1)
        # Rank of the label's logit. Equal logits (and NaN, which compares false) count against the model.
        return ((~(outputs < own)).sum(-1) - 1 < self.k).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Top1(_TopK):
    """Percentage of the labels whose logit is above all others."""

    title = "Top-1 in percent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Top5(_TopK):
    """Percentage of the labels whose logit is above all but four others."""

    title = "Top-5 in percent"
    k = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Labelled):
    """Mean of −log p(label), in nats."""

    title = "Cross-entropy in nats"
    shown = ".4f"
    better = "lower"

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        """(B, …) by position."""
        own = jnp.take_along_axis(outputs, label_indices(batch, self.label), axis=-1)
        return jax.nn.logsumexp(outputs, axis=-1) - own[..., 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity(CrossEntropy):
    """exp of the cross-entropy; its standard error by the delta method, exp times that of the cross-entropy."""

    title = "Perplexity"
    shown = ".3f"

    def summary(self, examples) -> Measured:
        """The number and its standard error."""
        mean = super().summary(examples)
        value = float(np.exp(np.float64(mean.value)))
        return Measured(value, value * mean.stderr, mean.count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement(Positions):
    """Percentage of the positions whose most likely class is that of the reference, right or wrong."""

    title = "Agreement: percentage with the float model's most likely class"
    compares = True
    unit = 100.0

    def keep(self, outputs: Any) -> Any:
        """The most likely classes (B, …)."""
        return pick(outputs, self.output, "outputs").argmax(-1)

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        """(B, …) by position."""
        own = outputs.argmax(-1)
        return (own == as_type_of(kept, own)).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence(Positions):
    """KL(p_reference ‖ p) of the classes' probabilities, in nats."""

    title = "KL divergence from the float model in nats"
    shown = ".4f"
    better = "lower"
    compares = True

    def keep(self, outputs: Any) -> Any:
        """The logits (B, …, classes)."""
        return pick(outputs, self.output, "outputs")

    def values(
        self, outputs: Float[jax.Array, " B *positions values"], batch: Any, kept: Any
    ) -> Float[jax.Array, " B *positions"]:
        """(B, …) by position."""
        expected, found = (jax.nn.log_softmax(a, axis=-1) for a in (as_type_of(kept, outputs), outputs))
        return (jnp.exp(expected) * (expected - found)).sum(-1)


def check_labels(labels: np.ndarray, logits: tuple[int, ...], weights: Callable[[], np.ndarray] | None) -> None:
    """Raises ValueError unless labels are indices of classes.

    Args:
      labels: must be integers (B, …).
      logits: shape of the logits (B, …, classes).
      weights: gives weights (B, …), where labels of weight 0 may be anything; None counts all.
    """
    if labels.shape != logits[:-1]:
        hint = "; they must be indices of classes, not one vector for each" if labels.shape == logits else ""
        raise ValueError(f"labels of shape {labels.shape} do not fit logits of shape {logits}{hint}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are indices of classes, and so integers, got {labels.dtype}")
    counted = labels if weights is None else labels[weights() > 0]
    low, high = counted.min(initial=0), counted.max(initial=0)
    if low < 0 or high >= logits[-1]:
        raise ValueError(f"labels {low} … {high} do not fit logits of {logits[-1]} classes")


def label_indices(batch: Any, key: Key) -> jax.Array:
    """(B, …, 1); where the mask is 0 they may be anything, and stand for class 0 if negative."""
    return jnp.maximum(jnp.asarray(pick(batch, key, "batch")), 0)[..., None]
