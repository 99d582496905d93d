"""Files of JSON lines that are only added to; whatever stops a run, all lines that count are whole.

Several workers cannot add to one file: of each line they make a file in a folder beside it, in one atomic step. All are
read together, and `collect_lines` puts them into the file once there are no workers.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from beacon_jax.disk import disk_errors, replace_file, sync_folder
from beacon_jax.places import exists, is_remote, listed, read, read_all
from experiments import hosts

APART = ".lines"  # at the end of the folder's name, in place of .jsonl


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, and returns when it has reached the disk; only the first process writes. For an address `add_line`.

    What a run left of an unfinished last line is dropped before.

    Raises:
      OSError: with the path; the file then ends where it ended.
    """
    if hosts.first() and is_remote(path):
        add_line(path, line)  # nothing can be added to what lies there
    elif hosts.first():
        _append(path, json.dumps(line).encode())


def _append(path, line):
    new = not path.exists()
    with disk_errors(path), path.open("ab+") as file:
        end = _end_of_last_line(file)
        if end < file.seek(0, os.SEEK_END):
            logging.warning("%s ends in an unfinished line, which is dropped", path)
            file.truncate(end)
        try:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise
    if new:
        sync_folder(path.parent)


def add_line(path: Path, line: Mapping[str, Any], key: str = "") -> None:
    """Adds a line as a file of its own, beside those of other processes; only the first process writes.

    Args:
      path: the file that the line is for.
      line: of JSON's types.
      key: of which there is one line; where another process has added that one by now, nothing is added.

    Raises:
      OSError: with the path.
    """
    if not hosts.first():
        return
    there = _apart(path)
    if key and any(file.stem.partition("-")[2] == key for file in there):
        return
    number = 1 + max((int(file.stem.partition("-")[0]) for file in there), default=0)
    name = f"{number:06}-{key}" if key else f"{number:06}"
    replace_file(path.with_suffix(APART) / f"{name}.json", lambda file: file.write_bytes(json.dumps(line).encode()))


def collect_lines(folder: Path) -> None:
    """Puts the lines that workers made files of into the files that they are for; for a run that has the folder alone.

    Killed in between, it leaves no line twice. At an address they stay, since nothing can be added to a file there.
    """
    if is_remote(folder):
        return
    for apart in folder.glob(f"*{APART}"):
        path = apart.with_suffix(".jsonl")
        there = set(path.read_bytes().split(b"\n")) if path.exists() else set()
        for file in _apart(path):
            line = file.read_bytes()
            if line not in there:
                _append(path, line)
        shutil.rmtree(apart)


def _apart(path: Path) -> list[Path]:
    """The files of single lines, the latest last; of two processes' at one time the order is that of the names.

    Of one key the first counts.
    """
    found = listed(path.with_suffix(APART), "*.json")
    files: dict[str, Path] = {}
    for file in sorted(file for file in found if re.fullmatch(r"\d+(-.*)?", file.stem)):
        files.setdefault(file.stem.partition("-")[2] or file.stem, file)
    return list(files.values())


def _end_of_last_line(file) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_lines(path: Path, parse: Callable[[Any], Any]) -> list[Any]:
    """parse(line) of every line, as the first process finds them, also those in files of their own; none without any.

    An unfinished last line does not count.

    Raises:
      ValueError: a line that is no JSON, or that `parse` cannot read, with path and number.
    """
    return hosts.from_first(_read_lines(path, parse) if hosts.first() else None)


def _read_lines(path, parse):
    with disk_errors(path, "read"):  # these first: what is collected meanwhile is in the file then
        apart = {line: str(file) for file, line in read_all(_apart(path)).items()}
    lines = []
    if exists(path):
        with disk_errors(path, "read"):
            *complete, _ = read(path).split(b"\n")
        lines = [(line, f"line {number} of {path}") for number, line in enumerate(complete, 1)]
    there = {line for line, _ in lines}
    parsed = []
    for line, place in [*lines, *((line, place) for line, place in apart.items() if line not in there)]:
        try:
            parsed.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{place} is not a result of this version of the script; remove it to go on") from error
    return parsed
