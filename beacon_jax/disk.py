"""Writing files so that they are there whole or not at all, and what the disk says as one sentence with the path."""

import contextlib
import contextvars
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from beacon_jax import places

_writer = contextvars.ContextVar("writer", default="")


@contextlib.contextmanager
def writing_as(name: str) -> Iterator[None]:
    """Inside, files that are not whole yet carry this name, so that several processes can replace one file.

    Each then replaces it whole, and the last counts. Without it they take the same name, which the next run overwrites.
    """
    token = _writer.set(f".{name}")
    try:
        yield
    finally:
        _writer.reset(token)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}{_writer.get()}.partial")


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike, doing: str = "write") -> Iterator[None]:
    """An OSError inside becomes one that says what went wrong with which path.

    Its class stays, but FileNotFoundError is for what was to be read: a folder that is gone while a file is written is
    no mistake of whoever named it. A file system that is read-only is PermissionError. Of an address places.py says it.
    """
    if places.is_remote(path):
        yield
        return
    try:
        yield
    except OSError as error:  # which has no path where a disk is full
        kind = OSError if isinstance(error, FileNotFoundError) and doing != "read" else type(error)
        kind = PermissionError if error.errno == errno.EROFS else kind
        raise kind(f"cannot {doing} {path}: {error.strerror or error}") from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those that it lies in. NotADirectoryError where a file is in the place of one."""
    for place in (folder, *folder.parents):
        if places.exists(place) and not places.is_folder(place):
            raise NotADirectoryError(f"{place} is a file, not a folder")
    if not places.is_remote(folder):  # there made with the first file
        folder.mkdir(parents=True, exist_ok=True)


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Replaces a file in one atomic step, after its bytes have reached the disk; makes its folder.

    Args:
      path: the file, or an address (see places.py), which is written whole; how far that is atomic is up to the
        storage: buckets do it so.
      write: writes all of it to the path that it is given, beside the file, or a temporary one.

    Raises:
      OSError: with the path; the file is then as it was, and nothing is left beside it.
    """
    own = places.place(path)
    if places.is_remote(own):
        _replace_remote(own, write)
        return
    partial = _partial(own)
    with disk_errors(own):
        make_folder(own.parent)
        try:
            _call(write, partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(own)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(own.parent)


def _call(write: Callable[[Path], object], path: Path) -> None:
    try:
        write(path)
    except SafetensorError as error:  # what it raises for errors of the disk
        raise OSError(str(error)) from error


def _replace_remote(path, write) -> None:
    with tempfile.TemporaryDirectory(prefix="beacon_jax_") as folder:
        local = Path(folder) / path.name
        with disk_errors(local):
            _call(write, local)
        places.put_file(path, local)


def replace_text(path: str | os.PathLike, text: str) -> None:
    """`replace_file` with a text in UTF-8."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def create_file(path: Path, data: bytes) -> bool:
    """Makes a file where there is none, False where there is one; of several processes that try one alone makes it.

    One that is killed meanwhile can leave it empty.

    Raises:
      OSError: with the path; also for an address whose storage cannot write only what is new.
    """
    if places.is_remote(path):
        try:
            places.put(path, data, only_new=True)
        except FileExistsError:
            return False
        return True
    with disk_errors(path):
        make_folder(path.parent)
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


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
    own = places.place(path)
    if places.is_folder(own):
        raise IsADirectoryError(f"cannot write {own}: a folder is in its place")
    trial = _partial(own)
    if places.is_remote(own):
        places.put(trial, bytes(2**12))
        with places.remote_errors(trial, "remove"):
            trial.unlink()
        return
    with disk_errors(own):
        make_folder(own.parent)
        if own.exists() and not os.access(own, os.W_OK):
            raise PermissionError("it may not be written")
        try:
            with trial.open("wb") as file:
                file.write(bytes(2**12))
                os.fsync(file.fileno())
            statistics = os.statvfs(own.parent)
            free = statistics.f_bavail * statistics.f_frsize
            if free < size:
                raise OSError(f"up to {size:,} bytes are wanted, and {free:,} are left on its disk")
        finally:
            trial.unlink(missing_ok=True)
