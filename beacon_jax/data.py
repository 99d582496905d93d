"""Images in batches. One contract for every dataset:

a batch is a dict with image (B, H, W, c) float32, preprocessed for the model, and label (B,) int32, in a fixed order;
the last batch may be smaller.
"""

import collections
import copy
import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version

import numpy as np

from beacon_jax.preprocessing import NORMALIZATIONS, PRESETS, UnreadableImageError, decode, normalize
from beacon_jax.sources import ArraySource, open_source

# A damaged image or entry of a zip file, and a file that is gone or forbidden.
_UNREADABLE = (UnreadableImageError, OSError)


class Batches:
    """The batches of a dataset's split, to be iterated as often as needed; threads read and preprocess images ahead.

    Decoding and resizing release Python's lock, so the threads run in parallel; the order does not depend on them.

    Attributes:
      count: images asked for.
      skipped: names of the unreadable images left out of the latest pass.
      images_per_second: over the latest complete pass, the reader's own time included; None before it.
      waited: fraction of that time in which the reader waited for images; near 0 where the threads keep up.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        batch_size: int,
        *,
        count: int | None = None,
        seed: int | None = None,
        root: str = "",
        preset: str = "none",
        normalization: str = "half",
        on_unreadable: str = "error",
        workers: int | None = None,
        cache: bool = False,
    ):
        """Opens the dataset; reads no images yet.

        Args:
          dataset: a key of sources.DATASETS.
          split: "train" or "test".
          batch_size: images per batch.
          count: only this many images, None for all. Without a seed they are the first ones, which in an image folder
            are of the first classes.
          seed: draws the images in a random order, the same for the same seed (a calibration subset is count + seed);
            None for the dataset's own order.
          root: the image folder or zip file, or TFDS's data_dir ("" for its default).
          preset: a key of preprocessing.PRESETS.
          normalization: a key of preprocessing.NORMALIZATIONS.
          on_unreadable: "error" stops at an image that cannot be decoded; "skip" leaves it out, in `skipped`.
          workers: threads, None for the number of cores.
          cache: keep decoded images in memory (one byte per value) for the next pass.

        Raises:
          ValueError: an unknown dataset, split or name among the options, a number below 1, or more images asked for
            than there are.
          FileNotFoundError: the dataset is not there.
        """
        choices = (
            ("preset", preset, PRESETS),
            ("normalization", normalization, NORMALIZATIONS),
            ("on_unreadable", on_unreadable, ("error", "skip")),
        )
        for what, value, known in choices:
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")
        self._batch_size = _at_least_one("batch_size", batch_size)
        self._workers = (os.cpu_count() or 1) if workers is None else _at_least_one("workers", workers)
        self._source = open_source(dataset, split, root)
        if PRESETS[preset] is not None and isinstance(self._source, ArraySource):
            raise ValueError(f"{dataset} is not resized; its preset is 'none', got {preset!r}")
        self._name = f"{dataset} {split}"
        self._preset, self._normalization, self._skip = PRESETS[preset], normalization, on_unreadable == "skip"
        self._select(count, seed, cache)

    @property
    def size(self) -> int:
        """Images in the whole split."""
        return len(self._source)

    @property
    def unsplit(self) -> bool:
        """Whether the dataset has no splits, so that "train" and "test" are the same images."""
        return getattr(self._source, "unsplit", False)

    def subset(self, count: int, seed: int, *, batch_size: int | None = None, cache: bool = False) -> "Batches":
        """Other images of the same split, without opening the dataset again; errors as for the class."""
        other = copy.copy(self)
        other._batch_size = self._batch_size if batch_size is None else _at_least_one("batch_size", batch_size)
        other._select(count, seed, cache)
        return other

    def content_digest(self) -> str:
        """A digest of the images as they lie (encoded ones are not decoded), their order, labels and preprocessing.

        ValueError as for reading them.
        """
        versions = {} if self._preset is None else {"pillow": version("pillow")}  # which decodes and resizes
        digest = hashlib.blake2b(f"{self._preset} {self._normalization} {versions}".encode(), digest_size=16)
        for example in self._in_order(self._read):
            if isinstance(example, str):
                digest.update(b"unreadable")
                continue
            image, label = example
            encoded = isinstance(image, bytes)
            digest.update((f"{len(image)}" if encoded else f"{image.shape}{image.dtype}").encode())
            digest.update(image if encoded else np.ascontiguousarray(image).data)
            digest.update(f"{label}".encode())
        return digest.hexdigest()

    @property
    def batch_size(self) -> int:
        """Images of every batch but the last."""
        return min(self._batch_size, self.count)

    def _select(self, count: int | None, seed: int | None, cache: bool) -> None:
        size = len(self._source)
        self.count = size if count is None else count
        if not 1 <= self.count <= size:
            raise ValueError(f"{self._name} has {size} images, asked for {count}")
        order = np.arange(size) if seed is None else np.random.default_rng(seed).permutation(size)
        self._order = order[: self.count].tolist()
        self._cache: dict[int, tuple[np.ndarray, int]] | None = {} if cache else None
        self.skipped: list[str] = []
        self.images_per_second: float | None = None
        self.waited: float | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        start, waited, read = time.perf_counter(), 0.0, 0
        examples = self._readable_examples()
        while True:
            asked = time.perf_counter()
            batch = list(itertools.islice(examples, self._batch_size))
            waited += time.perf_counter() - asked
            if not batch:
                break
            images, labels = zip(*batch, strict=True)
            self._check_shapes(images)
            read += len(batch)
            yield {"image": np.stack(images), "label": np.asarray(labels, np.int32)}
        if not read:
            raise ValueError(f"none of the {self.count} images can be decoded")
        seconds = time.perf_counter() - start
        self.images_per_second, self.waited = read / seconds, waited / seconds

    def summary(self) -> str:
        """How the latest complete pass went, in words."""
        if self.images_per_second is None:
            return f"{self.count} images, not read"
        read = f"{self.count - len(self.skipped)} images at {self.images_per_second:.0f} images/s"
        return f"{read}, {self.waited:.0%} of the time waiting for them; {len(self.skipped)} unreadable ones skipped"

    def _readable_examples(self):
        self.skipped = []
        for example in self._in_order(self._load):
            if isinstance(example, str):
                self.skipped.append(example)
            else:
                yield example

    def _in_order(self, load):
        """What `load` gives of each image, in order; a bounded number is under way in the threads."""
        ahead = min(self._batch_size, 512) + 2 * self._workers
        with ThreadPoolExecutor(self._workers) as pool:
            numbers, pending = iter(self._order), collections.deque[Future]()
            try:
                for i in itertools.islice(numbers, ahead):
                    pending.append(pool.submit(load, i))
                while pending:
                    example = pending.popleft().result()
                    pending.extend(pool.submit(load, i) for i in itertools.islice(numbers, 1))
                    yield example
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, i: int, prepare=lambda image: image):
        """(image, label) of the source, or the name of an image to skip."""
        try:
            image, label = self._source.read(i)
            return prepare(image), label
        except _UNREADABLE as error:
            name = self._source.name(i)
            if self._skip:
                return name
            raise ValueError(f"cannot read {name} ({error}); on_unreadable='skip' leaves such images out") from error

    def _load(self, i: int):
        example = (self._cache or {}).get(i) or self._read(i, self._decoded)
        if isinstance(example, str):
            return example
        image, label = example
        if self._cache is not None:
            self._cache[i] = image, label
        return normalize(image, self._normalization), label

    def _decoded(self, image: bytes | np.ndarray) -> np.ndarray:
        return decode(image, self._preset) if isinstance(image, bytes) else image

    def _check_shapes(self, images) -> None:
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise ValueError(f"images of different shapes, such as {shapes[0]} and {shapes[1]}; choose a preset")


def _at_least_one(what: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number
