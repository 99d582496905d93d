import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.models.vit import NORMALIZATION, VARIANTS, ViT, create_vit

TINY = ViT(image_size=8, patch_size=4, width=12, depth=2, heads=3, channels=2, classes=5)


@pytest.fixture
def tiny(rng):
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 2)), jnp.float32)
    # Larger than the initial values, so that every term shows in the output.
    return images, jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32), TINY.param_shapes())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("deit_base_patch16_224", 86_567_656),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_base_distilled_patch16_224", 87_338_192),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_small_patch16_224", 22_050_664),
        ("deit3_base_patch16_224", 86_585_320),
        ("deit3_small_patch16_224", 22_059_496),
        ("vit_base_patch16_clip_224", 86_568_424),
        ("deit_cifar10", 2_693_578),
        ("deit_digits", 114_778),
    ],
)
def test_parameter_counts(name, count):
    shapes = create_vit(name).param_shapes()
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) == count


def test_every_variant_has_its_count_pinned():
    (pinned,) = (mark.args[1] for mark in test_parameter_counts.pytestmark)
    assert {name for name, _ in pinned} == set(VARIANTS) == set(NORMALIZATION)


def literal_vit(params, images, heads, patch):
    """The model in plain float64 NumPy, one image at a time, with timm's layer norm and exact GELU."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def norm(layer, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def attention(layer, x):
        width = x.shape[-1]
        qkv, size, out = dense(layer["qkv"], x), width // heads, []
        for h in range(heads):
            q, k, v = (qkv[:, i * width + h * size : i * width + (h + 1) * size] for i in range(3))
            scores = np.exp(q @ k.T / math.sqrt(size))
            out.append(scores / scores.sum(-1, keepdims=True) @ v)
        return dense(layer["proj"], np.concatenate(out, -1))

    logits = []
    for image in np.asarray(images, np.float64):
        side = image.shape[0] // patch
        patches = [
            image[patch * i : patch * (i + 1), patch * j : patch * (j + 1)] for i in range(side) for j in range(side)
        ]
        x = dense(p["patch_embed"]["proj"], np.stack([a.reshape(-1) for a in patches]))
        x = np.concatenate([p["cls_token"][0], x]) + p["pos_embed"][0]
        for i in range(sum(key.startswith("blocks_") for key in p)):
            block = p[f"blocks_{i}"]
            ls1, ls2 = (block.get(name, {"gamma": 1.0})["gamma"] for name in ("ls1", "ls2"))
            x = x + ls1 * attention(block["attn"], norm(block["norm1"], x))
            x = x + ls2 * dense(block["mlp"]["fc2"], gelu(dense(block["mlp"]["fc1"], norm(block["norm2"], x))))
        logits.append(dense(p["head"], norm(p["norm"], x)[0]))
    return np.stack(logits)


def test_equals_a_literal_transformer(tiny):
    images, params = tiny
    np.testing.assert_allclose(
        TINY.apply({"params": params}, images), literal_vit(params, images, 3, 4), rtol=2e-5, atol=2e-5
    )


def test_layer_scale(rng):
    model = ViT(image_size=8, patch_size=4, width=12, depth=2, heads=3, channels=2, classes=5, layer_scale=True)
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 2)), jnp.float32)
    initial = jax.jit(model.init)(jax.random.key(0), images)["params"]
    assert initial["blocks_1"].keys() == {"attn", "ls1", "ls2", "mlp", "norm1", "norm2"}
    np.testing.assert_array_equal(initial["blocks_1"]["ls2"]["gamma"], np.full(12, 1e-5, np.float32))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, jnp.float32), initial)
    logits = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, literal_vit(params, images, 3, 4), rtol=2e-5, atol=2e-5)
    ones, without = dict(params), dict(params)
    for name in ("blocks_0", "blocks_1"):
        ones[name] = params[name] | {scale: {"gamma": jnp.ones(12)} for scale in ("ls1", "ls2")}
        without[name] = {part: params[name][part] for part in TINY.param_shapes()[name]}
    np.testing.assert_allclose(
        model.apply({"params": ones}, images), TINY.apply({"params": without}, images), rtol=1e-5, atol=1e-6
    )


def test_every_layer_norm_has_timms_epsilon(tiny):
    images, params = tiny
    seen = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm):
            seen.append(context.module.epsilon)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        TINY.apply({"params": params}, images)
    assert seen == [1e-6] * 5


def test_errors(tiny):
    images, params = tiny
    with pytest.raises(ValueError, match="unknown model 'resnet'; expected one of deit_base"):
        create_vit("resnet")
    for fields, message in (
        (dict(class_token=False), "pool is 'avg', or 'token' where there is a class token"),
        (dict(pool="max"), "pool is 'avg', or 'token' .*got 'max'"),
        (dict(distilled=True, registers=2), "a distilled model has a class token that is pooled, no registers"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **fields).param_shapes()
    with pytest.raises(ValueError, match=r"takes images of shape \(8, 8, 2\), got \(4, 4, 2\)"):
        TINY.apply({"params": params}, images[:, :4, :4])
