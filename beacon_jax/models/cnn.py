"""A small residual convolutional network in Flax NNX: BatchNorm after every convolution, one depthwise separable block.

Its arrays are handled as nested dicts, so that they can be saved and trained as any others: the parameters (nnx.Param:
kernels, biases, and BatchNorm's scale) and the statistics (nnx.BatchStat: BatchNorm's running mean and var).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict


class ConvNorm(nnx.Module):
    """Convolution without bias, then BatchNorm: (B, H, W, inputs) → (B, H / stride, W / stride, outputs)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs, outputs, (size, size), strides=stride, feature_group_count=groups, use_bias=False,
            kernel_init=nnx.initializers.he_normal(), rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """By the batch's statistics in training (`module.train()`), else by the running ones."""
        return self.norm(self.conv(x))


class Residual(nnx.Module):
    """x + two 3 × 3 convolutions of x, ReLU between and after: (B, H, W, width) → the same shape."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.first = ConvNorm(width, width, 3, rngs=rngs)
        self.second = ConvNorm(width, width, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block's output."""
        return nnx.relu(x + self.second(nnx.relu(self.first(x))))


class Separable(nnx.Module):
    """x + depthwise 3 × 3 convolution and linear map over channels: (B, H, W, width) → the same shape."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.depthwise = ConvNorm(width, width, 3, groups=width, rngs=rngs)
        self.pointwise = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The block's output."""
        return nnx.relu(x + self.pointwise(nnx.relu(self.depthwise(x))))


class ConvNet(nnx.Module):
    """Stem of stride 2, residual blocks on three sizes of feature map, mean over positions, linear classifier.

    Attributes:
      widths: channels of the maps of a half, a quarter and an eighth of the image's side.
      classes: logits.
      channels: of the images.
    """

    def __init__(self, widths: tuple[int, int, int], classes: int, channels: int = 3, *, rngs: nnx.Rngs):
        self.widths, self.classes, self.channels = widths, classes, channels
        narrow, middle, wide = widths
        self.stem = ConvNorm(channels, narrow, 4, stride=2, rngs=rngs)
        self.block1 = ConvNorm(narrow, narrow, 3, rngs=rngs)
        self.down2 = ConvNorm(narrow, middle, 3, stride=2, rngs=rngs)
        self.block2 = Residual(middle, rngs=rngs)
        self.down3 = ConvNorm(middle, wide, 3, stride=2, rngs=rngs)
        self.block3 = Residual(wide, rngs=rngs)
        self.separable = Separable(wide, rngs=rngs)
        self.head = nnx.Linear(wide, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (B, classes) of images (B, H, W, channels), H and W multiples of 8; ValueError on others."""
        if images.ndim != 4 or images.shape[1] % 8 or images.shape[2] % 8 or images.shape[3] != self.channels:
            expected = f"(B, H, W, {self.channels}) with sides that are multiples of 8"
            raise ValueError(f"this model takes images {expected}, got {images.shape}")
        x = nnx.relu(self.stem(images))
        x = nnx.relu(x + self.block1(x))
        x = self.block2(nnx.relu(self.down2(x)))
        x = self.block3(nnx.relu(self.down3(x)))
        x = self.separable(x)
        return self.head(x.mean((1, 2)))


# Every model size, in one table.
VARIANTS: dict[str, dict] = {
    "cnn_cifar10": dict(widths=(32, 64, 192), classes=10),
}

# The pixel normalization (a key of preprocessing.NORMALIZATIONS) that each model's weights expect.
NORMALIZATION = {"cnn_cifar10": "cifar10"}


def create_cnn(name: str, key: jax.Array) -> ConvNet:
    """The model of that name, its parameters drawn with `key`; ValueError names the known ones."""
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(VARIANTS)}")
    return ConvNet(**VARIANTS[name], rngs=nnx.Rngs(params=key))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """(structure, parameters, statistics): nested dicts of arrays, of which nnx.merge makes the model again."""
    graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, statistics = states
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)


def united(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict:
    """Parameters and statistics in one nested dict: what a checkpoint holds."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(statistics))


def inference(name: str, variables: Mapping[str, Any]) -> tuple[Callable[[Any, jax.Array], jax.Array], dict]:
    """The model of that name with frozen statistics.

    Args:
      name: a key of VARIANTS.
      variables: parameters and statistics, as `united` gives them.

    Returns:
      (apply, params): the function (params, images (B, H, W, c)) → logits (B, classes), which normalizes by the running
      statistics in `variables`; and the parameters alone.

    Raises:
      ValueError: an unknown name, or variables of another model.
    """
    model = nnx.eval_shape(lambda: create_cnn(name, jax.random.key(0)))
    model.eval()
    graphdef, *parts = split(model)
    expected, given = flatten_dict(united(*parts), sep="/"), flatten_dict(variables, sep="/")
    for key in sorted(expected | given):
        shapes = [jnp.shape(tree[key]) if key in tree else "nothing" for tree in (given, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"these are not the variables of {name}: {key} is {shapes[0]}, expected {shapes[1]}")
    params, statistics = (
        unflatten_dict({key: given[key] for key in flatten_dict(part, sep="/")}, sep="/") for part in parts
    )

    def apply(params, images):
        return nnx.merge(graphdef, params, statistics)(images)

    return apply, params
