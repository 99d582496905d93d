"""Calibration data between two stages of a model, one batch in memory at a time."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from beacon_jax.devices import Placement
from beacon_jax.disk import disk_errors
from beacon_jax.temporary import TemporaryFolder

STORAGES = ("disk", "memory")
_BYTES = {1: np.uint8, 2: np.uint16}


class ActivationStream:
    """The batches at one point of a model, each a list of arrays.

    With storage "disk" each batch is a file in a temporary folder (see temporary.py) inside `folder`, and memory stays
    constant in the number of calibration batches; with "memory" they are kept as host arrays. On a mesh every process
    keeps the rows of its own devices. Close it, or use it in a `with`, to free them.
    """

    def __init__(self, storage: str, placement: Placement | None = None, folder: str | os.PathLike | None = None):
        if storage not in STORAGES:
            raise ValueError(f"unknown storage {storage!r} for activations; expected one of {', '.join(STORAGES)}")
        self._folder = TemporaryFolder(folder) if storage == "disk" else None
        self._placement = placement or Placement()
        self._arrays: list[list[np.ndarray]] = []
        self._about: list[list[tuple[np.dtype, tuple[int, ...]]]] = []  # dtype and shape of every array

    def __enter__(self) -> "ActivationStream":
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self) -> int:
        return len(self._about)

    def __iter__(self) -> Iterator[list[np.ndarray | jax.Array]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> list[np.ndarray | jax.Array]:
        """The arrays of batch i."""
        own = self._arrays[i] if self._folder is None else self._read(i)
        return [self._placement.restored(a, shape) for a, (_, shape) in zip(own, self._about[i], strict=True)]

    def append(self, batch: Sequence[jax.Array | np.ndarray]) -> None:
        """Adds a batch: arrays, each by rows or whole."""
        self.put(len(self), batch)

    def put(self, i: int, batch: Sequence[jax.Array | np.ndarray]) -> None:
        """Replaces batch i."""
        self._about[i : i + 1] = [[(np.dtype(a.dtype), a.shape) for a in batch]]
        own = [self._placement.own_rows(a) for a in batch]
        if self._folder is None:
            self._arrays[i : i + 1] = [own]
        else:
            with disk_errors(self._path(i)), open(self._path(i), "wb") as file:
                for a in own:
                    # .npy files do not know bfloat16 and the like; their bytes they do.
                    np.save(
                        file, a if a.dtype.isbuiltin == 1 else np.ascontiguousarray(a).view(_BYTES[a.dtype.itemsize])
                    )

    def close(self) -> None:
        """Frees the batches."""
        self._arrays, self._about = [], []
        if self._folder is not None:
            self._folder.close()

    def _path(self, i: int) -> Path:
        assert self._folder is not None, "what is kept in memory has no files"
        return self._folder.path / f"{i}.npy"

    def _read(self, i: int) -> list[np.ndarray]:
        with disk_errors(self._path(i), "read back"), open(self._path(i), "rb") as file:
            read = [(np.load(file), dtype) for dtype, _ in self._about[i]]
        return [a if dtype.isbuiltin == 1 else a.view(dtype) for a, dtype in read]
