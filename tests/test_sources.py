import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from beacon_jax.sources import open_source


def jpeg(value=0, size=(20, 16)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def make_folder(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(i))
    return root


def labels(source):
    return {source.name(i): source.read(i)[1] for i in range(len(source))}


SPLIT = ("train/cat/1.jpg", "train/ant/2.JPEG", "train/ant/1.png", "val/ant/9.jpg", "val/cat/8.jpg")


def test_folders_by_class_and_split(tmp_path):
    root = str(make_folder(tmp_path, SPLIT))
    train = open_source("image_folder", "train", root)
    assert labels(train) == {"train/ant/1.png": 0, "train/ant/2.JPEG": 0, "train/cat/1.jpg": 1}
    assert train.read(0)[0] == (tmp_path / "train/ant/1.png").read_bytes()
    assert labels(open_source("image_folder", "test", root)) == {"val/ant/9.jpg": 0, "val/cat/8.jpg": 1}


def test_a_zip_file_is_read_like_its_folder(tmp_path):
    root = make_folder(tmp_path / "images", SPLIT)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in (*SPLIT, "__MACOSX/train/cat/._1.jpg", "train/notes.txt"):
            archive.writestr(f"pictures/{name}", (root / name).read_bytes() if name in SPLIT else b"?")
    zipped, folder = (open_source("image_folder", "train", str(r)) for r in (f"{root}.zip", root))
    assert len(zipped) == len(folder)
    assert [zipped.read(i) for i in range(3)] == [folder.read(i) for i in range(3)]


def test_a_class_may_be_called_like_a_split(tmp_path):
    root = make_folder(tmp_path, ("train/train/1.jpg", "train/bus/1.jpg", "test/train/1.jpg", "test/bus/1.jpg"))
    assert labels(open_source("image_folder", "test", str(root))) == {"test/bus/1.jpg": 0, "test/train/1.jpg": 1}


def test_wnids_have_their_imagenet_labels(tmp_path):
    flat = make_folder(tmp_path / "flat", ("n01440764_tench.JPEG", "n01484850_great_white_shark.JPEG"))
    assert list(labels(open_source("image_folder", "test", str(flat))).values()) == [0, 2]
    folders = make_folder(
        tmp_path / "folders", ("train/n15075141/n15075141_1.JPEG", "train/n01443537/n01443537_7.JPEG")
    )
    assert list(labels(open_source("image_folder", "train", str(folders))).values()) == [1, 999]
    # Not of ImageNet-1k: numbered as any other classes.
    other = make_folder(tmp_path / "other", ("n99999999/1.jpg", "n99999998/1.jpg"))
    assert labels(open_source("image_folder", "train", str(other))) == {"n99999998/1.jpg": 0, "n99999999/1.jpg": 1}
    # A class is its folder, whatever the file is called and however deep it lies.
    named = make_folder(tmp_path / "named", ("sharks/n01484850_1.JPEG", "dogs/big/1.jpg"))
    assert list(labels(open_source("image_folder", "train", str(named))).values()) == [0, 1]


def test_classes_have_the_same_number_in_every_split(tmp_path):
    root = make_folder(tmp_path, ("train/ant/1.jpg", "train/bee/1.jpg", "train/cat/1.jpg", "test/cat/1.jpg"))
    assert labels(open_source("image_folder", "test", str(root))) == {"test/cat/1.jpg": 2}


def test_a_folder_without_splits(tmp_path):
    root = make_folder(tmp_path, ("pictures/all/ant/1.jpg", "pictures/all/bee/1.jpg"))
    sources = [open_source("image_folder", split, str(root)) for split in ("train", "test")]
    assert [list(labels(source).values()) for source in sources] == [[0, 1], [0, 1]]
    assert all(source.unsplit for source in sources)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """imagenet2012 and cifar10 with a few images, in the real format: TFDS writes the files, without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        def _info(self):
            return self.dataset_info_from_configs(features=self.real.info.features)

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in self.splits}

        def _generate_examples(self, split):
            for i in range(self.splits[split]):
                record = {"image": io.BytesIO(jpeg(i, self.size)), "label": i % 10}
                yield i, record | {self.key: f"{split}_{i}"}

    root = tmp_path_factory.mktemp("tfds")
    for name, key, splits, size in (
        ("imagenet2012", "file_name", {"train": 12, "validation": 5}, (40, 30)),
        ("cifar10", "id", {"train": 7, "test": 3}, (32, 32)),
    ):
        real = tfds.builder(name, data_dir=root)
        fields = dict(name=name, VERSION=real.version, real=real, splits=splits, size=size, key=key)
        with registered.skip_registration():
            own = type(f"Small{name}", (Small,), fields | {"__module__": __name__})
        own(data_dir=root, file_format="array_record").download_and_prepare()
    return str(root)


@pytest.mark.parametrize(
    ("name", "split", "count", "key"),
    [
        ("imagenet2012", "train", 12, "train_"),
        ("imagenet2012", "test", 5, "validation_"),
        ("cifar10", "train", 7, "train_"),
        ("cifar10", "test", 3, "test_"),
    ],
)
def test_tfds(tfds_dir, name, split, count, key):
    source = open_source(name, split, tfds_dir)
    assert len(source) == count
    seen = {}
    for i in range(count):
        encoded, label = source.read(i)
        number = int(source.name(i).rstrip(")").split(key)[1])
        assert label == number % 10
        seen[number] = encoded
    size = (40, 30) if name == "imagenet2012" else (32, 32)
    assert sorted(seen) == list(range(count))
    if name == "imagenet2012":
        assert all(encoded == jpeg(number, size) for number, encoded in seen.items())


def test_another_version_of_tfds(tfds_dir, tmp_path, caplog):
    """What was prepared with another version of TFDS is read; of several the newest."""
    shutil.copytree(f"{tfds_dir}/cifar10", tmp_path / "cifar10")
    (own,) = (tmp_path / "cifar10").glob("*.*.*")
    for version in ("2.9.0", "2.10.0"):
        shutil.copytree(own, tmp_path / "cifar10" / version)
        info = tmp_path / "cifar10" / version / "dataset_info.json"
        text = info.read_text(encoding="utf-8")
        assert own.name in text
        info.write_text(text.replace(own.name, version), encoding="utf-8")
    with caplog.at_level("WARNING", logger="absl"):
        assert len(open_source("cifar10", "train", str(tmp_path))) == 7
        assert not caplog.messages
        shutil.rmtree(own)
        source = open_source("cifar10", "test", str(tmp_path))
    assert len(source) == 3 and source.read(0)[1] in range(10)
    assert caplog.messages == [f"cifar10 {own.name} is not prepared, read is version 2.10.0"]


def test_a_split_that_is_not_prepared(tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/cifar10", tmp_path / "cifar10")
    (info,) = (tmp_path / "cifar10").glob("*/dataset_info.json")
    fields = json.loads(info.read_text(encoding="utf-8"))
    fields["splits"] = [split for split in fields["splits"] if split["name"] == "train"]
    info.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"has no split test of images and labels, but train of .*; prepare it"):
        open_source("cifar10", "test", str(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "split", "root", "error", "message"),
    [
        ("mnist", "test", "", ValueError, "unknown dataset 'mnist'; expected one of digits, imagenet2012"),
        ("digits", "validation", "", ValueError, "unknown split 'validation' of digits"),
        ("digits", "test", "somewhere", ValueError, "the digits come with scikit-learn"),
        ("image_folder", "test", "", FileNotFoundError, "no image folder or zip file at ''"),
        ("image_folder", "test", "{}/none", FileNotFoundError, "no image folder or zip file at .*none"),
        ("image_folder", "test", "{}/empty", ValueError, "holds no images"),
        ("image_folder", "test", "{}/only_train", ValueError, "no folder test or .* or val with .* the test split"),
        ("image_folder", "test", "{}/classless", ValueError, "a.jpg in .* has no class"),
        ("image_folder", "test", "{}/stray", ValueError, "1 classes of .* are ImageNet-1k's and 1 are not, .*'misc'"),
        ("image_folder", "test", "{}/broken.zip", ValueError, "neither a folder nor a readable zip file"),
        (
            "imagenet2012",
            "test",
            "{}",
            FileNotFoundError,
            "imagenet2012 is not prepared in .*prepare it by: tfds build",
        ),
    ],
)
def test_errors(tmp_path, dataset, split, root, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 cut short")
    make_folder(tmp_path / "only_train", ("train/cat/1.jpg",))
    make_folder(tmp_path / "classless", ("a.jpg",))
    make_folder(tmp_path / "stray", ("n01440764/a.jpg", "misc/a.jpg"))
    with pytest.raises(error, match=message):
        open_source(dataset, split, root.format(tmp_path))
    assert np.all([p.name != "imagenet2012" for p in tmp_path.iterdir()])


def test_digits():
    train, test = (open_source("digits", split) for split in ("train", "test"))
    assert len(train) == 1297 and len(test) == 500
    image, label = train.read(0)
    assert image.shape == (8, 8, 1) and image.dtype == np.float32 and isinstance(label, int)
