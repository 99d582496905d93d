"""Top-1 and top-5 accuracy of a prediction function over batches."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent over `count` images; `logit_error` is ‖logits − reference‖² / ‖reference‖² or None."""

    top1: float
    top5: float
    count: int
    logit_error: float | None = None

    @property
    def top1_stderr(self) -> float:
        """Binomial standard error of top1, in percentage points."""
        return math.sqrt(self.top1 * (100 - self.top1) / self.count)


def evaluate(
    predict: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, np.ndarray]],
    reference: Callable[[jax.Array], jax.Array] | None = None,
) -> Evaluation:
    """Evaluates `predict` on labelled batches.

    Args:
      predict: images (B, …) → logits (B, classes). It sees every batch padded to the size of the first, so that a
        shorter last batch costs no recompilation; the padding is masked out of every number.
      batches: dicts with image (B, …) and label (B,) int.
      reference: the float model, to report the error of the logits against it.

    Raises:
      ValueError: no batches, logits that are not finite, or labels outside the classes.
    """
    size, totals = None, np.zeros(5)
    for batch in batches:
        count = len(batch["label"])
        size = size or count
        image, label = (_pad(np.asarray(batch[key]), size) for key in ("image", "label"))
        logits = predict(image)
        if label.min() < 0 or label.max() >= logits.shape[-1]:
            raise ValueError(f"labels {label.min()} … {label.max()} do not fit logits of {logits.shape[-1]} classes")
        target = None if reference is None else reference(image)
        totals += np.asarray(_count(logits, label, np.arange(size) < count, target), np.float64)
    if size is None:
        raise ValueError("no batches to evaluate on")
    if not np.isfinite(totals).all():
        raise ValueError("the model's logits are not all finite")
    top1, top5, count, error, norm = totals
    logit_error = None if reference is None else error / norm
    return Evaluation(100 * top1 / count, 100 * top5 / count, int(count), logit_error)


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
        error = norm = jnp.zeros(())
    else:
        error, norm = (jnp.sum(jnp.where(mask[:, None], jnp.square(x), 0)) for x in (logits - target, target))
    finite = jnp.where(jnp.isfinite(logits).all(1) | ~mask, 0, jnp.nan).sum()
    return jnp.stack([((rank < 1) & mask).sum() + finite, ((rank < 5) & mask).sum(), mask.sum(), error, norm])
