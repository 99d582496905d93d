import io
import re
import shutil
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from beacon_jax.data import Batches


def whole(batches):
    parts = list(batches)
    return tuple(np.concatenate([b[key] for b in parts]) for key in ("image", "label"))


@pytest.fixture
def pictures(tmp_path, rng):
    """30 images of three sizes in three classes, as image folder."""
    for i in range(30):
        size = ((300, 240), (256, 400), (230, 230))[i % 3]
        path = tmp_path / "train" / "abc"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    return dict(root=str(tmp_path), preset="resize256-bilinear", normalization="imagenet")


def test_digits_are_split_without_overlap():
    (train, train_labels), (test, test_labels) = (whole(Batches("digits", split, 128)) for split in ("train", "test"))
    assert train.shape == (1297, 8, 8, 1) and test.shape == (500, 8, 8, 1)
    assert train.dtype == np.float32 and train_labels.dtype == np.int32
    assert train.min() == -1 and train.max() == 1
    raw = load_digits()
    assert np.bincount(np.concatenate([train_labels, test_labels])).tolist() == np.bincount(raw.target).tolist()
    images = np.concatenate([train, test]).reshape(1797, -1)
    np.testing.assert_array_equal(np.unique(images, axis=0), np.unique(raw.data / 8 - 1, axis=0).astype(np.float32))


def test_order_and_subsets():
    images, labels = whole(Batches("digits", "train", 128, count=300, seed=5))
    again, _ = whole(Batches("digits", "train", 100, count=300, seed=5, workers=7))
    other, _ = whole(Batches("digits", "train", 128, count=300, seed=6))
    first, _ = whole(Batches("digits", "train", 128, count=300))
    np.testing.assert_array_equal(images, again)
    assert len(labels) == 300 and not np.array_equal(images, other) and not np.array_equal(images, first)
    np.testing.assert_array_equal(first, whole(Batches("digits", "train", 128))[0][:300])
    assert [len(b["label"]) for b in Batches("digits", "train", 128, count=300)] == [128, 128, 44]


def test_images_are_decoded_in_order_whatever_the_threads(pictures):
    one, many = (Batches("image_folder", "train", 8, workers=n, **pictures) for n in (1, 8))
    assert one.images_per_second is None
    (images, labels), (same, _) = whole(one), whole(many)
    assert images.shape == (30, 224, 224, 3) and images.dtype == np.float32
    assert labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    np.testing.assert_array_equal(images, same)
    np.testing.assert_array_equal(images, whole(one)[0])  # a second pass
    assert one.images_per_second > 0 and one.count == 30 and 0 < one.waited <= 1
    assert re.fullmatch(
        r"30 images at \d+ images/s, \d+% of the time waiting .*; 0 unreadable ones skipped", one.summary()
    )


def test_a_subset_is_the_same_as_from_the_beginning():
    batches = Batches("digits", "train", 128, count=10)
    ours, theirs = batches.subset(300, 5, batch_size=64), Batches("digits", "train", 64, count=300, seed=5)
    for one, two in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert (batches.count, ours.count) == (10, 300)
    with pytest.raises(ValueError, match="digits train has 1297 images, asked for 1298"):
        batches.subset(1298, 0)


def test_cached_images_are_read_once(pictures, monkeypatch):
    batches = Batches("image_folder", "train", 8, cache=True, **pictures)
    first = whole(batches)
    monkeypatch.setattr(batches, "_source", None)
    for before, after in zip(first, whole(batches), strict=True):
        np.testing.assert_array_equal(before, after)


def test_abandoned_iteration_leaves_no_threads(pictures):
    import threading

    before = threading.active_count()
    iterator = iter(Batches("image_folder", "train", 4, workers=4, **pictures))
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


def test_unreadable_images(pictures):
    folder = f"{pictures['root']}/train/b"
    for name, content in (("01", b""), ("04", b"not an image")):
        with open(f"{folder}/{name}.jpg", "wb") as file:
            file.write(content)
    with pytest.raises(ValueError, match=r"cannot read train/b/01\.jpg .*on_unreadable='skip' leaves"):
        list(Batches("image_folder", "train", 8, **pictures))
    lenient = Batches("image_folder", "train", 8, on_unreadable="skip", **pictures)
    assert [len(b["label"]) for b in lenient] == [8, 8, 8, 4]
    assert lenient.skipped == ["train/b/01.jpg", "train/b/04.jpg"]
    assert "28 images at" in lenient.summary() and "2 unreadable ones skipped" in lenient.summary()
    list(lenient)
    assert len(lenient.skipped) == 2


def test_damaged_zip_entries_and_lost_files(tmp_path, rng):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(2)]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in names:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(file, "PNG")
            archive.writestr(name, file.getvalue())
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(file.getvalue())
    whole_file = bytearray((tmp_path / "images.zip").read_bytes())
    whole_file[60] ^= 0xFF  # inside the first entry, whose checksum now fails
    (tmp_path / "images.zip").write_bytes(whole_file)
    for root in ("images.zip", "folder"):
        lenient = Batches("image_folder", "test", 8, root=str(tmp_path / root), on_unreadable="skip")
        strict = Batches("image_folder", "test", 8, root=str(tmp_path / root))
        if root == "folder":
            (tmp_path / "folder" / names[0]).unlink()
        assert len(whole(lenient)[1]) == 3 and lenient.skipped == [names[0]]
        with pytest.raises(ValueError, match=r"cannot read a/0\.png"):
            list(strict)


def test_nothing_readable(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of the 1 images can be decoded"):
        list(Batches("image_folder", "test", 8, root=str(tmp_path), on_unreadable="skip"))


def test_images_of_different_shapes_need_a_preset(pictures):
    with pytest.raises(ValueError, match=r"different shapes, such as \(230, 230, 3\) and .*; choose a preset"):
        list(Batches("image_folder", "train", 30, root=pictures["root"]))


def test_grey_images(tmp_path):
    (tmp_path / "a").mkdir()
    file = io.BytesIO()
    Image.new("L", (9, 7), 51).save(file, "PNG")
    (tmp_path / "a" / "1.png").write_bytes(file.getvalue())
    images, _ = whole(Batches("image_folder", "test", 8, root=str(tmp_path)))
    np.testing.assert_allclose(images, np.full((1, 7, 9, 3), -0.6), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mnist", "test", 8), {}, "unknown dataset 'mnist'; expected one of digits"),
        (("digits", "validation", 8), {}, "unknown split 'validation' of digits"),
        (("digits", "test", 0), {}, "batch_size must be at least 1, got 0"),
        (("digits", "test", 8), {"workers": -1}, "workers must be at least 1, got -1"),
        (("digits", "test", 8), {"count": 501}, "digits test has 500 images, asked for 501"),
        (("digits", "test", 8), {"count": 0}, "digits test has 500 images, asked for 0"),
        (("digits", "test", 8), {"preset": "resize"}, "unknown preset 'resize'; expected one of none, resize256-b"),
        (("digits", "test", 8), {"preset": "resize256-bilinear"}, "digits is not resized; its preset is 'none'"),
        (("digits", "test", 8), {"normalization": "x"}, "unknown normalization 'x'; expected one of imagenet"),
        (("digits", "test", 8), {"on_unreadable": "ignore"}, "unknown on_unreadable 'ignore'; expected one of error"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(*arguments, **options)


def test_a_digest_of_the_images_wherever_they_lie(pictures, tmp_path):
    """Of what lies there, so that nothing is decoded for it, in the order in which it is read."""
    given = dict(batch_size=4, **pictures)
    one = Batches("image_folder", "train", **given, cache=True)
    digest = one.content_digest()
    whole(one)
    assert one.content_digest() == digest and one.batch_size == 4
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "train", moved / "train")
    again = Batches("image_folder", "train", **given | dict(root=str(moved), workers=1, batch_size=3))
    assert again.content_digest() == digest
    others = [
        Batches("image_folder", "train", **given | dict(preset="crop_pct0.9-bicubic")),
        Batches("image_folder", "train", **given | dict(normalization="half")),
        Batches("image_folder", "train", **given, count=5),
        Batches("image_folder", "train", **given, seed=0),
        Batches("image_folder", "train", **given, seed=1),
    ]
    path = sorted(moved.rglob("*.*"))[-1]
    path.write_bytes(path.read_bytes() + b" ")
    others.append(again)
    assert len({digest, *(other.content_digest() for other in others)}) == 1 + len(others)
