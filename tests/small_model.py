"""A model with all that a file has to hold: a stack of kernels, one of them float, a convolution, offsets, bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax import QuantSpec, quantize

WIDTH = 12
SPEC = QuantSpec(
    method="rtn",
    alphabet="1.58",
    options={"symmetric": False},
    rules=[
        {"layers": r"stack\[1\]", "skip": True},
        {"layers": "conv", "alphabet": "2.58"},
        {"layers": "out", "alphabet": "8"},
        {"layers": "to/query", "alphabet": [-3, -1, 0.5, 1, 4]},
    ],
    allow_few_rows=True,
)


def make_params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "conv": {"kernel": normal(2, 2, WIDTH, 4)},
        "out": {"kernel": normal(4, 5).astype(jnp.bfloat16), "bias": normal(5)},
        "stack": {"kernel": normal(3, WIDTH, WIDTH), "bias": normal(3, WIDTH)},
        "to": {"query": normal(WIDTH, 3, 4)},
        "unused": jnp.asarray(3),
    }


def make_batch(count=40):
    return np.random.default_rng(1).normal(size=(count, 3, 3, WIDTH)).astype(np.float32)


def apply(params, x):
    for kernel, bias in zip(params["stack"]["kernel"], params["stack"]["bias"], strict=True):
        x = jnp.tanh(x @ kernel + bias[None, None, None])
    x = jnp.einsum("bhwc,cnd->bhwnd", x, params["to"]["query"]).reshape(x.shape)
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=dims)
    return x.mean((1, 2)) @ params["out"]["kernel"].astype(jnp.float32) + params["out"]["bias"][None]


@functools.cache
def make_result():
    return quantize(apply, make_params(), [make_batch()], SPEC)
