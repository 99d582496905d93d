"""A product is its view: kernel and rows multiply to the same numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from beacon_jax.graph.layers import find_layers
from beacon_jax.graph.trace import trace

EINSUMS = [
    "ab,bc->ac",
    "ab,cb->ca",
    "bta,ahd->bthd",
    "bthd,hde->bte",
    "eca,eaf->ecf",
    "bgi,gio->bgo",
    "ab,b->a",
    "b,bc->c",
]
CONVS = [  # kernel (h, w, inputs / groups, outputs), and options
    ((3, 3, 4, 6), dict(window_strides=(1, 1), padding="SAME")),
    ((3, 2, 4, 6), dict(window_strides=(2, 1), padding="VALID")),
    ((3, 3, 2, 6), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
    ((3, 3, 1, 8), dict(window_strides=(1, 2), padding="SAME", feature_group_count=4)),
    ((2, 3, 4, 6), dict(window_strides=(1, 1), padding=((2, 0), (1, 3)), rhs_dilation=(2, 1))),
    ((3, 3, 4, 6), dict(window_strides=(1, 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))),
    ((1, 1, 4, 6), dict(window_strides=(1, 1), padding="VALID")),
]


def products(apply, kernel, batch):
    """The layer's rows times its kernel, and the function's own output."""
    program = trace(apply, {"w": kernel}, batch)
    (layer,) = find_layers(program).layers
    (use,) = layer.uses
    W = layer.place.read(kernel)
    rows = np.asarray(use.view.rows(jnp.asarray(batch)))
    assert rows.shape[-2] == use.rows and W.shape == layer.shape
    return layer, np.matmul(rows, W), np.asarray(apply({"w": kernel}, batch))


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum(subscripts, rng):
    sizes = dict(zip("abcdefghiot", (3, 5, 4, 2, 3, 4, 3, 2, 6, 7, 5), strict=True))
    one, two, out = subscripts.replace("->", ",").split(",")
    left, right = (tuple(sizes[s] for s in part) for part in (one, two))
    batch, kernel = rng.normal(size=left).astype(np.float32), rng.normal(size=right).astype(np.float32)
    layer, own, expected = products(lambda p, x: jnp.einsum(subscripts, x, p["w"]), kernel, batch)
    assert layer.kind == ("grouped" if set(one) & set(two) & set(out) else "dense")
    assert own.size == expected.size
    np.testing.assert_allclose(np.sort(own.reshape(-1)), np.sort(expected.reshape(-1)), rtol=2e-5, atol=2e-5)
    multiplications = own.size * layer.shape[-2]
    assert layer.uses[0].multiplications == multiplications


@pytest.mark.parametrize(("shape", "options"), CONVS)
def test_convolutions(shape, options, rng):
    batch, kernel = rng.normal(size=(2, 7, 6, 4)).astype(np.float32), rng.normal(size=shape).astype(np.float32)

    def apply(p, x):
        return lax.conv_general_dilated(x, p["w"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    layer, own, expected = products(apply, kernel, batch)
    assert layer.kind == "conv"
    own = own if own.ndim == 2 else np.moveaxis(own, 0, 1).reshape(own.shape[1], -1)
    np.testing.assert_allclose(own.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_one_dimensional_convolution_in_another_layout(rng):
    batch, kernel = rng.normal(size=(2, 4, 9)).astype(np.float32), rng.normal(size=(5, 4, 3)).astype(np.float32)

    def apply(p, x):
        return lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=("NCW", "OIW", "NWC"))

    _, own, expected = products(apply, kernel, batch)
    np.testing.assert_allclose(own.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.T,
        lambda w: w.reshape(2, 3, 4).reshape(6, 4),
        lambda w: jnp.flip(w, 0),
        lambda w: w[:, 1:3],
        lambda w: jnp.split(w, 2, axis=1)[1],
        lax.stop_gradient,
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: w[None][0],
        lambda w: list(w.reshape(2, 3, 4))[1],
        lambda w: jnp.unstack(w.reshape(2, 3, 4))[0],
        lambda w: jnp.squeeze(w[:, None], 1),
    ],
)
def test_a_kernel_is_found_behind_its_layout(change, rng):
    kernel = rng.normal(size=(6, 4)).astype(np.float32)
    seen = np.asarray(change(jnp.asarray(kernel)))
    batch = rng.normal(size=(5, seen.shape[0])).astype(np.float32)
    program = trace(lambda p, x: x @ change(p["w"]), {"w": kernel}, batch)
    (layer,) = find_layers(program).layers
    np.testing.assert_allclose(layer.place.read(kernel), seen, rtol=1e-2)  # casts are left out
