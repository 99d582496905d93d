"""Folders of calibration data go with their process, however it ends."""

import contextlib
import signal
import subprocess
import sys

import pytest

from beacon_jax.streams import ActivationStream
from beacon_jax.temporary import TemporaryFolder

OWNER = """
import sys
from beacon_jax.temporary import TemporaryFolder
folder = TemporaryFolder(sys.argv[1])
(folder.path / "0.npy").write_bytes(b"data")
print(folder.path, flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def owner(parent):
    command = [sys.executable, "-c", OWNER, str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        yield process


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    parent, other = tmp_path / "made", tmp_path / "made" / "beacon_jax_other"
    with owner(parent) as living:
        with owner(parent) as killed:
            assert len(list(parent.iterdir())) == 2
            killed.send_signal(signal.SIGKILL)
        assert len(list(parent.iterdir())) == 2
        other.mkdir()  # no folder of ours
        mine = TemporaryFolder(parent)
        (theirs,) = set(parent.iterdir()) - {mine.path, other}
        assert (theirs / "0.npy").read_bytes() == b"data"
        living.communicate("\n", timeout=60)  # it ends
    assert set(parent.iterdir()) == {mine.path, other}
    mine.close()
    mine.close()
    assert set(parent.iterdir()) == {other}


def test_streams_keep_to_a_folder(tmp_path, rng):
    with ActivationStream("disk", folder=tmp_path / "a") as one, ActivationStream("disk", folder=tmp_path / "a") as two:
        one.append([rng.normal(size=3)])
        two.append([rng.normal(size=3)])
        assert len(list((tmp_path / "a").iterdir())) == 2 and len(one[0]) == 1
    assert not list((tmp_path / "a").iterdir())


def test_a_folder_that_cannot_be_or_is_gone(tmp_path, rng):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot make a folder in .*file: .*file is a file, not a folder"):
        TemporaryFolder(tmp_path / "file")
    with ActivationStream("disk", folder=tmp_path / "a") as stream:
        stream.append([rng.normal(size=3)])
        stream._folder.close()
        with pytest.raises(OSError, match=r"cannot write .*1\.npy: No such file"):
            stream.append([rng.normal(size=3)])
        with pytest.raises(OSError, match=r"cannot read back .*0\.npy: No such file"):
            stream[0]
