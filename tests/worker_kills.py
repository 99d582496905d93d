"""Workers that share a table, killed and stopped at random: python -m tests.worker_kills --count=20

Three of them compute the table of the digits model. Each is killed now and then, in one of the ways of kills.py, and
another is started in its place; one that holds a lease is stopped until it has been taken over, and goes on then. What
is left must be what one run alone leaves: every line, bit for bit, and file the same but for times, and nothing more.
"""

import json
import os
import random
import signal
import socket
import tempfile
import time
from pathlib import Path

from experiments import tables
from tests import kills

ARGUMENTS = [
    "--config=configs/digits.py",
    "--config.data.calibration_images=64",
    "--config.data.test_images=100",
    "--config.quant.layers=blocks_[01]/.*",
    "--config.table.rows=('comq','beacon_ec')",
    "--config.table.alphabets=('2','3')",
    "--config.norm_tuning.enabled=True",
    "--config.norm_tuning.steps=2",
    "--config.out={out}",
]
LEASE = 2
SHARED = ["--shared", f"--lease_seconds={LEASE}"]
WORKERS = 3
LOST = "what this worker was computing"  # a part of what one says whose lease was lost
LONGEST = 600  # seconds, for all of it


class Workers:
    """The processes of workers that are alive, and the files that they write to."""

    def __init__(self, out: Path, rng: random.Random):
        self.out, self._rng = out, rng
        self.logs: dict[int, Path] = {}
        self.kills, self.all_logs = 0, []
        self.stopped: int | None = None  # one that was stopped, and has not ended since
        self.noticed = False  # whether such a one has found that its lease was lost

    def start(self, kill: bool) -> None:
        """Starts one, which with `kill` is killed at one of its own steps unless it ends before."""
        log = self.out.with_name(f"{self.out.name}.log{len(self.all_logs)}")
        self.all_logs.append(log)
        number, share, how = self._rng.randint(1, 80), self._rng.random(), self._rng.choice(("event", "write"))

        def prepare():
            if kill and how == "event":
                kills.kill_before(self.out, number)
            elif kill:
                kills.kill_within_write(1 + number % 24, share)

        self.logs[kills.start(tables.main, [*ARGUMENTS, *SHARED], self.out, log, prepare)] = log

    def ended(self) -> int:
        """How many have ended since the last call. AssertionError where one ended with an error or a traceback."""
        count = 0
        for process, log in list(self.logs.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                count, code, said = count + 1, os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8")
                assert code in (0, -signal.SIGKILL) and "Traceback" not in said, (code, said)
                self.kills += code != 0
                del self.logs[process]
                if process == self.stopped:
                    self.stopped, self.noticed = None, LOST in said
                    assert self.noticed or code != 0, "a worker did not notice that its lease was lost"
        return count

    def holder(self) -> tuple[int, str] | None:
        """(process, file of the lease) of one that has a lease."""
        for path in self.out.glob("leases/*"):
            try:
                held = json.loads(path.read_bytes())
            except (ValueError, FileNotFoundError):
                continue
            following = path.with_suffix(f".{held['number'] + 1}")
            for process in self.logs:
                if held["owner"].startswith(f"{socket.gethostname()}-{process}-") and held["state"] == "held":
                    if not following.exists():
                        return process, path
        return None

    def stop_one(self) -> bool:
        """Stops one that has a lease until another has taken over. False where none had, or it was just ending."""
        holder = self.holder()
        if holder is None:
            return False
        process, path = holder
        os.kill(process, signal.SIGSTOP)
        following = path.with_suffix(f".{int(path.suffix[1:]) + 1}")
        held = path.exists() and json.loads(path.read_bytes() or b"{}").get("state") == "held"
        end = time.monotonic() + 60
        while held and not following.exists() and time.monotonic() < end:
            for _ in range(self.ended()):
                self.start(kill=False)
            time.sleep(0.1)
        if process in self.logs:  # else it was just being killed
            os.kill(process, signal.SIGCONT)
            self.stopped = process if held else None
        assert following.exists() or not held, "nobody took over from a worker that was stopped"
        return held


def lines(out: Path) -> set[bytes]:
    """The lines of results that are there."""
    found = set()
    for path in out.glob("results.lines/*.json"):
        try:
            found.add(path.read_bytes())
        except FileNotFoundError:  # the last worker has just collected them
            continue
    return found | kills.whole_lines(out)


def share_table(out: Path, rng: random.Random, count: int) -> Workers:
    """Workers compute a table to its end; about `count` are killed on the way, and one is stopped.

    Where that one is killed before it can notice, another is stopped as well.
    """
    workers, stopped, seen = Workers(out, rng), False, set()
    end = time.monotonic() + LONGEST
    for i in range(WORKERS):
        workers.start(kill=i < count)
    while workers.logs:
        assert time.monotonic() < end, "it takes too long"
        time.sleep(rng.uniform(0.02, 0.3))
        if workers.stopped is None and not workers.noticed:
            stopped = workers.stop_one() or stopped
        if workers.logs and workers.kills < count and rng.random() < 0.05:
            os.kill(rng.choice(list(workers.logs)), signal.SIGKILL)
        before = workers.kills
        workers.ended()
        while workers.kills > before and len(workers.logs) < WORKERS:
            workers.start(kill=workers.kills < count and rng.random() < 0.5)
        seen |= lines(workers.out)
    assert stopped and seen <= lines(workers.out), "a line is lost"
    return workers


def run(count: int, folder: Path, seed: int) -> str:
    """Kills workers of one table after another. AssertionError where something is lost, computed otherwise, or left."""
    rng, total, taken = random.Random(seed), 0, 0
    log = folder / "log"
    assert kills.wait(kills.start(tables.main, ARGUMENTS, folder / "whole", log)) == 0, log.read_text("utf-8")
    expected = kills.left(folder / "whole")
    while total < count:
        workers = share_table(folder / f"shared{total}", rng, min(6, count - total))
        total += workers.kills
        found = kills.left(workers.out)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        assert [path for path in found if found[path] != expected[path]] == []
        keys = [json.loads(line)["key"] for line in (workers.out / "results.jsonl").read_bytes().splitlines()]
        assert len(set(keys)) == len(keys), "a result is there twice"
        text = "".join(path.read_text("utf-8") for path in workers.all_logs)
        taken += text.count("taken over from")
        print(f"{total} kills", flush=True)
    return f"{total} kills, {taken} leases taken over: nothing lost, computed otherwise or left"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        given = kills.command_line(__doc__, 20).parse_args()
        print(run(given.count, Path(temporary), given.seed))
