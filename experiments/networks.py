"""What experiments/train.py can train: each model as functions of its parameters and of its batch statistics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from beacon_jax.models import cnn, vit


@dataclasses.dataclass(frozen=True)
class Network:
    """A model for classification; parameters and statistics are nested dicts, the latter empty without BatchNorm.

    Attributes:
      classes: logits.
      init: (key, images (B, H, W, c)) → (params, statistics).
      train: (params, statistics, images) → (logits (B, classes), statistics brought up to date).
      muon: (path, leaf) → the axes that Muon takes for a matrix's, None for a leaf that AdamW trains.
      variables: (params, statistics) → what the checkpoint holds.
      inference: the checkpoint's content → (function (params, images) → logits, params).
    """

    classes: int
    init: Callable[[jax.Array, jax.Array], tuple[dict, dict]]
    train: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    muon: Callable[[tuple[str, ...], jax.Array], MuonDimensionNumbers | None]
    variables: Callable[[dict, dict], dict]
    inference: Callable[[dict], tuple[Callable[[Any, jax.Array], jax.Array], dict]]


def create_network(name: str) -> Network:
    """The model of that name; ValueError names the known ones."""
    for variants, create in ((vit.VARIANTS, _vit), (cnn.VARIANTS, _cnn)):
        if name in variants:
            return create(name)
    raise ValueError(f"unknown model {name!r}; expected one of {', '.join(vit.VARIANTS | cnn.VARIANTS)}")


def _vit(name: str) -> Network:
    model = vit.create_vit(name)

    def apply(params, images):
        return model.apply({"params": params}, images)

    def muon(path, _):
        return MuonDimensionNumbers() if path[0].startswith("blocks_") and path[-1] == "kernel" else None

    return Network(
        classes=model.classes,
        init=lambda key, images: (jax.jit(model.init)(key, images)["params"], {}),
        train=lambda params, statistics, images: (apply(params, images), statistics),
        muon=muon,
        variables=lambda params, statistics: params,
        inference=lambda variables: (apply, variables),
    )


def _cnn(name: str) -> Network:
    def init(key, images):
        _, params, statistics = jax.jit(lambda key: cnn.split(cnn.create_cnn(name, key)))(key)
        return params, statistics

    model = nnx.eval_shape(lambda: cnn.create_cnn(name, jax.random.key(0)))
    model.train()
    graphdef, _, _ = cnn.split(model)

    def train(params, statistics, images):
        model = nnx.merge(graphdef, params, statistics)
        logits = model(images)
        return logits, cnn.split(model)[2]

    def muon(path, leaf):
        inner = path[0] not in ("stem", "head") and path[-1] == "kernel"
        # A depthwise kernel has one input per channel: no matrix to orthogonalize.
        if not inner or (leaf.ndim == 4 and leaf.shape[2] == 1):
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return Network(
        classes=model.classes,
        init=init,
        train=train,
        muon=muon,
        variables=cnn.united,
        inference=lambda variables: cnn.inference(name, variables),
    )
