import jax
import numpy as np
import pytest

from configs import cifar10, digits
from experiments import train
from experiments.augment import AUGMENTATIONS


def tiny():
    config = digits.get_config()
    config.train.update(epochs=2, batch_size=512, save_every=3, warmup_epochs=0.5)
    return config


def test_a_stopped_training_goes_on_to_the_same_result(tmp_path):
    config = tiny()
    whole = train.fit(config, train.Progress(tmp_path / "whole", config))

    class Stopped(Exception):
        pass

    class Dying(train.Progress):
        def save(self, *args):
            super().save(*args)
            raise Stopped

    with pytest.raises(Stopped):
        train.fit(config, Dying(tmp_path / "a.training", config))
    resumed = train.fit(config, train.Progress(tmp_path / "a.training", config))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_state_of_another_training_is_refused(tmp_path):
    config = tiny()
    params = {"a": np.ones(3)}
    train.Progress(tmp_path / "t", config).save(params, (), 7)
    restored, _, step = train.Progress(tmp_path / "t", config).load({"a": np.zeros(3)}, ())
    np.testing.assert_array_equal(restored["a"], params["a"])
    assert step == 7
    config.data.root, config.train.save_every = "moved", 100  # these do not decide the result
    train.Progress(tmp_path / "t", config).load(params, ())
    config.train.learning_rate = 0.5
    with pytest.raises(ValueError, match="belongs to another configuration; remove it to start afresh"):
        train.Progress(tmp_path / "t", config).load(params, ())
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:30])
    with pytest.raises(ValueError, match="is damaged"):
        train.Progress(tmp_path / "t", config).load(params, ())


def test_mistakes(tmp_path):
    for changes, message in (
        (dict(optimizer="adagrad"), "unknown optimizer 'adagrad'; expected adamw or muon"),
        (dict(augmentation="mixup"), "unknown augmentation 'mixup'; expected one of affine, flip_crop"),
        (dict(save_every=0), "train.save_every must be at least 1, got 0"),
        (dict(batch_size=2000), "train.batch_size=2000 exceeds the 1297 training images"),
    ):
        config = tiny()
        config.train.update(changes)
        with pytest.raises(ValueError, match=message):
            train.fit(config, train.Progress(tmp_path / "t", config))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations(rng, name):
    settings = cifar10.get_config().train
    images = rng.normal(size=(64, 12, 12, 3)).astype(np.float32)
    one, two = (AUGMENTATIONS[name](jax.random.key(i), images, settings) for i in (0, 1))
    assert one.shape == images.shape and not np.array_equal(one, two)
    settings.update(shift=0.0, rotate=0.0, zoom=0.0)
    still = AUGMENTATIONS[name](jax.random.key(0), images, settings)
    flipped = np.stack([np.allclose(a, b[:, ::-1], atol=1e-5) for a, b in zip(still, images, strict=True)])
    kept = np.stack([np.allclose(a, b, atol=1e-5) for a, b in zip(still, images, strict=True)])
    assert np.all(flipped | kept) and flipped.any() == (name == "flip_crop")


def test_crops_are_windows_of_the_image_or_its_mirror():
    settings = cifar10.get_config().train
    image = np.arange(12 * 12, dtype=np.float32).reshape(12, 12)
    batch = np.broadcast_to(image[None, :, :, None], (200, 12, 12, 1))
    crops = np.asarray(AUGMENTATIONS["flip_crop"](jax.random.key(0), batch, settings))[..., 0]
    padded = [np.pad(side, 4, mode="reflect") for side in (image, np.fliplr(image))]
    windows = {side[y : y + 12, x : x + 12].tobytes() for side in padded for y in range(9) for x in range(9)}
    assert {np.ascontiguousarray(crop).tobytes() for crop in crops} <= windows
