"""The matrix products that calibrating a ViT cannot do without, as plain ones: a yardstick for the benchmark."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def calibration_products(model: Mapping[str, Any], images: int, streams: int) -> Callable[[], Any]:
    """The products of one block for a batch of images, in true float32, on random data.

    Of each stream the forward pass; of the Gram matrices of the inputs of its four layers the half of X̃ᵀX̃ that is below
    the diagonal (as many operations as of half the rows), and with two streams X̃ᵀX and half of XᵀX.

    Args:
      model: of a ViT: width, heads, mlp_ratio, image_size, patch_size.
      images: in the batch.
      streams: 1, or 2 with error correction.
    """
    width, heads = model["width"], model["heads"]
    hidden = model.get("mlp_ratio", 4) * width
    tokens = (model["image_size"] // model["patch_size"]) ** 2 + 1
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1])))

    narrow, wide = random(images * tokens, width), random(images * tokens, hidden)
    kernels = random(width, 3 * width), random(width, width), random(width, hidden), random(hidden, width)
    queries = random(images, heads, tokens, width // heads)

    @jax.jit
    def products(narrow, wide, kernels, queries):
        # One after another and all different, so that none is left out or shared.
        made = []
        for stream in range(streams):
            shift = jnp.float32(stream)
            scores = _matmul(queries + shift, queries.mT)
            made += [_matmul(x + shift, kernel) for x, kernel in zip((narrow,) * 3 + (wide,), kernels, strict=True)]
            made.append(_matmul(scores, queries))
        for i, x in enumerate((narrow, narrow, narrow, wide)):
            y, half = x + jnp.float32(i), x.shape[0] // 2
            made.append(_matmul(y[:half].T, y[:half]))
            if streams == 2:
                made += [_matmul(y.T, x), _matmul(y[half:].T, y[half:])]
        return made

    return lambda: products(narrow, wide, kernels, queries)


def _matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
