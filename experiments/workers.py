"""Several workers, on any machines, that share a table: each claims what no other is at work on, until all is done."""

import time
from collections.abc import Callable, Iterator

import jax

from experiments import hosts
from experiments.grid import Cell, grouped
from experiments.leases import Lease, Leases, check_seconds
from experiments.results import Result
from experiments.run_folder import LEASES, RunFolder

MOST_POLL = 10.0  # seconds between two looks for something to claim


class Alone:
    """In place of a lease, for a run that has its folder for itself."""

    def check(self) -> None:
        """Nothing can be lost."""

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_):
        return None


class Workers:
    """This worker among those that share a folder.

    Attributes:
      failed: what others could not compute, and why.
      others: how many results others have added.
    """

    def __init__(self, folder: RunFolder, seconds: float, wait: bool, reuse: str):
        """`seconds`: see Leases; `wait`: for what others do, when nothing else is left; `reuse`: of the config."""
        self._leases, self._seconds = Leases(folder.path / LEASES, folder.worker, seconds), seconds
        self._wait, self._reuse, self._owner = wait, reuse, folder.worker
        self.failed: list[str] = []
        self.others = 0

    def work(
        self, grid: list[Cell], results: dict[str, Result], read: Callable[[], dict[str, Result]]
    ) -> Iterator[tuple[list[Cell], Lease]]:
        """Yields groups of cells with a lease of each, to be entered, until all results are there or failed.

        Args:
          grid: the cells.
          results: those that are there, to which others' are added.
          read: gives the results that are there by now.
        """
        said = None
        while True:
            self._add_others(results, read)
            groups = {self._name(group): group for group in grouped(c for c in grid if c.key not in results)}
            failed = self._leases.failed()
            others = [name for name, seen in failed.items() if name in groups and seen.owner != self._owner]
            self.failed = [f"{title(groups[name])}: {failed[name].reason}" for name in others]
            groups = {name: group for name, group in groups.items() if name not in failed}
            if not groups:
                return
            lease = self._leases.claim(*groups)
            if lease is not None:
                said = None
                yield from self._claimed(grid, groups, lease, results, read)
                continue
            held = sorted({seen.owner for name, seen in self._leases.all().items() if name in groups} - {""})
            if held != said:
                count, by = sum(map(len, groups.values())), ", ".join(held) or "a worker that is just starting"
                then = "waiting for them (--nowait ends instead)" if self._wait else "not waiting for them"
                print(f"nothing is left to claim; {count} of {len(grid)} results are being computed by {by}: {then}")
                said = held
            if not self._wait:
                return
            time.sleep(min(self._seconds / 10, MOST_POLL))

    def _claimed(self, grid, groups, lease, results, read) -> Iterator[tuple[list[Cell], Lease]]:
        """The group of a lease without what was finished before it was claimed."""
        self._add_others(results, read)
        missing = [cell for cell in groups[lease.name] if cell.key not in results]
        if not missing:
            lease.end()
            return
        if lease.after:
            print(
                f"{title(missing)}: taken over from {lease.after}, who did not renew the lease for {self._seconds:g} s"
            )
        yield missing, lease

    def _add_others(self, results, read) -> None:
        before = len(results)
        results.update(read())
        self.others += len(results) - before

    def _name(self, group: list[Cell]) -> str:
        """Of its lease: with reuse "any" also those that are made otherwise need not be made twice."""
        return group[0].quant_settings if self._reuse == "any" else group[0].quant_key


def check_shared(seconds: float) -> None:
    """Raises ValueError for a lease that is too short, and where this worker is of several processes itself."""
    check_seconds(seconds)
    if not hosts.alone():
        raise ValueError(f"--shared is for workers of one process each, and this one is of {jax.process_count()}")


def title(group: list[Cell]) -> str:
    """What a group of cells is, for a sentence."""
    return f"{group[0].row}, {group[0].alphabet} bit" if group[0].quant else group[0].row
