import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_jax.folder_labels import labelled_files
from beacon_jax.image_files import FolderFiles, ZipFiles

A, B, C = "n01440764", "n01443537", "n15075141"  # ImageNet's classes 0, 1 and 999


def make(root, names):
    """Empty files, and folders where a name ends in a slash."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return FolderFiles(root)


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return ZipFiles(path)


def found(tree, split="test"):
    listing = labelled_files(tree, split, "ROOT")
    return dict(zip(listing.files, listing.labels, strict=True))


# Files and folders (with a slash at the end), the split, and {file: label}.
UNDERSTOOD = {
    "integers are labels": (["10/a.jpg", "2/a.jpg", "0/a.jpg"], "test", {"0/a.jpg": 0, "10/a.jpg": 10, "2/a.jpg": 2}),
    "padded integers": (["007/a.jpg", "012/a.jpg"], "test", {"007/a.jpg": 7, "012/a.jpg": 12}),
    "integers below splits": (["train/3/a.png", "test/11/b.png"], "test", {"test/11/b.png": 11}),
    "names are sorted": (["b/1.jpg", "a/1.jpg", "B/1.jpg"], "test", {"B/1.jpg": 0, "a/1.jpg": 1, "b/1.jpg": 2}),
    "every suffix": (
        ["a/1.gif", "b/1.tif", "c/1.ppm", "d/1.TIFF", "e/1.jp2", "f/1.jfif", "g/1.JPEG"],
        "test",
        {"a/1.gif": 0, "b/1.tif": 1, "c/1.ppm": 2, "d/1.TIFF": 3, "e/1.jp2": 4, "f/1.jfif": 5, "g/1.JPEG": 6},
    ),
    "unlabelled test": (["train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg", "test/1.jpg"], "test", {"val/b/1.jpg": 1}),
    "test with one folder for all": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "test/unknown/1.jpg"],
        "test",
        {"val/a/1.jpg": 0, "val/b/1.jpg": 1},
    ),
    "test with one folder called as a class": (
        ["train/0/1.jpg", "train/1/1.jpg", "val/0/1.jpg", "val/1/1.jpg", "test/0/1.jpg"],
        "test",
        {"val/0/1.jpg": 0, "val/1/1.jpg": 1},
    ),
    "labelled test before val": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg"],
        "test",
        {"test/a/1.jpg": 0, "test/b/1.jpg": 1},
    ),
    "a split that is not used does not number": (
        ["train/b/1.jpg", "test/b/1.jpg", "val/a/1.jpg", "extra/a/1.jpg"],
        "train",
        {"train/b/1.jpg": 0},
    ),
    "other cases": (["Train/a/1.jpg", "Train/b/1.jpg", "Val/b/1.jpg"], "test", {"Val/b/1.jpg": 1}),
    "other names": (["TRAINING/a/1.jpg", "valid/a/1.jpg"], "test", {"valid/a/1.jpg": 0}),
    "a class called train": (["bus/1.jpg", "train/1.jpg"], "test", {"bus/1.jpg": 0, "train/1.jpg": 1}),
    "empty classes keep their number": (
        ["train/a/", "train/b/1.jpg", "test/b/1.jpg", "test/c/"],
        "test",
        {"test/b/1.jpg": 1},
    ),
    "classes with unread files keep their number": (["a/1.heic", "b/1.jpg"], "test", {"b/1.jpg": 1}),
    "ImageNet's numbers": ([f"train/{C}/1.JPEG", f"val/{B}/1.JPEG"], "test", {f"val/{B}/1.JPEG": 1}),
    "ImageNet's numbers in file names": ([f"{C}_1.JPG", f"{A}_2.JPG"], "test", {f"{A}_2.JPG": 0, f"{C}_1.JPG": 999}),
    "ImageNet's names in capitals": ([f"{C.upper()}/1.JPEG"], "test", {f"{C.upper()}/1.JPEG": 999}),
    "ImageNet with an unlabelled test": (
        [f"train/{A}/1.JPEG", f"train/{B}/1.JPEG", f"val/{B}/1.JPEG", f"val/{C}/1.JPEG", "test/1.JPEG"],
        "test",
        {f"val/{B}/1.JPEG": 1, f"val/{C}/1.JPEG": 999},
    ),
    "tiny ImageNet": ([f"{A}/images/1.JPEG", f"{A}/boxes.txt", f"{B}/images/2.JPEG"], "test", {
        f"{A}/images/1.JPEG": 0, f"{B}/images/2.JPEG": 1,
    }),
    "deep in a class": (["dogs/big/1.jpg", "cats/1.jpg"], "test", {"cats/1.jpg": 0, "dogs/big/1.jpg": 1}),
    "below shared folders": (["data/all/notes.txt", "data/all/x/1.jpg", "data/all/y/1.jpg", "more/readme.md"], "test", {
        "data/all/x/1.jpg": 0, "data/all/y/1.jpg": 1,
    }),
    "Kaggle's ImageNet": (
        [f"ILSVRC/{k}/CLS-LOC/{p}/x.{e}" for k, e in (("Annotations", "xml"), ("Data", "JPEG"))
         for p in (f"train/{A}", f"train/{C}", f"val/{C}")] + ["ILSVRC/Data/CLS-LOC/test/1.JPEG", "LOC_solution.csv"],
        "test",
        {f"ILSVRC/Data/CLS-LOC/val/{C}/x.JPEG": 999},
    ),
    "hidden and macOS files": ([".git/a/1.jpg", "a/.x.jpg", "__MACOSX/a/1.jpg", "a/1.jpg", "b/1.jpg"], "test", {
        "a/1.jpg": 0, "b/1.jpg": 1,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("case", UNDERSTOOD)
def test_layouts_that_are_understood(tmp_path, case, kind):
    names, split, expected = UNDERSTOOD[case]
    tree = make(tmp_path / "root", names) if kind == "folder" else zipped(tmp_path / "a.zip", names)
    assert found(tree, split) == expected


REFUSED = {
    "severities above wnids": ([f"{s}/{A}/1.JPEG" for s in "12345"], "1 in ROOT lies above ImageNet's classes"),
    "severities below a split": (
        [f"val/{s}/{A}/1.JPEG" for s in "123"],
        "val/1 in ROOT lies above ImageNet's classes .n01440764.; set the root to val/1",
    ),
    "severities above classes": (
        [f"{s}/{c}/1.jpg" for s in "123" for c in ("cat", "dog")],
        "which folders of ROOT are the classes. 1 and the others .* the same folders .cat, dog",
    ),
    "splits below classes": ([f"{c}/{s}/1.jpg" for s in ("train", "val") for c in "ab"], "a in ROOT holds the splits"),
    "a dataset beside others": (["imagenet/train/a/1.jpg", "other/1.jpg"], "imagenet in ROOT holds the splits train"),
    "numbers and names": (["1/1.jpg", "two/1.jpg"], "called by numbers, such as 1, .* such as 'two'; rename these"),
    "a number twice": (["1/1.jpg", "01/1.jpg"], "two classes of ROOT have the number 1"),
    "a number too large": (["99999999999/1.jpg"], "99999999999 of ROOT is too large a number"),
    "two folders for a split": (["test/a/1.jpg", "TEST/a/1.jpg"], "two folders for one split, TEST and test"),
    "a split or a class": (["train/steam/1.jpg", "bus/1.jpg"], "is train of ROOT a split, or a class as bus beside it"),
    "no labels at all": (["train/1.jpg", "test/1.jpg"], "images of ROOT have no labels: test, train hold no folders"),
    "only an unlabelled test": (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], "no folder test or .* it has train"),
    "other classes to test": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/d/1.jpg", "val/c/1.jpg"],
        "ROOT/val holds none of the classes of ROOT/train: c, d, and there a, b",
    ),
    "a stray image": (["a/1.jpg", "stray.jpg"], "stray.jpg in ROOT has no class"),
    "some of ImageNet's": ([f"{A}/1.jpg", "misc/1.jpg"], "1 classes of ROOT are ImageNet-1k's and 1 are not"),
    "no images": (["a/1.txt"], "ROOT holds no images"),
    "nothing": ([], "ROOT holds no images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("case", REFUSED)
def test_layouts_that_are_refused(tmp_path, case, kind):
    names, message = REFUSED[case]
    (tmp_path / "root").mkdir()
    tree = make(tmp_path / "root", names) if kind == "folder" else zipped(tmp_path / "a.zip", names)
    with pytest.raises(ValueError, match=message) as error:
        found(tree)
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_said(tmp_path, caplog):
    tree = make(tmp_path, ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/2.heic", "test/x.jpg", "devkit/"])
    with caplog.at_level("WARNING", logger="absl"):
        assert found(tree) == {"val/a/1.jpg": 0}
    assert caplog.messages == [
        "ROOT: not read are devkit, test",
        "ROOT/val: 1 files are not read, such as val/b/2.heic: PIL reads none such",
        "ROOT/val: 1 classes have no images, such as b; they keep their numbers",
    ]


def test_links_to_folders_are_followed(tmp_path):
    make(tmp_path / "store", ["cats/1.jpg", "dogs/1.jpg"])
    make(tmp_path / "root", ["train/ants/1.jpg"])
    for name in ("cats", "dogs"):
        (tmp_path / "root/train" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "root/test").symlink_to(tmp_path / "root/train")
    (tmp_path / "root/train/ants/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    tree = FolderFiles(tmp_path / "root")
    assert found(tree, "train") == {
        "train/ants/1.jpg": 0,
        "train/ants/gone.jpg": 0,
        "train/cats/1.jpg": 1,
        "train/dogs/1.jpg": 2,
    }
    assert found(tree)["test/dogs/1.jpg"] == 2


@pytest.mark.parametrize("target", [".", "..", "a", "a/x"])
def test_links_in_a_circle(tmp_path, target):
    make(tmp_path / "root", ["a/x/1.jpg", "b/1.jpg"])
    (tmp_path / "root/a/x/back").symlink_to(tmp_path / "root" / target)
    with pytest.raises(ValueError, match=r"back is a link to .*, a folder that it lies in itself; remove the link"):
        found(FolderFiles(tmp_path / "root"))


def test_two_links_in_a_circle(tmp_path):
    make(tmp_path / "root", ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "root/a/to_b").symlink_to(tmp_path / "root/b")
    (tmp_path / "root/b/to_a").symlink_to(tmp_path / "root/a")
    with pytest.raises(ValueError, match=r"is a link to .*, a folder that it lies in itself"):
        found(FolderFiles(tmp_path / "root"))


NAMES = st.text("abcXYZ019_ -é", min_size=1, max_size=6).filter(lambda s: s.strip(" ") == s)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.sets(NAMES, min_size=2, max_size=6),
    numbers=st.booleans(),
    empty=st.data(),
    splits=st.sampled_from([None, ("train", "test"), ("Train", "VAL"), ("train", "validation")]),
    shared=st.sampled_from(["", "pictures/", "a/b/"]),
)
def test_labels_are_the_classes_whatever_lies_around_them(tmp_path_factory, classes, numbers, empty, splits, shared):
    """Folder and zip file agree, and both with the numbers of the classes by definition."""
    if numbers:
        classes = {str(i * 7) for i in range(len(classes))}
    elif any(name.isdigit() for name in classes):
        classes = {f"c{name}" for name in classes}
    order = sorted(classes)
    without = empty.draw(st.sampled_from([None, *order]))
    names = []
    for folder in splits or ("",):
        for name in order:
            path = f"{shared}{folder}/{name}/" if folder else f"{shared}{name}/"
            names += [path] if name == without else [f"{path}1.png", f"{path}2.JPG"]
    expected = {
        name: int(name.split("/")[-2]) if numbers else order.index(name.split("/")[-2])
        for name in names
        if not name.endswith("/") and (splits is None or f"{splits[1]}/" in name)
    }
    root = tmp_path_factory.mktemp("layout")
    for tree in (make(root / "folder", names), zipped(root / "a.zip", names)):
        assert found(tree) == expected
