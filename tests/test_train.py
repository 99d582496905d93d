import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, path_aware_map
from PIL import Image

from beacon_jax.models import cnn, vit
from configs import cifar10, cifar10_cnn, digits
from experiments import common, train, train_language
from experiments.augment import AUGMENTATIONS
from experiments.networks import create_network


def brief():
    config = digits.get_config()
    config.train.update(epochs=2, batch_size=512, save_every=3, warmup_epochs=0.5)
    return config


def tiny(tmp_path, monkeypatch):
    """A small transformer on the digits."""
    small = dict(image_size=8, patch_size=4, width=8, depth=1, heads=2, channels=1, classes=10)
    monkeypatch.setitem(vit.VARIANTS, "tiny", small)
    monkeypatch.setitem(vit.NORMALIZATION, "tiny", "half")
    config = brief()
    config.model.name = "tiny"
    return config


def tiny_cnn(tmp_path, monkeypatch):
    """A small network with BatchNorm, on noise in an image folder."""
    monkeypatch.setitem(cnn.VARIANTS, "tiny", dict(widths=(2, 4, 8), classes=2))
    monkeypatch.setitem(cnn.NORMALIZATION, "tiny", "cifar10")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    config = cifar10_cnn.get_config()
    config.model.name = "tiny"
    config.data.update(name="image_folder", root=str(tmp_path))
    config.train.update(epochs=2, batch_size=8, save_every=3, warmup_epochs=0.5)
    return config


@pytest.mark.parametrize("create", [tiny, pytest.param(tiny_cnn, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_to_the_same_result(tmp_path, monkeypatch, create):
    config = create(tmp_path, monkeypatch)
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
    config = brief()
    params = {"a": np.ones(3)}
    train.Progress(tmp_path / "t", config).save(params, (), 7)
    restored, _, step = train.Progress(tmp_path / "t", config).load({"a": np.zeros(3)}, ())
    np.testing.assert_array_equal(restored["a"], params["a"])
    assert step == 7
    config.data.root, config.train.save_every = "moved", 100  # these do not decide the result
    train.Progress(tmp_path / "t", config).load(params, ())
    other = train.Progress(tmp_path / "t", config)
    other.made_with = {"data": "ab"}
    message = (
        "was made with data none instead of ab; remove it to start afresh, or go on from it with --config.reuse=any"
    )
    with pytest.raises(ValueError, match=message):
        other.load(params, ())
    config.reuse = "any"
    taken = train.Progress(tmp_path / "t", config)
    taken.made_with = {"data": "ab"}
    assert taken.load(params, ())[2] == 7
    config.train.learning_rate = 0.5
    with pytest.raises(ValueError, match="belongs to another configuration; remove it to start afresh"):
        train.Progress(tmp_path / "t", config).load(params, ())
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:30])
    with pytest.raises(ValueError, match="is damaged"):
        train.Progress(tmp_path / "t", config).load(params, ())


@pytest.mark.parametrize("script", [train, train_language])
def test_the_place_of_the_parameters_is_tried_first(tmp_path, monkeypatch, script):
    config = tiny(tmp_path, monkeypatch)
    config.train.float_checkpoint = str(tmp_path / "taken")
    monkeypatch.setattr(common, "get_config", lambda: config)
    monkeypatch.setattr(script, "fit", lambda *_: pytest.fail("it trains"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*taken: a folder is in its place"):
        script.main([])
    (tmp_path / "taken").rmdir()
    with train.place_for(config), pytest.raises(OSError, match=r"taken is in use by another run \(process \d+"):
        script.main([])
    assert not list(tmp_path.iterdir())


def test_training_brings_the_statistics_up_to_date(tmp_path, monkeypatch):
    config = tiny_cnn(tmp_path, monkeypatch)
    variables = train.fit(config, train.Progress(tmp_path / "t", config))
    _, statistics = create_network("tiny").init(jax.random.key(0), None)
    for layer, part in statistics.items():
        for leaf, before in flatten_dict(part).items():
            assert not np.allclose(flatten_dict(variables[layer])[leaf], before), (layer, leaf)


def test_muon_trains_the_inner_kernels_as_matrices():
    network = create_network("cnn_cifar10")
    params, _ = jax.eval_shape(network.init, jax.random.key(0), None)
    axes = flatten_dict(path_aware_map(network.muon, params), sep="/")
    chosen = {name for name, dimensions in axes.items() if dimensions is not None}
    assert axes["down2/conv/kernel"] == ((0, 1, 2), 3) and axes["separable/pointwise/kernel"] == ((0,), 1)
    convolutions = {"block1", "down2", "block2/first", "block2/second", "down3", "block3/first", "block3/second"}
    assert chosen == {"separable/pointwise/kernel"} | {f"{name}/conv/kernel" for name in convolutions}


def test_mistakes(tmp_path):
    for changes, message in (
        (dict(optimizer="adagrad"), "unknown optimizer 'adagrad'; expected adamw or muon"),
        (dict(augmentation="mixup"), "unknown augmentation 'mixup'; expected one of affine, flip_crop"),
        (dict(save_every=0), "train.save_every must be at least 1, got 0"),
        (dict(batch_size=2000), "train.batch_size=2000 exceeds the 1297 training images"),
    ):
        config = brief()
        config.train.update(changes)
        with pytest.raises(ValueError, match=message):
            train.fit(config, train.Progress(tmp_path / "t", config))
    with pytest.raises(ValueError, match=r"unknown model 'resnet'; expected one of deit_base_.*, cnn_cifar10"):
        create_network("resnet")


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
