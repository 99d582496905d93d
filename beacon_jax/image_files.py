"""Files below a folder or inside a zip file, alike: listed folder by folder, and read whole within limits."""

import functools
import os
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from beacon_jax.places import exists, is_folder, is_remote, place, remote_errors
from beacon_jax.preprocessing import UnreadableImageError, decoded_formats

MAX_FILE_BYTES = 2**28  # of one image file, as it lies or unpacked from a zip file
MAX_ENTRIES = 20_000_000  # of a zip file; each takes about a kilobyte of memory


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The endings, in lower case and with the dot, of files that PIL decodes by itself."""
    from PIL import Image

    kinds = decoded_formats()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in kinds)


def is_image(name: str) -> bool:
    """Whether a file is called as an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def join(folder: str, name: str) -> str:
    """The path of a name in a folder, "" being the root."""
    return f"{folder}/{name}" if folder else name


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class FolderFiles:
    """The files below a folder of the disk, links followed."""

    def __init__(self, root: Path):
        self._root = root

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder ("" is the root), sorted, without hidden ones.

        Raises:
          ValueError: a link to a folder that it lies in itself.
          OSError: a folder that cannot be listed.
        """
        folders, files = [], []
        with os.scandir(self._root / folder) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                if not entry.is_dir():
                    files.append(entry.name)
                    continue
                if entry.is_symlink():
                    self._check_loop(folder, entry.path)
                folders.append(entry.name)
        return sorted(folders), sorted(files)

    def _check_loop(self, folder: str, link: str) -> None:
        target = Path(os.path.realpath(link))
        above = [self._root / folder, *(self._root / p for p in PurePosixPath(folder).parents), self._root]
        if any(Path(os.path.realpath(path)).is_relative_to(target) for path in above):
            raise ValueError(f"{link} is a link to {target}, a folder that it lies in itself; remove the link")

    def read(self, name: str) -> bytes:
        """The bytes of a file. OSError where it cannot be read, UnreadableImageError where it is too large."""
        with open(self._root / name, "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)
            return file.read(MAX_FILE_BYTES)


class RemoteFiles:
    """The files below an address (see places.py), as `FolderFiles` gives those of a folder."""

    def __init__(self, root: Any):
        self._root = root

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder ("" is the root), sorted, without hidden ones."""
        own = join(self._root.path.rstrip("/"), folder) if folder else self._root.path
        folders: list[str] = []
        files: list[str] = []
        with remote_errors(self._root, "list"):
            for entry in self._root.fs.ls(own, detail=True):
                name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
                # A bucket can have an object that stands for the folder itself.
                if not _hidden(name) and entry["name"].strip("/") != own.strip("/"):
                    (folders if entry["type"] == "directory" else files).append(name)
        return sorted(folders), sorted(files)

    def read(self, name: str) -> bytes:
        """The bytes of a file. OSError where it cannot be read, UnreadableImageError where it is too large."""
        path = self._root / name
        with remote_errors(path, "read"):
            size = self._root.fs.size(path.path)
        _check_size(size)
        with remote_errors(path, "read"):
            return self._root.fs.cat_file(path.path)


class Listed:
    """The listings of other files, kept so that each folder is listed once."""

    def __init__(self, files):
        self.children = functools.cache(files.children)


class ZipFiles:
    """The files inside a zip file, as `FolderFiles` gives those of a folder.

    Raises ValueError for a file that is no zip file, is damaged, or has too many entries.
    """

    def __init__(self, path: Path):
        """`path`: also an address, of which only what is wanted is read."""
        count = _entry_count(path)
        try:
            self._zip = zipfile.ZipFile(path.open("rb") if is_remote(path) else path)
        except OSError:
            raise
        except Exception as error:  # zipfile raises whatever damaged bytes lead to
            raise ValueError(
                f"{path} is neither a folder nor a readable zip file ({error}); is it truncated?"
            ) from error
        if (len(self._zip.infolist()) - count) % 2**16:
            raise ValueError(f"{path} is damaged: it has {len(self._zip.infolist())} entries and says {count}")
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self._children: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for entry in self._zip.infolist():
            # Some programs on Windows write backslashes.
            parts = [part for part in entry.filename.replace("\\", "/").split("/") if part not in ("", ".")]
            if not parts or any(map(_hidden, parts)):
                continue
            is_folder = entry.filename.endswith(("/", "\\"))
            folder = self._add_folders(parts if is_folder else parts[:-1])
            if not is_folder:
                self._children[folder][1].add(parts[-1])
                self._entries["/".join(parts)] = entry

    def _add_folders(self, parts: list[str]) -> str:
        path = "/".join(parts)
        if path not in self._children:
            parent = self._add_folders(parts[:-1])
            self._children[parent][0].add(parts[-1])
            self._children[path] = (set(), set())
        return path

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder ("" is the root), sorted, without hidden ones."""
        folders, files = self._children[folder]
        return sorted(folders), sorted(files)

    def read(self, name: str) -> bytes:
        """The unpacked bytes of a file.

        Raises:
          UnreadableImageError: too large, damaged, encrypted, or compressed in a way that is not read.
        """
        entry = self._entries[name]
        _check_size(entry.file_size)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a limit, whatever size the entry says that it has.
            raise UnreadableImageError("an entry of a zip file must be stored or deflated")
        try:
            with self._zip.open(entry) as file:
                return file.read(entry.file_size + 1)  # with a number, so that no more than it is unpacked
        except MemoryError:
            raise
        except Exception as error:  # as above, OSError for places that the file does not have included
            raise UnreadableImageError(str(error).split("\n")[0] or type(error).__name__) from error


def open_files(root: str) -> FolderFiles | ZipFiles | RemoteFiles:
    """The files of a folder or zip file, also at an address (see places.py).

    FileNotFoundError where there is none, ValueError for a damaged one.
    """
    path = place(root)
    if not root or not exists(path):
        raise FileNotFoundError(f"no image folder or zip file at {root!r}; set the data's root")
    if not is_folder(path):
        return ZipFiles(path)
    return RemoteFiles(path) if is_remote(path) else FolderFiles(path)


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UnreadableImageError(f"{size} bytes, more than the {MAX_FILE_BYTES} that an image file may have")


def _entry_count(path: Path) -> int:
    """The number of entries that a zip file says it has, at least its lower 16 bits; 0 where it is none.

    Raises ValueError for too many, which zipfile would read all at once.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - 2**16 - 22 - 20))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            return 0
        (count,) = struct.unpack_from("<H", tail, end + 10)
        if count == 0xFFFF and tail[max(0, end - 20) :].startswith(b"PK\6\7"):  # the number stands in a longer record
            (place,) = struct.unpack_from("<Q", tail, end - 12)
            file.seek(min(place, start + end))
            record = file.read(40)
            if len(record) == 40 and record.startswith(b"PK\6\6"):
                (count,) = struct.unpack_from("<Q", record, 32)
    if count > MAX_ENTRIES:
        raise ValueError(f"{path} has {count} entries, more than the {MAX_ENTRIES} that a zip file of images may have")
    return count
