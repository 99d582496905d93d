"""A ViT of two blocks, and specs for its layers."""

from beacon_jax import QuantSpec
from beacon_jax.models.vit import ViT

MODEL = ViT(image_size=8, patch_size=2, width=16, depth=2, heads=2, channels=1, classes=10)
LAYERS = [f"blocks_{i}/{n}" for i in range(2) for n in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")]


def blocks(**fields):
    """A spec for the layers of the blocks; those of Beacon have one number of sweeps, which is one compilation."""
    options = {} if "method" in fields else {"options": {"sweeps": 3}}
    return QuantSpec(**{"layers": r"blocks_\d+/.*"} | options | fields)
