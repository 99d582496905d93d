"""Where files lie: on the local disk, or, by an address such as gs://bucket/folder, wherever fsspec reaches.

An address is a universal_pathlib.UPath, used as a pathlib.Path. What differs is here and in disk.py: files there are
written whole, by one request, and are never added to; nothing is locked; what is large is copied here to be read.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://")
# Have no folders: with a name those that it seems to lie in are there.
_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "hf", "memory"}


def place(path: str | os.PathLike) -> Any:
    """A local path as a Path, an address as a UPath; what is one already stays.

    Raises:
      ImportError: the package for such addresses is not installed.
      ValueError: an address of a kind that fsspec does not know.
    """
    if isinstance(path, Path):
        return path
    if hasattr(path, "storage_options"):
        return _local_if_it_is(path)
    text = os.fspath(path)
    if not _ADDRESS.match(text):
        return Path(text)
    try:
        from upath import UPath
    except ImportError as error:
        raise ImportError(f"{text} is no local path; for such addresses: pip install beacon-jax[remote]") from error
    try:
        # What other processes write must be seen at once.
        found = UPath(text, use_listings_cache=False)
        found.fs  # noqa: B018 (made here, so that what it lacks is said here)
    except ImportError as error:
        raise ImportError(f"{text} cannot be reached: {error}") from error
    except ValueError as error:
        raise ValueError(f"{text} is an address of a kind that is not known ({error})") from error
    return _local_if_it_is(found)


def _local_if_it_is(path: Any) -> Any:
    return Path(path.path) if path.protocol in ("file", "local") else path


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is an address, not a local path."""
    return not isinstance(place(path), Path)


def local_only(path: str, what: str) -> Path:
    """A local path. ValueError for an address: `what` must lie on a local disk."""
    if is_remote(path):
        raise ValueError(f"{what} must be on a local disk, got {path}")
    return Path(path)


@contextlib.contextmanager
def remote_errors(path: Any, doing: str) -> Iterator[None]:
    """What the packages for the several kinds of storage raise, as OSError, which says what went wrong with which path.

    FileNotFoundError, FileExistsError and PermissionError keep their class.
    """
    try:
        yield
    except Exception as error:  # of botocore, aiohttp, google.auth and others
        kinds = FileNotFoundError, FileExistsError, PermissionError
        kind = next((kind for kind in kinds if isinstance(error, kind)), OSError)
        raise kind(f"cannot {doing} {path}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).split()])


def _asking(path: Any) -> contextlib.AbstractContextManager:
    return remote_errors(path, "read") if is_remote(path) else contextlib.nullcontext()


def exists(path: Any) -> bool:
    """Whether there is a file or a folder. OSError with the path where that cannot be told."""
    with _asking(path):
        return path.exists()


def is_file(path: Any) -> bool:
    """Whether there is a file. OSError with the path where that cannot be told."""
    with _asking(path):
        return path.is_file()


def is_folder(path: Any) -> bool:
    """Whether there is a folder. OSError with the path where that cannot be told."""
    with _asking(path):
        return path.is_dir()


def listed(folder: Any, pattern: str) -> list[Any]:
    """What is in a folder and fits a pattern of `Path.glob`, in no order. OSError with the path."""
    with _asking(folder):
        return list(folder.glob(pattern))


def stat(path: Any) -> Any:
    """What is known of a file, as os.stat says it: st_size, st_mtime_ns. OSError with the path."""
    with _asking(path):
        return path.stat()


def read(path: Any) -> bytes:
    """All of a file. OSError with the path."""
    with _asking(path):
        return path.read_bytes()


def put(path: Any, data: bytes, *, only_new: bool = False) -> None:
    """Writes an object whole. With `only_new` FileExistsError where there is one, which the storage itself decides.

    Raises:
      OSError: with the path; also where a storage has no way to write only what is new.
    """
    _make_folder(path.parent)
    with remote_errors(path, "write"):
        path.fs.pipe_file(path.path, data, **({"mode": "create"} if only_new else {}))


def put_file(path: Any, local: Path) -> None:
    """Writes a local file as an object, whole. OSError with the path."""
    _make_folder(path.parent)
    with remote_errors(path, "write"):
        path.fs.put_file(str(local), path.path)


def _make_folder(folder: Any) -> None:
    if folder.protocol not in _FLAT:
        with remote_errors(folder, "make"):
            folder.fs.makedirs(folder.path, exist_ok=True)


def read_all(paths: Iterable[Any]) -> dict[Any, bytes]:
    """{path: its bytes} without those that are gone; addresses are read several at a time. OSError with a path."""
    found, remote = {}, {}
    for path in paths:
        if is_remote(path):
            remote[path.path] = path
            continue
        with contextlib.suppress(FileNotFoundError):
            found[path] = read(path)
    if remote:
        first = next(iter(remote.values()))
        with remote_errors(first.parent, "read"):
            got = first.fs.cat(list(remote), on_error="return")
            got = got if isinstance(got, dict) else {next(iter(remote)): got}
            for name, data in got.items():
                if isinstance(data, bytes):
                    found[remote[name]] = data
                elif not isinstance(data, FileNotFoundError):
                    raise data
    return found


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[Path]:
    """A local file with the same bytes, inside: the file itself, or a temporary copy of what lies elsewhere.

    Raises:
      FileNotFoundError: there is none.
      OSError: with the path, where it cannot be read.
    """
    own = place(path)
    if isinstance(own, Path):
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="beacon_jax_") as folder:
        local = Path(folder) / (own.name or "file")
        with remote_errors(own, "read"):
            own.fs.get_file(own.path, str(local))
        yield local


def remove_folder(path: Any) -> None:
    """Removes a folder and all in it, if it is there; what cannot be removed stays."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError), remote_errors(path, "remove"):
        path.fs.rm(path.path, recursive=True)
