"""Statistics of the float model that several runs share."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from beacon_jax.leaves import is_key, key_numbers
from beacon_jax.quant.gram import GramStats


class FloatStats:
    """Gram statistics of the float model's layer inputs, by layer, for runs that differ in method, alphabet, options or
    calibrate_on but not in model, calibration data, weights or arithmetic; those are told apart by a fingerprint.
    """

    def __init__(self):
        self._fingerprint: str | None = None
        self._stats: dict[str, GramStats] = {}

    def __contains__(self, layer: str) -> bool:
        return layer in self._stats

    def __len__(self) -> int:
        return len(self._stats)

    def get(self, layer: str) -> GramStats | None:
        """The statistics of a layer, None where there are none yet."""
        return self._stats.get(layer)

    def add(self, layer: str, stats: GramStats) -> None:
        """Keeps a layer's statistics, unless there are some."""
        self._stats.setdefault(layer, stats)

    def belong_to(self, fingerprint: str) -> None:
        """Raises ValueError where the statistics are of another model, data or arithmetic."""
        if self._fingerprint not in (None, fingerprint):
            raise ValueError(
                "float_stats holds statistics of another model, other calibration data, weights or another dtype; "
                "use a FloatStats of its own for each"
            )
        self._fingerprint = fingerprint


class Fingerprint:
    """A digest of arrays, in the order in which they are added."""

    def __init__(self):
        self._hash = hashlib.sha256()

    def add(self, arrays: Iterable[Any]) -> None:
        """Adds arrays, and strings: their types, shapes and contents."""
        for a in arrays:
            if isinstance(a, str):
                self._hash.update(a.encode())
            else:
                host = np.ascontiguousarray(key_numbers(a) if is_key(a) else a)
                self._hash.update(f"{host.dtype}{host.shape}".encode())
                self._hash.update(host.reshape(-1).view(np.uint8).data)

    def digest(self) -> str:
        """The digest of all that was added."""
        return self._hash.hexdigest()
