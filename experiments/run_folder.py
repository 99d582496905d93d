"""The folder of a run: one run at a time, tried before any long work, cleaned of what a killed run left."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beacon_jax.disk import disk_errors, make_folder, try_place
from experiments import hosts
from experiments.lines import append_line
from experiments.locks import Lock

LOCK = "run.lock"
ACTIVATIONS = "activations"


class RunFolder:
    """A folder that a run writes to, for a `with`; of several processes the first alone does anything.

    Attributes:
      path: the folder.

    Raises, where the `with` begins:
      OSError: a folder that cannot be written, or one in which another run is at work.
    """

    def __init__(self, path: str | os.PathLike, size: int = 2**20):
        """`size`: bytes for which there must be room."""
        self.path, self._size = Path(path), size
        self._lock: Lock | None = None

    def __enter__(self) -> "RunFolder":
        if hosts.first():
            with disk_errors(self.path, "write to"):
                make_folder(self.path)
            try_place(self.path / LOCK, self._size)
            self._lock = Lock(self.path / LOCK, self.path, "config.out")
            self._clean()
        return self

    def __exit__(self, *_):
        if self._lock is not None:
            if self._lock.held():
                self._clean()
            self._lock.close()
            self._lock = None

    @property
    def activations(self) -> Path | None:
        """Where calibration data waits; None with several processes, which each use a temporary folder of their own."""
        return self.path / ACTIVATIONS if hosts.alone() else None

    def check(self) -> None:
        """Raises OSError where the folder was deleted, or replaced by another."""
        if self._lock is not None and not self._lock.held():
            raise OSError(
                f"the folder {self.path} was deleted or replaced while the run went on, and what it held is gone; "
                "the same command starts again"
            )

    def try_files(self, *names: str) -> None:
        """Raises OSError where one of these files of the folder could not be written."""
        for name in names if hosts.first() else ():
            try_place(self.path / name)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Adds a line to a file of the folder. OSError as `check` and `append_line`."""
        self.check()
        append_line(self.path / name, line)

    def _clean(self) -> None:
        """Removes what is of no use once its run has ended."""
        shutil.rmtree(self.path / ACTIVATIONS, ignore_errors=True)
        for partial in self.path.glob("*.partial"):
            partial.unlink(missing_ok=True)
