"""Image classification by a vision transformer of ours, the default of config.task."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.data import Batches
from beacon_jax.evaluate import Agreement, Divergence, RelativeOutputError, Top1, Top5
from beacon_jax.models import cnn, vit
from beacon_jax.models.vit import ViT, create_vit
from beacon_jax.places import is_file, local_copy, place
from beacon_jax.sources import DATASETS, DIGITS_TEST
from experiments.task import Task, identity_of

METRICS = {
    "top1": Top1(),
    "agreement": Agreement(),
    "kl": Divergence(),
    "logit_error": RelativeOutputError(),
    "top5": Top5(),
}


def images(config: ConfigDict) -> Task:
    """The task of config.model on config.data.

    Raises:
      ValueError: an unknown model, dataset or setting; a checkpoint of another model; a dataset without splits, unless
        data.shared_images accepts that the calibration sees the test images.
      FileNotFoundError: no checkpoint or dataset.
    """
    model, params = load_model(config)
    return classification(config, lambda params, images: model.apply({"params": params}, images), params)


TEST_IMAGES = {"imagenet2012": 50_000, "cifar10": 10_000, "digits": DIGITS_TEST}


def images_shapes(config: ConfigDict) -> Task:
    """The task of `images` with shapes in place of weights and images, which it does without. ValueError likewise."""
    model = create_vit(config.model.name)
    shape = model.image_size, model.image_size, model.channels
    return classification_shapes(
        config, lambda params, x: model.apply({"params": params}, x), model.param_shapes(), shape
    )


def classification_shapes(
    config: ConfigDict, apply: Callable[[Any, jax.Array], jax.Array], params: Any, shape: tuple[int, int, int]
) -> Task:
    """The task of `classification` with shapes (H, W, c) in place of images; of a folder of images one test batch."""
    d = config.data
    if d.name not in DATASETS:
        raise ValueError(f"unknown dataset {d.name!r}; expected one of {', '.join(DATASETS)}")

    def batches(count: int) -> list[dict[str, jax.ShapeDtypeStruct]]:
        sizes = [d.batch_size] * (count // d.batch_size) + [count % d.batch_size] * (count % d.batch_size > 0)
        image, label = ((n, *shape) for n in sizes), ((n,) for n in sizes)
        return [
            dict(image=jax.ShapeDtypeStruct(i, jnp.float32), label=jax.ShapeDtypeStruct(own, jnp.int32))
            for i, own in zip(image, label, strict=True)
        ]

    return Task(
        apply=lambda params, batch: apply(params, batch["image"]),
        params=params,
        calibration=lambda count, seed: batches(count),
        test=batches(d.test_images or TEST_IMAGES.get(d.name, d.batch_size)),
        metrics=METRICS,
        identity=identity_of(model=config.model.name),
    )


def classification(config: ConfigDict, apply: Callable[[Any, jax.Array], jax.Array], params: Any) -> Task:
    """The task of a function (params, images (B, H, W, c)) → logits (B, classes) on config.data.

    Its parameters must follow from config.model: its name and checkpoint. Raises as `images`.
    """
    train, test = batches(config, "train"), test_batches(config)
    if train.unsplit and not config.data.shared_images:
        raise ValueError(
            f"{config.data.root} has no folders train and test, so the calibration would see the test images; "
            "data.shared_images=True accepts that"
        )

    facts = dict(model=config.model.name, params=checkpoint_digest(config), data=data_facts(config, train, test))
    return Task(
        apply=lambda params, batch: apply(params, batch["image"]),
        params=params,
        calibration=lambda count, seed: train.subset(count, seed, cache=True),
        test=test,
        metrics=METRICS,
        identity=identity_of(**facts),
    )


def data_facts(config: ConfigDict, train: Batches, test: Batches) -> dict:
    """What decides the images, wherever they lie."""
    names = {key: config.data[key] for key in ("name", "preset", "on_unreadable", "test_images")}
    return names | {"train_size": train.size, "test_size": test.size}


def load_model(config: ConfigDict) -> tuple[ViT, dict]:
    """The float model and its parameters."""
    model = create_vit(config.model.name)
    params = load_params(config.model.checkpoint)
    recorded = saved_model(config.model.checkpoint)
    if recorded not in (None, config.model.name):
        # Models of one shape can differ in what they expect of the pixels, as DeiT and ViT do.
        raise ValueError(f"{config.model.checkpoint} holds the parameters of {recorded}, not of {config.model.name}")
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, model.param_shapes()):
        raise ValueError(f"{config.model.checkpoint} does not hold the parameters of {config.model.name}")
    return model, params


def checkpoint_digest(config: ConfigDict) -> str:
    """Of the file with the float parameters; FileNotFoundError where there is none."""
    if not is_file(place(config.model.checkpoint)):
        raise FileNotFoundError(f"no checkpoint at {config.model.checkpoint!r}")
    with local_copy(config.model.checkpoint) as path, path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def batches(config: ConfigDict, split: str, **changed) -> Batches:
    """The images of a split, preprocessed as config.data says and normalized as the model's weights expect."""
    d = config.data
    options = dict(
        batch_size=d.batch_size,
        root=d.root,
        preset=d.preset,
        normalization=(vit.NORMALIZATION | cnn.NORMALIZATION)[config.model.name],
        on_unreadable=d.on_unreadable,
        workers=d.workers or None,
    )
    return Batches(d.name, split, **(options | changed))


def test_batches(config: ConfigDict) -> Batches:
    """The labelled test images; a part of them is drawn at random, because an image folder is sorted by class."""
    d = config.data
    return batches(config, "test", count=d.test_images or None, seed=0 if d.test_images else None, cache=d.cache)
