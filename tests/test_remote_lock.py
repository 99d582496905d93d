"""Runs that keep each other out of a folder where nothing can be locked."""

import uuid

import pytest

from beacon_jax.places import place, remove_folder
from experiments.remote_lock import RemoteLock

pytest.importorskip("upath")
SECONDS = 1.0


@pytest.fixture
def folder():
    address = f"memory://{uuid.uuid4().hex}"
    yield place(address)
    remove_folder(place(address))


def lock(folder, owner, shared=False):
    return RemoteLock(folder, owner, shared=shared, seconds=SECONDS)


def kill(own):
    own._lease._ended.set()
    own._lease._thread.join()


@pytest.mark.parametrize("shared", [False, True])
def test_one_run_or_workers(folder, shared, capsys):
    """What is alive is known as soon as it renews its lease."""
    first = lock(folder, "first", shared)
    said = "workers with --shared" if shared else "first"
    with pytest.raises(OSError, match=rf"^{folder} is in use by another run \({said}\); wait until it ends, or set"):
        lock(folder, "second", shared=False)
    assert f"{folder}: waiting up to 1 s to see whether first is still at work" in capsys.readouterr().out
    if shared:
        second = lock(folder, "second", True)
        assert not first.alone() and first.held()
        second.close()
        assert first.alone()
    else:
        with pytest.raises(OSError, match="is in use by another run"):
            lock(folder, "second", shared=True)
        assert first.alone()
    first.close()
    lock(folder, "third").close()


@pytest.mark.parametrize("shared", [False, True])
def test_after_runs_that_were_killed(folder, shared):
    first = lock(folder, "first", shared)
    kill(first)
    if shared:
        kill(lock(folder, "other", shared))
    second = lock(folder, "second")
    assert second.held() and not first.held()
    second.close()
    lock(folder, "third", True).close()


def test_workers_after_a_run_that_was_killed(folder):
    run = lock(folder, "run")
    kill(run)
    worker = lock(folder, "worker", True)
    assert worker.held() and worker.alone()
    run._lease._write(renewal=7)  # it was only stopped
    assert not worker.held()
    worker.close()
