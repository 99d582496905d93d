"""The convolutional network of configs/cifar10_cnn.py, as --config.task=experiments.tasks.cnn:cnn"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.models.cnn import inference
from experiments import common


def load_network(name: str, path: str) -> tuple[Callable[[Any, dict], jax.Array], dict]:
    """The function (params, batch) → logits (B, classes), and the parameters.

    A batch has image (B, H, W, c), preprocessed for the model. BatchNorm's statistics are not among the parameters:
    the function keeps those of the checkpoint.

    Raises:
      FileNotFoundError: no checkpoint at `path`.
      ValueError: an unknown model, or the checkpoint of another.
    """
    variables, recorded = load_params(path), saved_model(path)
    if recorded != name:
        raise ValueError(f"{path} holds the parameters of {recorded or 'a model without a name'}, not of {name}")
    apply, params = inference(name, variables)
    return lambda params, batch: apply(params, batch["image"]), params


def identity(config) -> str:
    """A digest of the model's name, its checkpoint, and the images."""
    images = {key: config.data[key] for key in ("name", "preset", "on_unreadable", "test_images")}
    decides = [config.model.name, common.checkpoint_digest(config), images]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def cnn(config):
    """The task: top-1 on the test images, and how often the most likely class stays the float model's.

    Args:
      config: its model and data are read.
    """
    from beacon_jax.evaluate import Agreement, Top1
    from experiments.task import Task

    apply, params = load_network(config.model.name, config.model.checkpoint)
    return Task(
        apply=apply,
        params=params,
        calibration=lambda count, seed: common.batches(config, "train", count=count, seed=seed),
        test=common.test_batches(config),
        metrics={"top1": Top1(), "agreement": Agreement()},
        identity=identity(config),
    )
