"""Leases: which of several workers does what, told by files in a folder that all of them see.

The n-th lease of a name is the file NAME.n, and the latest counts. Its owner renews it, by a counter in it. Who sees it
unchanged for long enough, by his own clock, takes over: he makes NAME.n+1, which one alone can, since a file is made
only where there is none. The owner before finds that file before he writes anything. No file is removed as long as
there are workers, so that no number comes twice, and clocks of different machines are never compared.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path

from absl import logging

from beacon_jax.disk import create_file, replace_text
from beacon_jax.places import listed, read_all

HELD, FREE, FAILED = "held", "free", "failed"
LEAST_SECONDS = 1.0
RENEWALS = 5  # in the time after which a lease ends


def new_owner() -> str:
    """A name for this worker, told to others: host, process and a random part, as process numbers come again."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def check_seconds(seconds: float) -> None:
    """Raises ValueError for fewer seconds than a lease can last."""
    if not seconds >= LEAST_SECONDS:
        raise ValueError(f"a lease lasts {LEAST_SECONDS:g} s or longer, got {seconds:g}")


class LeaseLost(Exception):
    """Another worker has taken over, or the lease is gone."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """The latest lease of a name, as it is in the folder.

    Fields:
      number: counted from 1.
      owner: "" where it was just being made.
      state: HELD, FREE (another may have it) or FAILED (nobody should try again).
      renewal: its counter.
      reason: with FAILED.
    """

    number: int
    owner: str = ""
    state: str = HELD
    renewal: int = 0
    reason: str = ""


class Leases:
    """The leases in a folder, for one worker.

    Attributes:
      owner: the worker's name.
    """

    def __init__(self, folder: Path, owner: str, seconds: float):
        """`seconds`: after which a lease that is not renewed ends. ValueError as `check_seconds`.

        What failed before this worker began may be claimed again.
        """
        check_seconds(seconds)
        self.owner, self._folder, self._seconds = owner, folder, seconds
        self._unchanged: dict[str, tuple[Seen, float]] = {}  # what was seen, and when first
        self._failed_before = {(name, seen.number) for name, seen in self.all().items() if seen.state == FAILED}

    def all(self) -> dict[str, Seen]:
        """{name: its latest lease}."""
        latest: dict[str, int] = {}
        for path in listed(self._folder, "*"):
            if found := re.fullmatch(r"(.+)\.(\d+)", path.name):
                latest[found[1]] = max(latest.get(found[1], 0), int(found[2]))
        paths = {_path(self._folder, name, number): (name, number) for name, number in latest.items()}
        held = read_all(paths)
        return {name: _parsed(held.get(path, b""), number) for path, (name, number) in paths.items()}

    def failed(self) -> dict[str, Seen]:
        """{name: its latest lease} of what a worker could not do since this one began."""
        return {
            name: seen
            for name, seen in self.all().items()
            if seen.state == FAILED and (name, seen.number) not in self._failed_before
        }

    def claim(self, *names: str) -> "Lease | None":
        """A lease of the first of some names that can be had; None where there is none.

        That is where another worker has one that is not known to have ended, or where it failed.
        """
        begun, latest = time.monotonic(), self.all()
        leases = (self._claim(name, latest.get(name, Seen(0, state=FREE)), begun) for name in names)
        return next((lease for lease in leases if lease is not None), None)

    def _claim(self, name: str, seen: Seen, begun: float) -> "Lease | None":
        """`seen`: its latest lease, as it was read after `begun`."""
        if seen.state == FAILED and (name, seen.number) not in self._failed_before:
            return None
        if seen.state == HELD:
            known, since = self._unchanged.get(name, (None, 0.0))
            if known != seen:
                self._unchanged[name] = seen, time.monotonic()
                return None
            # From after the first look to before this one, so that a worker that was stopped meanwhile is not wrong.
            if begun - since < self._seconds:
                return None
        path = _path(self._folder, name, seen.number + 1)
        if not create_file(path, _text(Seen(seen.number + 1, self.owner)).encode()):
            return None
        return Lease(path, name, self.owner, self._seconds, after=seen.owner if seen.state == HELD else "")


class Lease:
    """A lease that this worker has, renewed until the end of a `with`.

    It ends as FAILED with a ValueError, as FREE with anything else.

    Attributes:
      name: of what.
      after: the owner whose lease had ended; "" where nobody had one.
    """

    def __init__(self, path: Path, name: str, owner: str, seconds: float, after: str = ""):
        self.name, self.after, self._path, self._seconds = name, after, path, seconds
        self._own = Seen(int(path.suffix[1:]), owner)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLost where this worker has it no more."""
        following = _path(self._path.parent, self.name, self._own.number + 1)
        held = read_all([following, self._path])
        if following in held:
            owner = _parsed(held[following], self._own.number + 1).owner or "another worker"
            raise LeaseLost(f"{owner} took over, since the lease had not been renewed for {self._seconds:g} s")
        if self._path not in held:
            raise LeaseLost(f"the lease {self._path} was removed")

    def end(self, state: str = FREE, reason: str = "") -> None:
        """Ends it, if this worker still has it."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(LeaseLost):
            self.check()
            self._write(state=state, reason=reason)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, ValueError):
            self.end(FAILED, str(error))
        elif error is None or isinstance(error, LeaseLost):
            self.end()
        else:
            with contextlib.suppress(OSError):  # the error itself counts, which may be of the same disk
                self.end()

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            try:
                self.check()
                self._write(renewal=self._own.renewal + 1)
            except LeaseLost:  # which the worker finds before it writes
                return
            except OSError as error:
                logging.warning("the lease of %s is not renewed: %s", self.name, error)

    def _write(self, **changed) -> None:
        self._own = dataclasses.replace(self._own, **changed)
        replace_text(self._path, _text(self._own))


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.{number}"


def _text(seen: Seen) -> str:
    return json.dumps(dataclasses.asdict(seen))


def _parsed(held: bytes, number: int) -> Seen:
    """What a lease says; where it was only begun, as of nobody."""
    try:
        return Seen(**json.loads(held))
    except (ValueError, TypeError):
        return Seen(number)
