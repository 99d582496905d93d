"""Temporary folders that do not outlive their process, however it ends."""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from beacon_jax.disk import disk_errors, make_folder

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is locked, and what killed processes left stays
    fcntl = None  # type: ignore[assignment]  # a module, or None

PREFIX = "beacon_jax_activations_"


class TemporaryFolder:
    """A folder of this process, locked as long as it lives; what killed processes left beside it is removed first.

    Attributes:
      path: the folder.
      close: close() removes it; again does nothing.
    """

    def __init__(self, parent: str | os.PathLike | None = None):
        """Makes it in `parent`, itself made if needed; None for the system's folder of temporary files.

        OSError, with the path, where that cannot be.
        """
        parent = Path(parent or tempfile.gettempdir())
        with disk_errors(parent, "make a folder in"):
            make_folder(parent)
            self.path, lock = _made_and_locked(parent)
        self.close = weakref.finalize(self, _remove, self.path, lock)  # also at the end of the process


def _made_and_locked(parent: Path) -> tuple[Path, int | None]:
    if fcntl is None:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)), None
    with _locked_folder(parent, fcntl.LOCK_EX):  # so that nobody takes a new folder for a left one
        _remove_left(parent)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # no locks: it is never taken for a left one
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, lock


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def _locked_folder(folder: Path, kind: int) -> Iterator[None]:
    """Locked among those that ask; a file system without locks gives none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, kind)
        except OSError as error:
            logging.info("%s cannot be locked: %s", folder, error.strerror)
        yield
    finally:
        os.close(descriptor)


def _remove_left(parent: Path) -> None:
    """Removes the folders in `parent` that were made here by processes that are gone, as their locks tell."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives, or there are no locks
            continue
        finally:
            os.close(descriptor)
