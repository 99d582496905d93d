"""A lock that one run holds, or several workers share, and that ends with its process, however that ends."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from absl import logging

from beacon_jax.disk import disk_errors

SHARED = "workers with --shared"


def in_use(what: str | os.PathLike, owner: str, instead: str) -> str:
    """The sentence that something is in use by its owner, and by which key of the configuration to take another."""
    return f"{what} is in use by another run ({owner}); wait until it ends, or set another {instead}"


class Lock:
    """A locked file, for what only one run at a time may write. OSError, in one sentence, where another run has it.

    A shared one keeps out those that are not, and they keep it out.

    Args:
      path: the file, made here, removed by `close`.
      what: what is locked, for the sentence.
      instead: the key of the configuration by which to take another.
      shared: with others that share it.
    """

    def __init__(self, path: Path, what: str | os.PathLike, instead: str, *, shared: bool = False):
        self.path, self._shared = path, shared
        while True:
            with disk_errors(path):
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.read(self._descriptor, 1000).decode(errors="replace").strip() or "that is just starting"
                os.close(self._descriptor)
                raise OSError(in_use(what, owner, instead)) from error
            except OSError as error:
                logging.warning("%s cannot be locked (%s): start no second run there", path, error.strerror)
            if self.held():
                break
            os.close(self._descriptor)  # the owner before removed the file in between
        owner = SHARED if shared else f"process {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{owner}\n".encode(), 0)

    def held(self) -> bool:
        """Whether the file is still there, and no other in its place."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def alone(self) -> bool:
        """Whether nobody shares it, who from then on cannot; where it is False the lock may be lost, too."""
        if self._shared:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # also where there are no locks, and so no way to know
                return False
            self._shared = False
        return self.held()

    def close(self) -> None:
        """Gives the lock back; the last one removes the file."""
        with contextlib.suppress(OSError):
            if self.alone():
                self.path.unlink()
        os.close(self._descriptor)
