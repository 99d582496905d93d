"""The list of models: each a few lines, with the layers that must be found in it and what must be left, and why.

A model is a function of a NumPy generator that returns `apply`, `params` and two small batches, as a user would hand
them to `quantize(apply, params, batches, spec)`. The decorator above it says what is expected:

  layers: {layer name: (kind, (E, N, C), rows over both batches)} in the order in which the layers run. The kinds:
    "dense" (a product without batch dimensions), "grouped" (E of them: one for each expert), "conv" (a convolution of
    E feature groups). N inputs are contracted, C outputs remain.
  left: {path of a parameter that stays float: regular expression that its reason matches}.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Why a parameter is no layer: what its reason in the coverage table must match.
ADDED = "add"
MULTIPLIED = "mul"
LOOKED_UP = "look|gather"
TWO_WAYS = "ways"
COMPUTED = "comput|mul|square|integer_pow"
JOINED = "concat|join"
IN_BRANCH = "cond|branch"
IN_LOOP = "while|loop"
NOT_USED = "not used|unused|depend"
NOT_FLOAT = "int|float|gt|compar"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to quantize, and what must come of it; `tolerance` is the statistics' relative rounding error."""

    name: str
    apply: Callable[[Any, Any], Any]
    params: Any
    batches: list[Any]
    layers: Mapping[str, tuple[str, tuple[int, int, int], int]]
    left: Mapping[str, str]
    tolerance: float


MODELS: dict[str, Callable[[], Model]] = {}


def model(layers, left=None, *, tolerance=1e-4):
    """Registers the function below it under its own name; it is called once, when the model is first wanted."""

    def register(build):
        name = build.__name__

        @functools.cache
        def built():
            apply, params, batches = build(np.random.default_rng(zlib.crc32(name.encode())))
            return Model(name, apply, params, batches, layers, dict(left or {}), tolerance)

        assert name not in MODELS, f"two models are called {name}"
        MODELS[name] = built
        return built

    return register


def dense(n, c, rows):
    """A matrix (n, c) applied to so many rows."""
    return "dense", (1, n, c), rows


def grouped(e, n, c, rows):
    """e matrices (n, c), each applied to rows of its own."""
    return "grouped", (e, n, c), rows


def conv(n, c, rows, groups=1):
    """A convolution: n positions × input features of a group, c outputs of a group, so many patches."""
    return "conv", (groups, n, c), rows


def biases(*layers):
    """The layers' biases are left."""
    return {f"{layer}/bias": ADDED for layer in layers}


def norms(*layers):
    """The scales and biases of normalization layers are left."""
    return {f"{layer}/{what}": why for layer in layers for what, why in (("scale", MULTIPLIED), ("bias", ADDED))}


def drawn(shapes, rng):
    """The same tree with every float leaf drawn anew: no zeros or ones, no number twice in one leaf, so that a kernel
    and its place are known by its numbers."""

    def draw(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(rng.choice(_NUMBERS, leaf.shape, replace=False), leaf.dtype)

    return jax.tree.map(draw, shapes)


def arrays(rng, *shapes):
    """One batch of normal numbers for each shape."""
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


# All numbers of either sign from 2⁻⁶ to 2 that bfloat16 can hold, so that a cast to it leaves them distinct.
_NUMBERS = np.concatenate(
    [s * 2.0**e * (1 + np.arange(128) / 128) for s in (-1, 1) for e in range(-6, 1)],
).astype(np.float32)
