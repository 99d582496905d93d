"""Top-1 and top-5 accuracy of a prediction function over batches."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent over `count` images, and what was compared with reference logits, None without any.

    logit_error is ‖logits − reference‖² / ‖reference‖²; agreement is the percentage of images whose most likely class
    is that of the reference, right or wrong.
    """

    top1: float
    top5: float
    count: int
    logit_error: float | None = None
    agreement: float | None = None

    @property
    def top1_stderr(self) -> float:
        """Binomial standard error of top1, in percentage points."""
        return math.sqrt(self.top1 * (100 - self.top1) / self.count)


def evaluate(
    predict: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, np.ndarray]],
    reference: Iterable[jax.Array] | None = None,
) -> Evaluation:
    """Evaluates `predict` on labelled batches.

    Args:
      predict: images (B, …) → logits (B, classes). It sees every batch padded to the size of the first, so that a
        shorter last batch costs no recompilation; the padding is masked out of every number.
      batches: dicts with image (B, …) and label (B,) int.
      reference: the float model's logits, one array per batch, as `logits_of` gives them, to report the error against.

    Raises:
      ValueError: no batches, logits that are not finite, labels outside the classes, or a reference of other batches.
    """
    size, totals = None, np.zeros(6)
    references = itertools.repeat(None) if reference is None else iter(reference)
    for image, label, count in _padded(batches):
        size, target = len(label), next(references, _MISSING)
        if target is _MISSING or (target is not None and len(target) != count):
            raise ValueError("the reference logits are not those of these batches")
        logits = predict(image)
        if label.min() < 0 or label.max() >= logits.shape[-1]:
            raise ValueError(f"labels {label.min()} … {label.max()} do not fit logits of {logits.shape[-1]} classes")
        target = None if target is None else _pad(np.asarray(target), size)
        totals += np.asarray(_count(logits, label, np.arange(size) < count, target), np.float64)
    if size is None:
        raise ValueError("no batches to evaluate on")
    if not np.isfinite(totals).all():
        raise ValueError("the model's logits are not all finite")
    top1, top5, count, error, norm, agreed = totals
    compared = (None, None) if reference is None else (error / norm, 100 * agreed / count)
    return Evaluation(100 * top1 / count, 100 * top5 / count, int(count), *compared)


def logits_of(predict: Callable[[jax.Array], jax.Array], batches: Iterable[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """The logits (B, classes) of every batch, as a reference for `evaluate`: 4 bytes per image and class."""
    return [np.asarray(predict(image))[:count] for image, _, count in _padded(batches)]


def _padded(batches):
    """(images, labels, count) of every batch, padded to the size of the first; count of them are real."""
    size = None
    for batch in batches:
        count = len(batch["label"])
        size = size or count
        yield *(_pad(np.asarray(batch[key]), size) for key in ("image", "label")), count


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    if len(array) > size:
        raise ValueError(
            f"a batch of {len(array)} follows a first batch of {size}; only the last may differ, and be smaller"
        )
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


@jax.jit
def _count(logits, label, mask, target):
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    # Rank of the label's logit. Equal logits (and NaN, which compares false) count against the model.
    rank = (~(logits < own)).sum(1) - 1
    if target is None:
        error = norm = agreed = jnp.zeros(())
    else:
        agreed = ((logits.argmax(1) == target.argmax(1)) & mask).sum()
        error, norm = (jnp.sum(jnp.where(mask[:, None], jnp.square(x), 0)) for x in (logits - target, target))
    finite = jnp.where(jnp.isfinite(logits).all(1) | ~mask, 0, jnp.nan).sum()
    hits = [((rank < k) & mask).sum() for k in (1, 5)]
    return jnp.stack([hits[0] + finite, hits[1], mask.sum(), error, norm, agreed])
