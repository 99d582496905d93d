"""Calibration activations between two stages of a model, one batch in memory at a time."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.devices import Placement

STORAGES = ("disk", "memory")


class ActivationStream:
    """The batches of activations at one point of a model.

    With storage "disk" each batch is a file in a temporary folder, and memory stays constant in the number of
    calibration images; with "memory" they are kept as host arrays. On a mesh every process keeps the rows of its own
    devices. Close it, or use it in a `with`, to free them.
    """

    def __init__(self, storage: str, placement: Placement | None = None):
        if storage not in STORAGES:
            raise ValueError(f"unknown storage {storage!r} for activations; expected one of {', '.join(STORAGES)}")
        self._folder = tempfile.TemporaryDirectory(prefix="beacon_jax_") if storage == "disk" else None
        self._placement = placement or Placement()
        self._arrays: list[np.ndarray] = []
        self._about: list[tuple[np.dtype, int]] = []  # dtype and rows of every batch

    def __enter__(self) -> "ActivationStream":
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self) -> int:
        return len(self._about)

    def __iter__(self) -> Iterator[np.ndarray | jax.Array]:
        return (self._read(i) for i in range(len(self)))

    def append(self, batch: jax.Array) -> None:
        """Adds a batch (B, …)."""
        self._write(len(self), batch)

    def advance(self, run: Callable[[np.ndarray], jax.Array]) -> None:
        """Replaces every batch x by run(x)."""
        for i in range(len(self)):
            self._write(i, run(self._read(i)))

    def close(self) -> None:
        """Frees the batches."""
        self._arrays, self._about = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def _path(self, i: int) -> Path:
        return Path(self._folder.name) / f"{i}.npy"

    def _read(self, i: int) -> np.ndarray | jax.Array:
        dtype, rows = self._about[i]
        own = self._arrays[i] if self._folder is None else np.load(self._path(i)).astype(dtype, copy=False)
        return self._placement.restored(own, rows)

    def _write(self, i: int, batch: jax.Array) -> None:
        self._about[i : i + 1] = [(batch.dtype, len(batch))]
        own = self._placement.own_rows(batch)
        if self._folder is None:
            self._arrays[i : i + 1] = [own]
        else:
            # .npy files do not know bfloat16, which float32 holds exactly.
            np.save(self._path(i), own.astype(np.float32) if own.dtype == jnp.bfloat16 else own)
