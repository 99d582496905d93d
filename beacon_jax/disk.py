"""Writing files so that they are there whole or not at all, and what the disk says as one sentence with the path."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike, doing: str = "write") -> Iterator[None]:
    """An OSError inside becomes one that says what went wrong with which path.

    Its class stays, but FileNotFoundError is for what was to be read: a folder that is gone while a file is written is
    no mistake of whoever named it. A file system that is read-only is PermissionError.
    """
    try:
        yield
    except OSError as error:  # which has no path where a disk is full
        kind = OSError if isinstance(error, FileNotFoundError) and doing != "read" else type(error)
        kind = PermissionError if error.errno == errno.EROFS else kind
        raise kind(f"cannot {doing} {path}: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those that it lies in. NotADirectoryError where a file is in the place of one."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{place} is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Replaces a file in one atomic step, after its bytes have reached the disk; makes its folder.

    Args:
      path: the file.
      write: writes all of it to the path that it is given, beside the file.

    Raises:
      OSError: with the path; the file is then as it was, and nothing is left beside it.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        make_folder(path.parent)
        try:
            try:
                write(partial)
            except SafetensorError as error:  # what it raises for errors of the disk
                raise OSError(str(error)) from error
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def replace_text(path: str | os.PathLike, text: str) -> None:
    """`replace_file` with a text in UTF-8."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder have reached the disk, where the system knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems do not do this for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_place(path: str | os.PathLike, size: int = 2**16) -> None:
    """Finds out before long work whether a file can be written: its folder is made, and a file beside it is tried.

    Args:
      path: the file, which stays as it is.
      size: bytes that it will take, at most; there must be room for them.

    Raises:
      OSError: with the path and the reason.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: a folder is in its place")
    trial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        make_folder(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it may not be written")
        try:
            with trial.open("wb") as file:
                file.write(bytes(2**12))
                os.fsync(file.fileno())
            statistics = os.statvfs(path.parent)
            free = statistics.f_bavail * statistics.f_frsize
            if free < size:
                raise OSError(f"up to {size:,} bytes are wanted, and {free:,} are left on its disk")
        finally:
            trial.unlink(missing_ok=True)
