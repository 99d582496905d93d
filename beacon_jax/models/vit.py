"""Vision transformers in Flax Linen, as timm's `deit_{tiny,small,base}_patch16_224` (arXiv 2012.12877).

Parameter names follow timm (`blocks.0.attn.qkv.weight` is blocks_0/attn/qkv/kernel). Every linear map is an nn.Dense,
the patch embedding included, so each kernel is an (inputs, outputs) matrix.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYER_NORM_EPS = 1e-6  # timm's; the Flax default happens to be the same, but must not drift
_init = nn.initializers.truncated_normal(0.02)


def _dense(features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(features, kernel_init=_init, name=name)


def _layer_norm(name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, name=name)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU. By erf: jax.nn.gelu goes by erfc, which XLA computes several times slower on CPUs."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, flattened (row, column, channel) and projected: (B, H, W, c) → (B, T, width)."""

    patch_size: int
    width: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds the patches of images whose sides are multiples of the patch size."""
        batch, height, width, channels = images.shape
        p = self.patch_size
        patches = images.reshape(batch, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return _dense(self.width, "proj")(patches.reshape(batch, -1, p * p * channels))


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection, q first: (B, T, width) → (B, T, width)."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends over the T tokens of each image."""
        batch, tokens, width = x.shape
        qkv = _dense(3 * width, "qkv")(x.reshape(-1, width))
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        out = jnp.einsum("bhqk,bhkd->bhqd", nn.softmax(scores), v).transpose(0, 2, 1, 3)
        return _dense(width, "proj")(out.reshape(-1, width)).reshape(x.shape)


class Mlp(nn.Module):
    """Two linear layers with exact (erf) GELU between."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        width = x.shape[-1]
        hidden = gelu(_dense(self.hidden, "fc1")(x.reshape(-1, width)))
        return _dense(width, "fc2")(hidden).reshape(x.shape)


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239), which starts near zero, as timm's does."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        # timm's name, which also tells it from the scale of a normalization layer.
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:])
        return x * jnp.broadcast_to(gamma, x.shape)


class Block(nn.Module):
    """Pre-norm transformer block; with layer_scale, what attention and MLP add is scaled before (ls1, ls2)."""

    heads: int
    hidden: int
    layer_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        attended = Attention(self.heads, name="attn")(_layer_norm("norm1")(x))
        x = x + (LayerScale(name="ls1")(attended) if self.layer_scale else attended)
        mapped = Mlp(self.hidden, name="mlp")(_layer_norm("norm2")(x))
        return x + (LayerScale(name="ls2")(mapped) if self.layer_scale else mapped)


class ViT(nn.Module):
    """DeiT: class token first, learned positions added after it, LayerNorm, head on the class token.

    A distilled model has a second token after the class token, with a head of its own; its logits are the mean of both.
    A known model for images of another size is ViT(**VARIANTS[name] | {"image_size": 384}); convert_state_dict resizes
    the position embeddings of a checkpoint to it.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    channels: int = 3
    classes: int = 1000
    mlp_ratio: int = 4
    distilled: bool = False
    layer_scale: bool = False

    @property
    def tokens_before(self) -> int:
        """The tokens in front of the patches': the class token, and the distillation token where there is one."""
        return 1 + self.distilled

    def setup(self):
        """Declares the parameters under their timm names."""
        tokens = (self.image_size // self.patch_size) ** 2 + self.tokens_before
        self.patch_embed = PatchEmbed(self.patch_size, self.width)
        self.cls_token = self.param("cls_token", _init, (1, 1, self.width))
        self.pos_embed = self.param("pos_embed", _init, (1, tokens, self.width))
        self.blocks = [Block(self.heads, self.mlp_ratio * self.width, self.layer_scale) for _ in range(self.depth)]
        self.norm = _layer_norm()
        self.head = _dense(self.classes)
        if self.distilled:
            self.dist_token = self.param("dist_token", _init, (1, 1, self.width))
            self.head_dist = _dense(self.classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (B, classes) of images (B, image_size, image_size, channels)."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def embed(self, images: jax.Array) -> jax.Array:
        """Tokens (B, T, width) of images; ValueError on images of another size."""
        expected = (self.image_size, self.image_size, self.channels)
        if images.shape[1:] != expected:
            raise ValueError(f"this model takes images of shape {expected}, got {images.shape[1:]}")
        x = self.patch_embed(images)
        tokens = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        tokens = [jnp.broadcast_to(t, (x.shape[0], 1, self.width)).astype(x.dtype) for t in tokens]
        return jnp.concatenate([*tokens, x], axis=1) + self.pos_embed

    def classify(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of the last block's tokens (B, T, width)."""
        x = self.norm(x)
        logits = self.head(x[:, 0])
        return (logits + self.head_dist(x[:, 1])) / 2 if self.distilled else logits

    @nn.nowrap
    def param_shapes(self) -> dict:
        """The parameter tree as jax.ShapeDtypeStruct, without computing anything."""
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, self.channels), jnp.float32)
        return jax.eval_shape(self.init, jax.random.key(0), image)["params"]


_BASE = dict(image_size=224, patch_size=16, width=768, depth=12, heads=12)
_SMALL = dict(image_size=224, patch_size=16, width=384, depth=12, heads=6)
_TINY = dict(image_size=224, patch_size=16, width=192, depth=12, heads=3)

# Every model size, in one table.
VARIANTS: dict[str, dict] = {
    "deit_base_patch16_224": _BASE,
    "deit_small_patch16_224": _SMALL,
    "deit_tiny_patch16_224": _TINY,
    "deit_base_distilled_patch16_224": dict(_BASE, distilled=True),
    "deit_small_distilled_patch16_224": dict(_SMALL, distilled=True),
    "deit_tiny_distilled_patch16_224": dict(_TINY, distilled=True),
    "vit_base_patch16_224": _BASE,
    "vit_small_patch16_224": _SMALL,
    "deit_cifar10": dict(image_size=32, patch_size=4, width=192, depth=6, heads=3, classes=10),
    "deit_digits": dict(image_size=8, patch_size=2, width=48, depth=4, heads=4, channels=1, classes=10),
}

# The pixel normalization (a key of preprocessing.NORMALIZATIONS) that each model's weights expect.
NORMALIZATION = dict.fromkeys(VARIANTS, "imagenet") | {
    "vit_base_patch16_224": "half",
    "vit_small_patch16_224": "half",
    "deit_cifar10": "cifar10",
    "deit_digits": "half",
}


def create_vit(name: str) -> ViT:
    """The model of that name; ValueError names the known ones."""
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(VARIANTS)}")
    return ViT(**VARIANTS[name])
