"""Files of JSON lines that are only added to; whatever stops a run, all lines that count are whole."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from beacon_jax.disk import disk_errors, sync_folder
from experiments import hosts


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, and returns when it has reached the disk; only the first process writes.

    What a run left of an unfinished last line is dropped before.

    Raises:
      OSError: with the path; the file then ends where it ended.
    """
    if not hosts.first():
        return
    new = not path.exists()
    with disk_errors(path), path.open("ab+") as file:
        end = _end_of_last_line(file)
        if end < file.seek(0, os.SEEK_END):
            logging.warning("%s ends in an unfinished line, which is dropped", path)
            file.truncate(end)
        try:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise
    if new:
        sync_folder(path.parent)


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
    """parse(line) of every line, as the first process finds them; none where there is no file.

    An unfinished last line does not count.

    Raises:
      ValueError: a line that is no JSON, or that `parse` cannot read, with path and number.
    """
    return hosts.from_first(_read_lines(path, parse) if hosts.first() else None)


def _read_lines(path, parse):
    if not path.exists():
        return []
    with disk_errors(path, "read"):
        *complete, _ = path.read_bytes().split(b"\n")
    parsed = []
    for number, line in enumerate(complete, 1):
        try:
            parsed.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"line {number} of {path} is not a result of this version of the script; remove it to go on"
            ) from error
    return parsed
