"""Files in a bucket: fsspec's in memory stands for one, beside a storage that fails as others do."""

import io
import shutil
import sys
import uuid
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from beacon_jax import load_params, places, save_params
from beacon_jax.disk import create_file, make_folder, replace_file, replace_text, try_place
from beacon_jax.image_files import FolderFiles, ZipFiles, open_files
from beacon_jax.places import is_remote, local_copy, local_only, place, read_all, remove_folder
from beacon_jax.preprocessing import UnreadableImageError
from beacon_jax.sources import open_source
from experiments.lines import read_lines

upath = pytest.importorskip("upath")


@pytest.fixture
def bucket():
    """The address of a folder that nobody else has."""
    address = f"memory://{uuid.uuid4().hex}"
    yield place(address)
    remove_folder(place(address))


def test_local_paths_stay_paths(tmp_path):
    for given in (
        str(tmp_path),
        tmp_path,
        upath.UPath(tmp_path),
        f"file://{tmp_path}",
        upath.UPath(f"file://{tmp_path}"),
    ):
        assert place(given) == tmp_path and isinstance(place(given), Path) and not is_remote(given)
    assert local_only("a/b", "it") == Path("a/b") == place("a/b")


def test_addresses(bucket):
    assert is_remote(bucket) and place(bucket) is bucket and str(place(f"{bucket}/a") / "b") == f"{bucket}/a/b"
    with pytest.raises(ValueError, match=r"the data_dir must be on a local disk, got memory://a"):
        local_only("memory://a", "the data_dir")
    with pytest.raises(ValueError, match=r"nosuch://a is an address of a kind that is not known"):
        place("nosuch://a")
    with pytest.raises(ValueError, match="the data_dir of TFDS must be on a local disk, got memory://a"):
        open_source("cifar10", "train", "memory://a")


def test_what_is_missing_for_an_address_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs://b/c cannot be reached: .*gcsfs"):
        place("gs://b/c")
    for name in ("upath", "fsspec"):
        monkeypatch.setitem(sys.modules, name, None)
    assert place("a/b") == Path("a/b")
    with pytest.raises(ImportError, match=r"gs://b/c is no local path; .*pip install beacon-jax\[remote\]"):
        place("gs://b/c")


def test_files_are_written_whole(bucket):
    for text in ("einé", "zwei"):
        replace_text(bucket / "a" / "b.txt", text)
        assert (bucket / "a" / "b.txt").read_bytes() == text.encode()
    with pytest.raises(OSError, match=r"cannot write .*b\.txt: half"):

        def broken(path):
            path.write_bytes(b"half")
            raise OSError("half")

        replace_file(bucket / "a" / "b.txt", broken)
    assert (bucket / "a" / "b.txt").read_text() == "zwei"
    assert create_file(bucket / "new", b"1") and not create_file(bucket / "new", b"2")
    assert (bucket / "new").read_bytes() == b"1"
    make_folder(bucket / "c")
    try_place(bucket / "c" / "d")
    assert sorted(path.name for path in bucket.iterdir()) == ["a", "new"]
    with pytest.raises(IsADirectoryError, match=r"cannot write memory://.*/a: a folder is in its place"):
        try_place(bucket / "a")
    found = read_all([bucket / "new", bucket / "none", bucket / "a" / "b.txt"])
    assert found == {bucket / "new": b"1", bucket / "a" / "b.txt": b"zwei"}
    remove_folder(bucket)
    remove_folder(bucket)
    assert not bucket.exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RuntimeError("no\ncredentials"), OSError), (PermissionError("no"), PermissionError), (ValueError("no"), OSError)],
)
def test_what_a_storage_raises_is_one_sentence(bucket, monkeypatch, tmp_path, error, kind):
    def fail(*_, **__):
        raise error

    replace_text(bucket / "a", "")
    methods = "pipe_file put_file get_file cat cat_file open exists isfile isdir info glob rm rm_file"
    for name in methods.split():
        monkeypatch.setattr(type(bucket.fs), name, fail)
    said = rf"^cannot (read|write) {bucket}[^\n]*: {type(error).__name__}: no[^\n]*$"
    for act in (
        lambda: create_file(bucket / "b", b""),
        lambda: replace_text(bucket / "b", ""),
        lambda: try_place(bucket / "b"),
        lambda: local_copy(bucket / "a").__enter__(),
        lambda: read_all([bucket / "a"]),
        lambda: places.read(bucket / "a"),
        lambda: places.exists(bucket / "a"),
        lambda: places.is_file(bucket / "a"),
        lambda: places.is_folder(bucket / "a"),
        lambda: places.listed(bucket, "*"),
        lambda: places.stat(bucket / "a"),
        lambda: open_files(f"{bucket}/a"),
        lambda: read_lines(bucket / "a.jsonl", lambda line: line),
    ):
        with pytest.raises(kind, match=said):
            act()


def test_checkpoints(bucket, tmp_path):
    params = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.float16)}
    save_params(f"{bucket}/model.safetensors", params)
    save_params(tmp_path / "model.safetensors", params)
    assert (bucket / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, load_params(f"{bucket}/model.safetensors"), params)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at 'memory://.*/other'"):
        load_params(f"{bucket}/other")
    replace_text(bucket / "damaged", "x" * 100)
    with pytest.raises(ValueError, match=r"memory://.*/damaged is not a readable safetensors file"):
        load_params(bucket / "damaged")


def image_folder(folder):
    for split in ("train", "val"):
        for name in ("n1", "n2"):
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                file = io.BytesIO()
                Image.new("L", (4, 4), 40 * i + 5 * len(split)).save(file, "PNG")
                (folder / split / name / f"{i}.png").write_bytes(file.getvalue())
    (folder / "train" / ".hidden").write_bytes(b"")


def test_images(bucket, tmp_path, monkeypatch):
    """A folder and a zip file, as they are on a disk."""
    image_folder(tmp_path / "images")
    shutil.make_archive(tmp_path / "images", "zip", tmp_path / "images")
    bucket.fs.put(str(tmp_path / "images"), bucket.path + "/images", recursive=True)
    bucket.fs.put_file(str(tmp_path / "images.zip"), bucket.path + "/images.zip")
    for name in ("images", "images.zip"):
        for split in ("train", "test"):
            here, there = (open_source("image_folder", split, f"{root}/{name}") for root in (tmp_path, bucket))
            assert len(here) == len(there) == 4
            assert [there.name(i) for i in range(4)] == [here.name(i) for i in range(4)]
            assert [there.read(i) for i in range(4)] == [here.read(i) for i in range(4)]
    assert not isinstance(open_files(f"{bucket}/images"), FolderFiles | ZipFiles)
    with pytest.raises(FileNotFoundError, match=r"no image folder or zip file at 'memory://.*/none'"):
        open_files(f"{bucket}/none")
    replace_text(bucket / "text", "x")
    with pytest.raises(ValueError, match=r"memory://.*/text is neither a folder nor a readable zip file"):
        open_files(f"{bucket}/text")
    monkeypatch.setattr("beacon_jax.image_files.MAX_FILE_BYTES", 10)
    with pytest.raises(UnreadableImageError, match="more than the 10 that an image file may have"):
        open_files(f"{bucket}/images").read("train/n1/0.png")
    assert zipfile.is_zipfile(tmp_path / "images.zip") and places.is_remote(f"{bucket}/images.zip")
