import subprocess
import sys

import pytest

from tests.kills import SCRIPTS


@pytest.mark.slow
def test_killed_runs_lose_nothing():
    """In a process of its own, which has not used JAX yet and so can be forked."""
    done = subprocess.run([sys.executable, "-m", "tests.kills", "--count=15"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = f"kills of {', '.join(SCRIPTS)}: nothing lost, mixed or left"
    assert done.stdout.splitlines()[-1].endswith(said)


@pytest.mark.slow
def test_killed_and_stopped_workers_leave_what_one_run_leaves():
    done = subprocess.run([sys.executable, "-m", "tests.worker_kills", "--count=6"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("leases taken over: nothing lost, computed otherwise or left")
