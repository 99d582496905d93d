"""Workers share a table whose folder is in a bucket, behind the interface of S3; needs s3fs and moto[server]."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from beacon_jax.places import place, read_all
from tests.kills import without_times
from tests.worker_kills import ARGUMENTS


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The address of a new bucket; processes that are started reach it, too."""
    for package in ("upath", "s3fs", "moto", "flask"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (own | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "server.log").open("wb") as log:
        with subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log) as server:
            try:
                yield made(f"http://127.0.0.1:{port}/tables")
            finally:
                server.terminate()


def made(url):
    for _ in range(100):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
                return f"s3://{url.rpartition('/')[2]}"
        except OSError:  # it has not started yet
            time.sleep(0.3)
    raise AssertionError("the server does not start")


def start(tmp_path, out, *more):
    command = [sys.executable, "-m", "experiments.tables", *(a.format(out=out) for a in ARGUMENTS), *more]
    command += [f"--compilation_cache={tmp_path}/cache"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def holder(out, processes):
    """Which of the processes has a lease of a group."""
    for held in read_all((out / "leases").glob("*")).values():
        seen = json.loads(held or b"{}")
        for process in processes:
            if seen.get("state") == "held" and f"-{process.pid}-" in seen["owner"]:
                return process
    return None


@pytest.mark.slow
def test_workers_of_which_one_is_killed(bucket, tmp_path):
    with start(tmp_path, tmp_path / "out") as alone:
        _, said = alone.communicate(timeout=600)
        assert alone.returncode == 0, said
    out = place(f"{bucket}/out")
    shared = "--shared", "--lease_seconds=4"
    workers = [start(tmp_path, out, *shared) for _ in range(2)]
    while (killed := holder(out, workers)) is None:
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (other,) = (worker for worker in workers if worker is not killed)
    printed, said = other.communicate(timeout=600)
    assert other.returncode == 0 and "Traceback" not in said, said
    assert "taken over from" in printed and "9 of 9 results computed, 0 by others, 0 were there already" in printed
    lines = [json.loads(line) for line in read_all((out / "results.lines").glob("*.json")).values()]
    local = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_bytes().splitlines()]
    assert sorted(map(text, lines)) == sorted(map(text, local))
    # A single run waits until it is known that the killed worker is gone, and finds all done.
    with start(tmp_path, out) as again:
        printed, said = again.communicate(timeout=600)
    assert again.returncode == 0 and "waiting up to 60 s to see whether" in printed, said
    assert "0 of 9 results computed, 9 were there already, 0 missing" in printed
    assert {path.name for path in out.iterdir()} == {"results.lines", "runs", "table.csv", "table.md", "top1.png"}


def text(line):
    return json.dumps(without_times(line), sort_keys=True)
