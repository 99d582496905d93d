import errno
import json
import os

import pytest

from experiments.lines import append_line, read_lines

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_lines_are_added_and_read(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path, dict) == []
    for i in range(3):
        append_line(path, {"ü": i})
    assert read_lines(path, lambda line: line["ü"]) == [0, 1, 2]


@pytest.mark.parametrize("half", ['{"a": 1', "x" * 200_000, "\N{GREEK SMALL LETTER ALPHA}"[0:1]])
def test_a_half_line_does_not_count_and_does_not_spoil_the_next(tmp_path, half):
    path = tmp_path / "lines.jsonl"
    whole = '{"a": 0}\n'
    for before in (whole, ""):
        path.write_bytes(before.encode() + half.encode()[:-1])
        assert len(read_lines(path, dict)) == len(before) // len(whole)
        append_line(path, {"a": 2})
        assert path.read_text() == before + '{"a": 2}\n'


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 0})

    def full(_):
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=rf"cannot write {path}: No space left on device"):
            append_line(path, {"a": 1})
    assert path.read_text() == '{"a": 0}\n'
    append_line(path, {"a": 2})
    assert read_lines(path, lambda line: line["a"]) == [0, 2]


@pytest.mark.parametrize("damaged", [b"", b'{"b": 1}', b"[]", b'{"a": ', b'{"a": "\xff"}'])
def test_bad_lines_are_named(tmp_path, damaged):
    path = tmp_path / "lines.jsonl"
    good = json.dumps({"a": 1}).encode()
    path.write_bytes(b"\n".join([good, damaged, good, b""]))
    with pytest.raises(ValueError, match=rf"line 2 of {path} is not a result of this version of the script; remove it"):
        read_lines(path, lambda line: line["a"])
