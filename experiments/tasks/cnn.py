"""The convolutional network of configs/cifar10_cnn.py, as --config.task=experiments.tasks.cnn:cnn"""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.models.cnn import inference
from experiments.task import Task
from experiments.tasks.images import classification, classification_shapes


def cnn(config: ConfigDict) -> Task:
    """The task of config.model, in Flax NNX, on config.data. Raises as experiments.tasks.images does."""
    return classification(config, *load_network(config.model.name, config.model.checkpoint))


def cnn_shapes(config: ConfigDict) -> Task:
    """The same with shapes in place of images, which are CIFAR-10's."""
    return classification_shapes(config, *load_network(config.model.name, config.model.checkpoint), (32, 32, 3))


def load_network(name: str, path: str) -> tuple[Callable[[Any, jax.Array], jax.Array], dict]:
    """The function (params, images (B, H, W, c)) → logits (B, classes), and the parameters.

    BatchNorm's statistics are not among the parameters: the function keeps those of the checkpoint.

    Raises:
      FileNotFoundError: no checkpoint at `path`.
      ValueError: an unknown model, or the checkpoint of another.
    """
    variables, recorded = load_params(path), saved_model(path)
    if recorded != name:
        raise ValueError(f"{path} holds the parameters of {recorded or 'a model without a name'}, not of {name}")
    return inference(name, variables)
