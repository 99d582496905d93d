"""Workers that share a folder: what each gets to do, and what each leaves alone."""

import contextlib
import dataclasses
import json
import time

import pytest

from beacon_jax.disk import replace_text
from experiments.grid import Cell
from experiments.lines import read_lines
from experiments.run_folder import RunFolder
from experiments.workers import Workers

CELLS = [
    Cell(f"row {i}", "2", 0, 8, {"method": "rtn"}, tuning, f"settings {i} {tuning}", f"quantized {i}", {"jax": "1"})
    for i in range(3)
    for tuning in (None, {"steps": 1})
]


class Table:
    """Results that workers share; each has its own view of them."""

    def __init__(self, folder, count, *, wait=True, reuse="same", cells=CELLS):
        self.there, self.cells = {}, cells
        self.stack = contextlib.ExitStack()
        self.folders = [self.stack.enter_context(RunFolder(folder, shared=True)) for _ in range(count)]
        self.workers = [Workers(own, 1.0, wait, reuse) for own in self.folders]
        self.results = [{} for _ in range(count)]

    def work(self, i):
        return self.workers[i].work(self.cells, self.results[i], lambda: self.there)


def finish(table, group, lease, i):
    with lease:
        own = {cell.key: f"by {i}" for cell in group}
        table.there |= own
        table.results[i] |= own


def test_each_group_is_done_once_and_all_wait_for_the_last(tmp_path, capsys):
    table = Table(tmp_path, 2)
    with table.stack:
        first, second = table.work(0), table.work(1)
        groups = [next(work) for work in (first, second, first)]
        assert [[cell.title for cell in group] for group, _ in groups] == [[f"row {i}"] * 2 for i in range(3)]
        finish(table, *groups[0], 0)
        finish(table, *groups[2], 0)
        with groups[1][1]:
            table.workers[0]._wait = False
            assert list(first) == []
            said = (
                f"nothing is left to claim; 2 of 6 results are being computed by {table.folders[1].worker}: not waiting"
            )
            assert capsys.readouterr().out.startswith(said)
        finish(table, groups[1][0], contextlib.nullcontext(), 1)
        assert list(table.work(0)) == list(second) == []
        assert table.workers[0].others == 2 and table.workers[1].others == 4
        assert table.results[0] == table.results[1] == table.there


def test_the_group_of_a_dead_worker_is_taken_over(tmp_path, capsys):
    table = Table(tmp_path, 2, cells=CELLS[:2])
    with table.stack:
        _, lease = next(table.work(0))
        lease._ended.set()
        lease._thread.join()
        table.there[CELLS[0].key] = "by 0"  # of two
        begun = time.monotonic()
        ((group, taken),) = [(group, own) for group, own in table.work(1) if finish(table, group, own, 1) is None]
        assert time.monotonic() - begun >= 1 and group == [CELLS[1]] and taken.after == table.folders[0].worker
        said = capsys.readouterr().out.splitlines()
        assert said[0].endswith(f"by {table.folders[0].worker}: waiting for them (--nowait ends instead)")
        assert said[1] == (
            f"row 0 + norm tuning, 2 bit: taken over from {taken.after}, who did not renew the lease for 1 s"
        )


def test_what_one_could_not_do_no_other_tries(tmp_path):
    table = Table(tmp_path, 2, cells=CELLS[:4])
    with table.stack:
        first, second = table.work(0), table.work(1)
        group, lease = next(first)
        with pytest.raises(ValueError, match="no"), lease:
            raise ValueError("no")
        other, lease = next(second)
        assert (group[0].title, other[0].title) == ("row 0", "row 1")
        finish(table, other, lease, 1)
        assert list(second) == list(first) == []
        assert (table.workers[0].failed, table.workers[1].failed) == ([], ["row 0, 2 bit: no"])


@pytest.mark.parametrize(("reuse", "count"), [("same", 2), ("any", 1)])
def test_other_machines_of_which_any_will_do(tmp_path, reuse, count):
    """What is made otherwise is another result, unless any is taken."""
    table = Table(tmp_path, 2, cells=CELLS[:1], reuse=reuse, wait=False)
    with table.stack:
        got = list(table.work(0))
        table.cells = [dataclasses.replace(CELLS[0], made_with={"jax": "2"})]
        got += list(table.work(1))
        assert len(got) == count
        for _, lease in got:
            lease.end()


def test_workers_and_single_runs_keep_each_other_out(tmp_path):
    said = f"{tmp_path} is in use by another run"
    with RunFolder(tmp_path, shared=True), RunFolder(tmp_path, shared=True):
        with pytest.raises(OSError, match=rf"{said} \(workers with --shared\); wait until it ends, or set another"):
            RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path), pytest.raises(OSError, match=rf"{said} \(process \d+ on .*\); wait until it ends"):
        RunFolder(tmp_path, shared=True).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("finished", [True, False])
def test_the_last_worker_cleans_what_is_finished(tmp_path, finished):
    one, two = (RunFolder(tmp_path, shared=True) for _ in range(2))
    with one:
        with two:
            for folder, key in ((one, "b"), (two, "a"), (one, "a")):
                folder.append("results.jsonl", {"key": key, "by": folder.worker}, key)
                folder.when_last(lambda: finished)
            (tmp_path / "table.md.killed.partial").write_bytes(b"half")
            two.activations.mkdir(parents=True)
            (tmp_path / "leases").mkdir()
            replace_text(tmp_path / "leases" / "a.1", "{}")
            one.activations.joinpath("data").mkdir()
        assert len(list((tmp_path / "results.lines").iterdir())) == 2 and one.activations.exists()
        one.check()
    names = {path.name for path in tmp_path.iterdir()}
    if finished:
        assert names == {"results.jsonl"}
    else:
        assert names == {"results.lines", "activations", "leases", "table.md.killed.partial"}
    lines = [{"key": "b", "by": one.worker}, {"key": "a", "by": two.worker}]
    assert read_lines(tmp_path / "results.jsonl", dict) == lines
    with RunFolder(tmp_path) as folder:  # a single run cleans whatever there is
        assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "run.lock"}
        folder.append("results.jsonl", {"key": "c"})
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_bytes().splitlines()] == [
        *lines,
        {"key": "c"},
    ]
