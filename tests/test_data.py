import numpy as np
import pytest
from sklearn.datasets import load_digits

from beacon_jax import data


def whole(split, **options):
    parts = list(data.batches("digits", split, 128, **options))
    return (np.concatenate([b[key] for b in parts]) for key in ("image", "label"))


def test_digits_are_split_without_overlap():
    (train, train_labels), (test, test_labels) = whole("train"), whole("test")
    assert train.shape == (1297, 8, 8, 1) and test.shape == (500, 8, 8, 1)
    assert train.dtype == np.float32 and train_labels.dtype == np.int32
    assert train.min() == -1 and train.max() == 1
    raw = load_digits()
    assert np.bincount(np.concatenate([train_labels, test_labels])).tolist() == np.bincount(raw.target).tolist()
    images = np.concatenate([train, test]).reshape(1797, -1)
    np.testing.assert_array_equal(np.unique(images, axis=0), np.unique(raw.data / 8 - 1, axis=0).astype(np.float32))


def test_order_and_subsets():
    images, labels = whole("train", count=300, seed=5)
    again, _ = whole("train", count=300, seed=5)
    other, _ = whole("train", count=300, seed=6)
    first, _ = whole("train", count=300)
    np.testing.assert_array_equal(images, again)
    assert len(labels) == 300 and not np.array_equal(images, other) and not np.array_equal(images, first)
    np.testing.assert_array_equal(first, next(whole("train"))[:300])
    assert [len(b["label"]) for b in data.batches("digits", "train", 128, count=300)] == [128, 128, 44]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mnist", "test", 8), {}, "unknown dataset 'mnist'; expected one of digits"),
        (("digits", "validation", 8), {}, "unknown split 'validation' of digits"),
        (("digits", "test", 0), {}, "batch_size must be at least 1, got 0"),
        (("digits", "test", 8), {"count": 501}, "digits test has 500 images, asked for 501"),
        (("digits", "test", 8), {"count": 0}, "digits test has 500 images, asked for 0"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        data.batches(*arguments, **options)
