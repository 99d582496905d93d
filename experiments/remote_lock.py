"""What locks.py does for a local folder, by leases, where nothing can be locked: in a bucket."""

import time
from typing import Any

from experiments.leases import HELD, LeaseLost, Leases, Seen
from experiments.locks import SHARED, in_use

FOLDER = "runs"
SECONDS = 60.0  # after which a run that does not renew its lease has ended
RUN, WORKER = "run", "worker-"


class RemoteLock:
    """The lease that a run has of its folder, or of this one of several workers. OSError where another run has it.

    Each first claims its own, then looks for others', so that of two that begin at one time at least one sees the
    other. It waits until a lease that it finds is renewed, or known to have ended.
    """

    def __init__(self, folder: Any, owner: str, *, shared: bool = False, seconds: float | None = None):
        """`folder`: of the run, an address; `owner`: see leases.new_owner; `seconds`: None for SECONDS."""
        self._folder, self._shared, self._seconds = folder, shared, seconds or SECONDS
        self._leases = Leases(folder / FOLDER, owner, self._seconds)
        self._ended: dict[str, Seen] = {}  # what a killed run left, which says for ever that it is held
        own = f"{WORKER}{owner}" if shared else RUN
        while (lease := self._leases.claim(own)) is None:
            self._wait_for_the_end_of([own])
        self._lease = lease
        try:
            self._wait_for_the_end_of([name for name in self._leases.all() if name != own and shared == (name == RUN)])
        except BaseException:
            lease.end()
            raise

    def _wait_for_the_end_of(self, names: list[str]) -> None:
        """Returns when these leases are known to have ended. OSError as soon as one is renewed."""
        first = {name: seen for name, seen in self._leases.all().items() if name in names and seen.state == HELD}
        end = time.monotonic() + self._seconds
        if first:
            owners = ", ".join(seen.owner or "another run" for seen in first.values())
            print(f"{self._folder}: waiting up to {self._seconds:g} s to see whether {owners} is still at work")
        while first and time.monotonic() < end:
            time.sleep(self._seconds / 50)
            now = self._leases.all()
            for name, seen in list(first.items()):
                if now[name].state != HELD:
                    del first[name]
                elif now[name] != seen:
                    owner = SHARED if name.startswith(WORKER) else now[name].owner
                    raise OSError(in_use(self._folder, owner, "config.out"))
        self._ended |= first

    def held(self) -> bool:
        """Whether this run still has its lease, and no single run took a worker that was stopped for a dead one."""
        try:
            self._lease.check()
        except LeaseLost:
            return False
        run = self._leases.all().get(RUN) if self._shared else None
        return run is None or run.state != HELD or run == self._ended.get(RUN)

    def alone(self) -> bool:
        """Whether this run has its lease, and of workers this is the last."""
        others = self._leases.all().items() if self._shared else ()
        last = not any(seen.state == HELD for name, seen in others if name not in (self._lease.name, RUN))
        return last and self.held()

    def close(self) -> None:
        """Gives the lease back."""
        self._lease.end()
