"""Small ViTs, their tensors under timm's names, and how logits are compared with the original library's."""

import dataclasses

import jax
import numpy as np

from beacon_jax.models.vit import ViT

MODEL = ViT(image_size=8, patch_size=4, width=12, depth=2, heads=3, classes=5)
DISTILLED = dataclasses.replace(MODEL, distilled=True)
SCALED = dataclasses.replace(MODEL, layer_scale=True)


def timm_state(rng, model):
    """Random tensors under timm's names, in the shapes of its own models."""
    D, p, classes = model.width, model.patch_size, model.classes
    tokens = (model.image_size // p) ** 2 + 1 + model.distilled
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, tokens, D), "patch_embed.proj.weight": (D, 3, p, p)}
    shapes |= {"patch_embed.proj.bias": (D,), "norm.weight": (D,), "norm.bias": (D,)}
    shapes |= {"head.weight": (classes, D), "head.bias": (classes,)}
    if model.distilled:
        shapes |= {"dist_token": (1, 1, D), "head_dist.weight": (classes, D), "head_dist.bias": (classes,)}
    dense = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
    for i in range(model.depth):
        shapes |= {f"blocks.{i}.{name}.gamma": (D,) for name in ("ls1", "ls2") if model.layer_scale}
        for name, shape in dense.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (D,), f"blocks.{i}.{name}.bias": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def assert_parity(theirs, params, model, rng, count=3):
    """Logits within 1e-4 of the original library's, relative to their size, in float32."""
    import torch

    images = rng.normal(size=(count, model.image_size, model.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    expected = getattr(expected, "logits", expected).numpy()
    logits = np.asarray(jax.jit(model.apply)({"params": params}, images))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
