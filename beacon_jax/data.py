"""Images in batches. One contract for every dataset:

`batches(name, split, batch_size)` yields dicts with image (B, H, W, c) float32, preprocessed for the model, and
label (B,) int32, in a fixed order; the last batch may be smaller.
"""

from collections.abc import Callable, Iterator

import numpy as np

DIGITS_TEST = 500
_DIGITS_SPLIT_SEED = 0


def batches(
    name: str, split: str, batch_size: int, *, count: int | None = None, seed: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of a dataset's split.

    Args:
      name: a key of DATASETS.
      split: "train" or "test".
      batch_size: images per batch.
      count: only this many images, None for all.
      seed: draws the images in a random order, the same for the same seed (a calibration subset is count + seed); None
        for the dataset's own order.

    Raises:
      ValueError: unknown dataset or split, batch_size or count below 1, or more images asked for than there are.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; expected one of {', '.join(DATASETS)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of {name}; expected 'train' or 'test'")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images, labels = DATASETS[name](split)
    count = len(labels) if count is None else count
    if not 1 <= count <= len(labels):
        raise ValueError(f"{name} {split} has {len(labels)} images, asked for {count}")
    order = np.arange(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))
    order = order[:count]
    return (
        {"image": images[chosen], "label": labels[chosen]}
        for chosen in (order[i : i + batch_size] for i in range(0, count, batch_size))
    )


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: 1,797 real 8×8 scans, 1,297 to train on and 500 to test; values in [−1, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[..., None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(images))
    chosen = order[:DIGITS_TEST] if split == "test" else order[DIGITS_TEST:]
    return images[chosen], data.target[chosen].astype(np.int32)


# name -> function of the split returning (images, labels)
DATASETS: dict[str, Callable[[str], tuple[np.ndarray, np.ndarray]]] = {"digits": _digits}
