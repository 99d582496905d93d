import collections
import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from beacon_jax import image_files
from beacon_jax.image_files import FolderFiles, ZipFiles, image_suffixes, is_image, join, open_files
from beacon_jax.preprocessing import UnreadableImageError


def test_images_are_what_pil_decodes():
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".tif", ".ppm", ".pgm", ".webp", ".bmp"} <= image_suffixes()
    assert is_image("a/B.TIFF") and not is_image("a.heic") and not is_image("jpg")
    # PIL knows these by name, and cannot decode them alone.
    assert not image_suffixes() & {".eps", ".h5", ".mpg", ".wmf", ".grib"}


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files_are_listed_and_read_as_folders(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as archive:
        for name in ("./x/1.png", "x\\y\\2.png", "x/.hidden", "x/empty/", "3.png", "x/é.png"):
            archive.writestr(name, name.encode() * 100)
    files = ZipFiles(tmp_path / "a.zip")
    assert files.children("") == (["x"], ["3.png"])
    assert files.children("x") == (["empty", "y"], ["1.png", "é.png"])
    assert files.children("x/empty") == ([], [])
    assert files.read("x/y/2.png") == b"x\\y\\2.png" * 100 and files.read("x/1.png") == b"./x/1.png" * 100


def bomb(kind, said=None):
    """A zip file whose one entry unpacks to 2 MB, saying that it has `said` bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("a.png", bytes(2_000_000))
    content = bytearray(file.getvalue())
    if said is not None:
        for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
            struct.pack_into("<I", content, content.index(mark) + offset, said)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (bomb(zipfile.ZIP_DEFLATED), UnreadableImageError),
        (bomb(zipfile.ZIP_DEFLATED, said=1000), UnreadableImageError),  # the checksum of what is unpacked is another
        (bomb(zipfile.ZIP_BZIP2, said=1000), UnreadableImageError),
        (bomb(zipfile.ZIP_LZMA, said=1000), UnreadableImageError),
    ],
    ids=["large", "deflated", "bzip2", "lzma"],
)
def test_entries_that_unpack_to_too_much(tmp_path, monkeypatch, content, error):
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 1_000_000)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(error, match=r"2000000 bytes, more than the 1000000|Bad CRC|must be stored or deflated"):
        ZipFiles(tmp_path / "a.zip").read("a.png")


@pytest.mark.parametrize("long", [False, True])
def test_too_many_entries_are_refused_before_they_are_read(tmp_path, monkeypatch, long):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"")
    content = (tmp_path / "a.zip").read_bytes()
    end = content.index(b"PK\5\6")
    if long:  # the number in the longer record
        record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 30_000_000, 30_000_000, 0, 0)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
        content = content[:end] + record + locator + content[end:]
        content = content[: end + 76] + content[end + 76 :].replace(struct.pack("<HH", 1, 1), b"\xff" * 4, 1)
    else:
        monkeypatch.setattr(image_files, "MAX_ENTRIES", 1000)
        content = content[: end + 8] + struct.pack("<HH", 2000, 2000) + content[end + 12 :]
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a.zip has (2000|30000000) entries, more than the (1000|20000000) that a zip"
    ):
        ZipFiles(tmp_path / "a.zip")


def test_damaged_zip_files_give_what_was_in_them_or_an_error(tmp_path):
    """300 of them, cut short or with up to three other bytes."""
    contents = {f"{c}/{i}.png": f"{c}{i}".encode() * 40 for c in "abc" for i in range(3)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    good, rng = (tmp_path / "a.zip").read_bytes(), np.random.default_rng(0)
    outcomes = collections.Counter()
    for i in range(300):
        damaged = np.frombuffer(good, np.uint8).copy()
        damaged[rng.integers(len(good), size=1 + i % 3)] = rng.integers(256)
        (tmp_path / "b.zip").write_bytes(damaged[: rng.integers(len(good)) if i % 5 == 0 else None].tobytes())
        try:
            files = ZipFiles(tmp_path / "b.zip")
            folders = ["", *files.children("")[0]]
            names = [join(folder, name) for folder in folders for name in files.children(folder)[1]]
            found = {name: files.read(name) for name in names}
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert found.items() <= contents.items() and len(found) == len(contents)
            outcomes["the same"] += 1
    assert outcomes["refused"] > 200 and outcomes["the same"] > 5


def test_files_of_a_folder_that_are_too_large(tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    files = FolderFiles(tmp_path)
    assert files.read("a.png") == (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(UnreadableImageError, match="more than the 10 that an image file may have"):
        files.read("a.png")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", b"PK\5\6", b"\xff" * 200], ids=range(4))
def test_files_that_are_no_zip_files(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.zip is neither a folder nor a readable zip file"):
        open_files(str(tmp_path / "a.zip"))


def test_nothing_there(tmp_path):
    for root in ("", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError, match="no image folder or zip file at"):
            open_files(root)
