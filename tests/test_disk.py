import errno
import os
import re

import numpy as np
import pytest
from safetensors import SafetensorError

from beacon_jax import save_params
from beacon_jax.disk import replace_file, replace_text, try_place

FULL = OSError(errno.ENOSPC, "No space left on device")  # as a disk that is full says it, without a path


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device")])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "a" / "b.txt"
    replace_text(path, "einé")
    assert path.read_bytes() == "einé".encode()

    def broken(partial):
        partial.write_bytes(b"half")
        raise error

    with pytest.raises(OSError, match=f"^cannot write {re.escape(str(path))}: .*No space left on device"):
        replace_file(path, broken)
    assert path.read_bytes() == "einé".encode() and [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("taken", r"cannot write .*taken: a folder is in its place"),
        ("file/out", r"cannot write .*file/out: .*file is a file, not a folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, place, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=message):
        try_place(tmp_path / place)
    with pytest.raises(OSError, match=r"^cannot write .*(file/out|taken)"):
        save_params(tmp_path / place, {"a": np.ones(2)})


def test_a_place_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"here")
    for name in ("a", "b/c"):
        try_place(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == b"here" and list((tmp_path / "b").iterdir()) == []
    with pytest.raises(OSError, match=r"cannot write .*: up to 9,\d{3}.* bytes are wanted, and .* are left"):
        try_place(tmp_path / "a", size=9_000_000_000_000_000_000)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(FULL))
    with pytest.raises(OSError, match=r"cannot write .*/d: No space left on device"):
        try_place(tmp_path / "d")
    assert not list(tmp_path.glob("*.partial"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(PermissionError, match=r"cannot write .*/d: Read-only file system"):
        try_place(tmp_path / "d")
