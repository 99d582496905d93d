"""Labelled images with random access, wherever they lie: in TFDS, in an image folder or zip file, or in memory.

A source has `len`, `read(i)` -> (image, label) and `name(i)`. The image is an encoded file's bytes, or an array
(H, W, c), uint8 or float32 in 0 … 1.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from beacon_jax.folder_labels import labelled_files
from beacon_jax.image_files import open_files
from beacon_jax.places import local_only

SPLITS = ("train", "test")
DIGITS_TEST = 500
_DIGITS_SPLIT_SEED = 0


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

    Of several versions it is the one that TFDS takes by itself, else the newest that is prepared, which is logged as a
    warning. Raises FileNotFoundError where none is prepared, with the command to prepare it.
    """

    def __init__(self, dataset: str, split: str, data_dir: str | None):
        import tensorflow_datasets as tfds

        if data_dir:
            local_only(data_dir, "the data_dir of TFDS")
        builder = tfds.builder(dataset, data_dir=data_dir or None)
        prepare = f"tfds build {dataset} --file_format=array_record --data_dir={builder.data_dir_root}"
        versions = _prepared_versions(Path(builder.data_dir).parent)
        if not versions:
            raise FileNotFoundError(f"{dataset} is not prepared in {builder.data_dir}; prepare it by: {prepare}")
        if str(builder.version) not in versions:
            logging.warning("%s %s is not prepared, read is version %s", dataset, builder.version, versions[-1])
            builder = tfds.builder_from_directory(str(Path(builder.data_dir).parent / versions[-1]))
        if split not in builder.info.splits or not {"image", "label"} <= set(builder.info.features):
            raise FileNotFoundError(
                f"{builder.data_dir} has no split {split} of images and labels, but {', '.join(builder.info.splits)} "
                f"of {', '.join(builder.info.features)}; prepare it again by: {prepare}"
            )
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


def _prepared_versions(folder: Path) -> list[str]:
    """The versions of a dataset that lie in its folder, the newest last."""
    found = [info.parent.name for info in folder.glob("*/dataset_info.json")]
    found = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


class FolderSource:
    """Image files in folders by class, `<class>/<name>.jpg`, or in one folder, `<wnid>_<name>.JPEG`; also inside a zip.

    Where the root has labelled folders for the splits (train; test, validation or val, in any case), only these are
    read; `unsplit` tells that there are none, so that every split is the same images. See `folder_labels` for the
    numbers of the classes.

    Raises FileNotFoundError or ValueError, naming the root: no such folder, no images, or a class that cannot be told.
    """

    def __init__(self, root: str, split: str):
        self._tree = open_files(root)
        found = labelled_files(self._tree, split, root)
        self._files, self._labels, self.unsplit = found.files, found.labels, found.unsplit

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> tuple[bytes, int]:
        """The i-th file's bytes and its label."""
        return self._tree.read(self._files[i]), self._labels[i]

    def name(self, i: int) -> str:
        """The file's path inside the root."""
        return self._files[i]


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


def open_source(dataset: str, split: str, root: str = "") -> ArraySource | TfdsSource | FolderSource:
    """The images of a dataset's split. ValueError for an unknown dataset or split."""
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; expected one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {dataset}; expected 'train' or 'test'")
    return DATASETS[dataset](split, root)
