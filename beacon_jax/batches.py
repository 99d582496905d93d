"""Batches of any kind: pytrees of arrays whose first axis counts the examples (arrays without axes belong to all)."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np


def example_count(batch: Any) -> int:
    """B, the length of the first axis of every array of a batch.

    Raises:
      ValueError: a leaf that is no array, arrays of different lengths, or none with a first axis.
    """
    lengths = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        name = jax.tree_util.keystr(path) or "the batch"
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            raise ValueError(f"batches are pytrees of arrays, but {name} is a {type(leaf).__name__}")
        if leaf.ndim:
            lengths[name] = leaf.shape[0]
    if not lengths or not all(lengths.values()):
        raise ValueError(f"a batch holds no examples: {lengths or 'it has no array with a first axis'}")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"the arrays of a batch must have one row for each example, but {said}")
    return next(iter(lengths.values()))


def fingerprint(batch: Any) -> str:
    """A digest by which other batches are noticed: of structure, shapes, types and up to 64 values of each example."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        array = np.asarray(leaf)
        rows = array.reshape(len(array), -1) if array.ndim and array.size else array.reshape(1, -1)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(rows[:, :: max(1, -(-rows.shape[1] // 64))]).tobytes())
    return digest.hexdigest()


def content_digest(batches: Iterable[Any]) -> tuple[str, int]:
    """(digest, size): of all that batches hold, however it is cut into batches, and the size of the largest batch.

    Of batches that have a method `content_digest` and a `batch_size`, what these say. ValueError as `example_count`.
    """
    if hasattr(batches, "content_digest") and hasattr(batches, "batch_size"):
        return batches.content_digest(), batches.batch_size
    digests: dict[str, Any] = {}
    shapes: dict[str, str] = {}
    largest = 0
    for batch in batches:
        largest = max(largest, example_count(batch))
        for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
            name, array = jax.tree_util.keystr(path), np.ascontiguousarray(leaf)
            digest = digests.setdefault(name, hashlib.blake2b(name.encode(), digest_size=16))
            shape = f"{array.dtype}{array.shape[1:]}"
            if shapes.get(name) != shape:
                digest.update(shape.encode())
                shapes[name] = shape
            digest.update(array.reshape(-1).view(np.uint8).data)
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(digests):
        whole.update(digests[name].digest())
    return whole.hexdigest(), largest


def take(batch: Any, start: int, stop: int | None) -> Any:
    """The examples start … stop − 1 of a batch, or of outputs."""
    return jax.tree.map(lambda a: a[start:stop] if np.ndim(a) else a, batch)


def padded(batches: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """(batch, count): every batch, its last example repeated up to the size of the first; `count` examples are real.

    Raises:
      ValueError: a batch larger than the first, or one that `example_count` refuses.
    """
    size = None
    for batch in batches:
        count = example_count(batch)
        size = size or count
        yield pad_to(batch, size), count


def pad_to(batch: Any, size: int) -> Any:
    """A batch of `size` examples, the last one repeated. ValueError where there are more."""
    count = example_count(batch)
    if count > size:
        raise ValueError(
            f"a batch of {count} follows a first batch of {size}; only the last may differ, and be smaller"
        )
    if count == size:
        return batch

    def pad(a):
        return np.pad(np.asarray(a), [(0, size - count)] + [(0, 0)] * (a.ndim - 1), mode="edge") if np.ndim(a) else a

    return jax.tree.map(pad, batch)


def is_read_once(batches: Iterable[Any]) -> bool:
    """Whether an iterable is a generator or the like, which gives its batches a single time."""
    return iter(batches) is batches


@dataclasses.dataclass(frozen=True)
class Rebatched:
    """The examples of other batches, in order, in batches of another size; the last may be smaller.

    Attributes:
      batches: of any sizes, to be iterated as often as this is.
      size: examples per batch.
    """

    batches: Iterable[Any]
    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.size}")

    def __iter__(self) -> Iterator[Any]:
        waiting = None
        for batch in self.batches:
            waiting = batch if waiting is None else jax.tree.map(_joined, waiting, batch)
            full = example_count(waiting) // self.size * self.size
            for start in range(0, full, self.size):
                yield take(waiting, start, start + self.size)
            waiting = take(waiting, full, None) if full < example_count(waiting) else None
        if waiting is not None:
            yield waiting

    @property
    def skipped(self) -> list[str]:
        """Names of the examples that the batches left out in their latest pass, where they say so."""
        return getattr(self.batches, "skipped", [])


def _joined(a, b):
    return np.concatenate([a, b]) if np.ndim(a) else a
