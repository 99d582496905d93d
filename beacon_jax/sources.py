"""Labelled images with random access, wherever they lie: in TFDS, in an image folder or zip file, or in memory.

A source has `len`, `read(i)` -> (image, label) and `name(i)`. The image is an encoded file's bytes, or an array
(H, W, c), uint8 or float32 in 0 … 1.
"""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np

SPLITS = ("train", "test")
DIGITS_TEST = 500
_DIGITS_SPLIT_SEED = 0
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_WNID = re.compile(r"n\d{8}")


class ArraySource:
    """Images (n, H, W, c) and labels (n,) in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """The i-th image and its label."""
        return self._images[i], int(self._labels[i])

    def name(self, i: int) -> str:
        """What to call the i-th image."""
        return f"image {i}"


class TfdsSource:
    """A split of a dataset that TFDS prepared as array_record, read without TensorFlow.

    Raises FileNotFoundError where it is not prepared, with the command to prepare it.
    """

    def __init__(self, dataset: str, split: str, data_dir: str | None):
        import tensorflow_datasets as tfds

        builder = tfds.builder(dataset, data_dir=data_dir or None)
        prepare = f"tfds build {dataset} --file_format=array_record --data_dir={builder.data_dir_root}"
        if split not in builder.info.splits:
            raise FileNotFoundError(f"{dataset} is not prepared in {builder.data_dir}; prepare it by: {prepare}")
        try:
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise FileNotFoundError(
                f"{builder.data_dir} is not in the array_record format, the only one with random access; "
                f"prepare it again by: {prepare}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int) -> tuple[bytes, int]:
        """The i-th image, encoded, and its label."""
        record = self._records[i]
        return record["image"], int(record["label"])

    def name(self, i: int) -> str:
        """The file name that the dataset records, else the image's number."""
        record = self._records[i]
        name = record.get("file_name", record.get("id", b""))
        return f"image {i} ({name.decode()})" if name else f"image {i}"


class FolderSource:
    """Image files in folders by class, `<class>/<name>.jpg`, or in one folder, `<wnid>_<name>.JPEG`; also inside a zip.

    Where the root has a folder for the split (train; test, validation or val), only that is read; `unsplit` tells that
    there are no split folders, so that every split is the same images. Classes are numbered in sorted order over all
    splits, but ImageNet's wnids as in ImageNet-1k, so that a folder with a part of the classes has the right labels.

    Raises FileNotFoundError or ValueError, naming the root: no such folder, no images, or a class that cannot be told.
    """

    def __init__(self, root: str, split: str):
        path = Path(root)
        if not root or not path.exists():
            raise FileNotFoundError(f"no image folder or zip file at {root!r}; set the data's root")
        self._root, self._zip = path, None if path.is_dir() else _open_zip(path)
        files = self._zip.namelist() if self._zip else (str(f.relative_to(path)) for f in path.rglob("*"))
        files = sorted(name for name in files if _is_image(name))
        if not files:
            raise ValueError(f"{root} holds no images ({', '.join(sorted(_SUFFIXES))})")
        splits = {name: _split_folder(name) for name in files}
        self.unsplit = not any(splits.values())
        own = None if self.unsplit else next((f for f in _FOLDERS[split] if f in splits.values()), "")
        if own == "":
            raise ValueError(f"{root} has no folder {' or '.join(_FOLDERS[split])} for the {split} split")
        classes = _classes(splits, root)
        number = _number_classes(sorted(set(classes.values())), root)
        self._files = [name for name in files if splits[name] == own]
        self._labels = [number[classes[name]] for name in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> tuple[bytes, int]:
        """The i-th file's bytes and its label."""
        name = self._files[i]
        return (self._zip.read(name) if self._zip else (self._root / name).read_bytes()), self._labels[i]

    def name(self, i: int) -> str:
        """The file's path inside the root."""
        return self._files[i]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is neither a folder nor a readable zip file ({error}); is it truncated?") from error


def _is_image(name: str) -> bool:
    path = PurePath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


# What the folder of a split may be called.
_FOLDERS = {"train": ("train",), "test": ("test", "validation", "val")}


def _split_folder(name: str) -> str | None:
    """The outermost folder of a file that is called as a split, if any."""
    return next((part for part in PurePath(name).parts[:-1] if part in sum(_FOLDERS.values(), ())), None)


def _classes(splits: dict[str, str | None], root: str) -> dict[str, str]:
    """{file: class}: the first folder below the split's (or below what all files share), else the wnid in its name."""
    common = _shared_folders([name for name, folder in splits.items() if folder is None])
    classes = {}
    for name, folder in splits.items():
        parts = PurePath(name).parts
        below = parts[parts.index(folder) + 1 :] if folder else parts[common:]
        wnid = below[-1].split("_")[0]
        if len(below) == 1 and not _WNID.fullmatch(wnid):
            raise ValueError(f"{name} in {root} has no class: expected <class>/<name> or <wnid>_<name>")
        classes[name] = below[0] if len(below) > 1 else wnid
    return classes


def _shared_folders(files: list[str]) -> int:
    """How many outer folders all files share, not counting one that would be their only class."""
    folders = [PurePath(name).parts[:-1] for name in files]
    shared = 0
    while folders and all(len(f) > shared + 1 for f in folders) and len({f[shared] for f in folders}) == 1:
        shared += 1
    return shared


def _number_classes(classes: list[str], root: str) -> dict[str, int]:
    if not any(_WNID.fullmatch(name) for name in classes):
        return {name: label for label, name in enumerate(classes)}
    imagenet = {wnid: label for label, wnid in enumerate(_imagenet_wnids())}
    others = [name for name in classes if name not in imagenet]
    if others and len(others) < len(classes):
        raise ValueError(
            f"{len(classes) - len(others)} classes of {root} are ImageNet-1k's and {len(others)} are not, such as "
            f"{others[0]!r}; take these out, or rename all"
        )
    return {name: label for label, name in enumerate(classes)} if others else imagenet


def _imagenet_wnids() -> list[str]:
    """ImageNet-1k's classes in order, from the list that TFDS ships."""
    import tensorflow_datasets as tfds

    return tfds.builder("imagenet2012").info.features["label"].names


def _digits(split: str, root: str) -> ArraySource:
    """scikit-learn's handwritten digits: 1,797 real 8×8 scans, 1,297 to train on and 500 to test."""
    from sklearn.datasets import load_digits

    if root:
        raise ValueError(f"the digits come with scikit-learn and have no root, got {root!r}")
    data = load_digits()
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(data.target))
    chosen = order[:DIGITS_TEST] if split == "test" else order[DIGITS_TEST:]
    return ArraySource((data.images[chosen, ..., None] / 16).astype(np.float32), data.target[chosen])


# name -> function of the split (train or test) and the root (a folder, a zip file, TFDS's data_dir, or "")
DATASETS: dict[str, Callable[[str, str], ArraySource | TfdsSource | FolderSource]] = {
    "digits": _digits,
    "imagenet2012": lambda split, root: TfdsSource("imagenet2012", {"test": "validation"}.get(split, split), root),
    "cifar10": lambda split, root: TfdsSource("cifar10", split, root),
    "image_folder": lambda split, root: FolderSource(root, split),
}


def open_source(dataset: str, split: str, root: str = ""):
    """The images of a dataset's split. ValueError for an unknown dataset or split."""
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; expected one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {dataset}; expected 'train' or 'test'")
    return DATASETS[dataset](split, root)
