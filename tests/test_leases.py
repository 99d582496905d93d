"""A lease has one owner at a time, who knows when it is lost."""

import json
import os
import shutil
import threading
import time

import pytest

from experiments.leases import FAILED, LeaseLost, Leases, new_owner

SECONDS = 1.0  # the shortest that there are


def workers(folder, count):
    return [Leases(folder, f"worker{i}", SECONDS) for i in range(count)]


def kill(lease):
    """As a worker that is killed leaves it: nobody renews it, nobody ends it."""
    lease._ended.set()
    lease._thread.join()


def all_claim(own):
    """What each of the workers gets, all at once."""
    barrier, got = threading.Barrier(len(own)), [None] * len(own)

    def claim(i):
        barrier.wait()
        got[i] = own[i].claim("a")

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(len(own))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [lease for lease in got if lease is not None]


def test_one_of_many_gets_it_and_one_of_many_takes_over(tmp_path):
    own = workers(tmp_path, 8)
    begun = time.monotonic()
    (lease,) = all_claim(own)
    assert all_claim(own) == []
    kill(lease)
    os.utime(tmp_path / "a.1", (0, 0))  # no clock of the file system's counts
    got = []
    while not got:
        assert time.monotonic() - begun < 30
        got = all_claim(own)
    assert time.monotonic() - begun >= SECONDS
    (taken,) = got
    assert taken.after == lease._own.owner and taken.name == "a"
    taken.check()
    with pytest.raises(
        LeaseLost, match=rf"^{taken._own.owner} took over, since the lease had not been renewed for 1 s"
    ):
        lease.check()
    lease.end()  # too late, and so without effect
    assert all_claim(own) == []
    taken.end()


def test_it_is_renewed_as_long_as_its_owner_lives(tmp_path):
    one, two = workers(tmp_path, 2)
    with one.claim("a") as lease:
        end = time.monotonic() + 2 * SECONDS
        while time.monotonic() < end:
            assert two.claim("a") is None
            time.sleep(0.05)
        lease.check()
        assert one.all()["a"].renewal >= 3
    with two.claim("a") as lease:  # at once
        assert lease.after == "" and one.claim("a") is None


def test_a_worker_that_was_stopped_does_not_take_over_what_was_renewed_meanwhile(tmp_path):
    """It looks once, is stopped for longer than a lease lasts, and looks again."""
    one, two = workers(tmp_path, 2)
    with one.claim("a") as lease:
        assert two.claim("a") is None
        time.sleep(1.5 * SECONDS)
        assert two.claim("a") is None
        lease.check()


def test_what_failed_is_tried_again_by_later_workers_alone(tmp_path):
    one, two = workers(tmp_path, 2)
    with pytest.raises(ValueError, match="no such thing"), one.claim("a"):
        raise ValueError("no such thing")
    assert one.claim("a") is None and two.claim("a") is None
    assert {name: seen.reason for name, seen in two.failed().items()} == {"a": "no such thing"}
    (later,) = workers(tmp_path, 1)
    assert later.failed() == {}
    with later.claim("a"):
        assert two.failed() == {}
    assert two.all()["a"].number == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, LeaseLost, OSError])
def test_a_worker_that_ends_gives_it_back(tmp_path, error):
    one, two = workers(tmp_path, 2)
    with pytest.raises(error), one.claim("a"):
        raise error
    assert two.all()["a"].state != FAILED
    two.claim("a").end()


def test_leases_that_are_removed_are_lost_and_not_made_again(tmp_path):
    (one,) = workers(tmp_path / "leases", 1)
    with one.claim("a") as lease:
        shutil.rmtree(tmp_path / "leases")
        with pytest.raises(LeaseLost, match=r"the lease .*a\.1 was removed"):
            lease.check()
        time.sleep(0.5 * SECONDS)
    assert not (tmp_path / "leases").exists()


@pytest.mark.parametrize("held", [b"", b'{"own', b"[]", b"\xff", b'{"other": 1}'])
def test_half_a_lease_ends_too(tmp_path, held):
    """Of a worker that was killed while it made it."""
    (tmp_path / "a.3").write_bytes(held)
    (tmp_path / "a.3.partial").write_bytes(b"")
    (one,) = workers(tmp_path, 1)
    assert one.claim("a") is None
    one._unchanged = {name: (seen, since - SECONDS) for name, (seen, since) in one._unchanged.items()}
    one.claim("a").end()
    assert json.loads((tmp_path / "a.4").read_bytes())["owner"] == "worker0"


@pytest.mark.parametrize("seconds", [0, 0.5, -3, float("nan")])
def test_too_short_a_time(tmp_path, seconds):
    with pytest.raises(ValueError, match=rf"a lease lasts 1 s or longer, got {seconds:g}"):
        Leases(tmp_path, new_owner(), seconds)
