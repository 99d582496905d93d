"""The folder of a run: one run at a time, tried before any long work, cleaned of what a killed run left.

Or of several workers, each of which leaves alone what the others write; the last one cleans.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beacon_jax.disk import disk_errors, make_folder, try_place, writing_as
from beacon_jax.places import is_remote, place, remove_folder
from experiments import hosts
from experiments.leases import new_owner
from experiments.lines import add_line, append_line, collect_lines
from experiments.locks import Lock
from experiments.remote_lock import RemoteLock

LOCK = "run.lock"
ACTIVATIONS = "activations"
LEASES = "leases"


class RunFolder:
    """A folder that a run writes to, for a `with`; of several processes the first alone does anything.

    Attributes:
      path: the folder.
      worker: the name of this one of several workers that share the folder; "" where the run has it for itself.

    Raises, where the `with` begins:
      OSError: a folder that cannot be written, or one in which another run is at work, or workers if it is not shared.
    """

    def __init__(self, path: str | os.PathLike, size: int = 2**20, *, shared: bool = False):
        """`size`: bytes for which there must be room; `shared`: with other workers."""
        self.path, self._size = place(path), size
        self.worker = new_owner() if shared else ""
        self._lock: Lock | RemoteLock | None = None
        self._finished: Callable[[], bool] = lambda: False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "RunFolder":
        if hosts.first():
            with self._stack as stack:
                if self.worker:
                    stack.enter_context(writing_as(self.worker))
                with disk_errors(self.path, "write to"):
                    make_folder(self.path)
                try_place(self.path / LOCK, self._size)
                if is_remote(self.path):
                    self._lock = RemoteLock(self.path, self.worker or new_owner(), shared=bool(self.worker))
                else:
                    self._lock = Lock(self.path / LOCK, self.path, "config.out", shared=bool(self.worker))
                if not self.worker:
                    self._clean()
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        with self._stack:
            if self._lock is not None:
                lock, self._lock = self._lock, None
                with contextlib.closing(lock):
                    # Locks may not reach other machines: as long as something is left to do, there may be workers.
                    if lock.alone() and (not self.worker or self._finished()):
                        self._clean()
                    elif self.worker and self.activations is not None:
                        with contextlib.suppress(OSError):  # another worker's data is there
                            self.activations.rmdir()

    def when_last(self, finished: Callable[[], bool]) -> None:
        """At the end of the `with` the last of the workers that share the folder cleans it, if finished() is True."""
        self._finished = finished

    @property
    def activations(self) -> Path | None:
        """Where calibration data waits; None for the system's temporary folder.

        That is taken with several processes, which each have their own, and where the folder is no local one.
        """
        if not hosts.alone() or is_remote(self.path):
            return None
        # What killed workers left there is found by its locks, which are known to reach within one machine.
        return self.path / ACTIVATIONS / socket.gethostname() if self.worker else self.path / ACTIVATIONS

    def check(self) -> None:
        """Raises OSError where the folder was deleted, replaced by another, or taken by a run elsewhere."""
        if self._lock is not None and not self._lock.held():
            if is_remote(self.path):
                raise OSError(
                    f"this run was stopped for so long that another may be at work in {self.path}, or it was deleted; "
                    "the same command goes on"
                )
            raise OSError(
                f"the folder {self.path} was deleted or replaced while the run went on, and what it held is gone; "
                "the same command starts again"
            )

    def try_files(self, *names: str) -> None:
        """Raises OSError where one of these files of the folder could not be written."""
        for name in names if hosts.first() else ():
            try_place(self.path / name)

    def append(self, name: str, line: Mapping[str, Any], key: str = "") -> None:
        """Adds a line to a file of the folder; of several workers as a file of its own, one for each `key`.

        OSError as `check` and `add_line`.
        """
        self.check()
        if self.worker:
            add_line(self.path / name, line, key)
        else:
            append_line(self.path / name, line)

    def _clean(self) -> None:
        """Removes what is of no use once its run has ended, and collects the lines of workers."""
        remove_folder(self.path / ACTIVATIONS)
        remove_folder(self.path / LEASES)
        collect_lines(self.path)
        for partial in self.path.glob("*.partial"):
            partial.unlink(missing_ok=True)
