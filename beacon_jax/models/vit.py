"""Vision transformers in Flax Linen, as timm's `deit_{tiny,small,base}_patch16_224` (arXiv 2012.12877) and others.

Parameter names follow timm (`blocks.0.attn.qkv.weight` is blocks_0/attn/qkv/kernel). Every linear map is an nn.Dense,
the patch embedding included, so each kernel is an (inputs, outputs) matrix.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_init = nn.initializers.truncated_normal(0.02)


def _dense(features: int, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=use_bias, kernel_init=_init, name=name)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU. By erf: jax.nn.gelu goes by erfc, which XLA computes several times slower on CPUs."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, flattened (row, column, channel) and projected: (B, H, W, c) → (B, T, width)."""

    patch_size: int
    width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds the patches of images whose sides are multiples of the patch size."""
        batch, height, width, channels = images.shape
        p = self.patch_size
        patches = images.reshape(batch, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return _dense(self.width, "proj", self.use_bias)(patches.reshape(batch, -1, p * p * channels))


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
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        attended = Attention(self.heads, name="attn")(nn.LayerNorm(self.epsilon, name="norm1")(x))
        x = x + (LayerScale(name="ls1")(attended) if self.layer_scale else attended)
        mapped = Mlp(self.hidden, name="mlp")(nn.LayerNorm(self.epsilon, name="norm2")(x))
        return x + (LayerScale(name="ls2")(mapped) if self.layer_scale else mapped)


class ViT(nn.Module):
    """DeiT: class token first, learned positions added after it, LayerNorm, head on the class token.

    A known model for images of another size is ``ViT(**VARIANTS[name] | {"image_size": 384})``; convert_state_dict
    resizes the position embeddings of a checkpoint to it.

    Attributes:
      image_size, patch_size: in pixels, of square images and patches.
      width, depth, heads, mlp_ratio: of the blocks; the MLPs are mlp_ratio · width wide.
      channels: of the images.
      classes: of the logits; 0 for no head, the outputs being the pooled features.
      distilled: a second token after the class token, with a head of its own; the logits are the mean of both.
      layer_scale: factors per channel on what attention and MLP add (DeiT III, DINOv2).
      class_token: whether there is one; without it `pool` is "avg".
      class_position: whether the tokens before the patches have positions of their own (not in DeiT III).
      registers: tokens between the class token and the patches that no output reads (arXiv 2309.16588).
      pool: "token" for the class token, "avg" for the mean over the patches.
      norm_after_pool: whether the last norm comes after the pooling (timm's fc_norm).
      pre_norm: a norm before the blocks, and no bias in the patch embedding (CLIP).
      epsilon: of the norms.
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
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    pool: str = "token"
    norm_after_pool: bool = False
    pre_norm: bool = False
    epsilon: float = 1e-6  # timm's

    @property
    def tokens_before(self) -> int:
        """The tokens in front of the patches': the class token, the distillation token, registers."""
        return self.class_token + self.distilled + self.registers

    @property
    def positions_before(self) -> int:
        """How many of these have a position embedding."""
        return self.tokens_before if self.class_position else 0

    def setup(self) -> None:
        """Declares the parameters under their timm names. ValueError for options that do not go together."""
        if self.pool not in ("token", "avg") or (self.pool == "token" and not self.class_token):
            raise ValueError(f"pool is 'avg', or 'token' where there is a class token, got {self.pool!r}")
        if self.distilled and (self.registers or self.pool != "token" or not (self.class_token and self.classes)):
            raise ValueError("a distilled model has a class token that is pooled, no registers, and classes")
        patches = (self.image_size // self.patch_size) ** 2
        self.patch_embed = PatchEmbed(self.patch_size, self.width, use_bias=not self.pre_norm)
        self.pos_embed = self.param("pos_embed", _init, (1, self.positions_before + patches, self.width))
        if self.class_token:
            self.cls_token = self.param("cls_token", _init, (1, 1, self.width))
        if self.registers:
            self.reg_token = self.param("reg_token", _init, (1, self.registers, self.width))
        hidden = self.mlp_ratio * self.width
        self.blocks = [Block(self.heads, hidden, self.layer_scale, self.epsilon) for _ in range(self.depth)]
        if self.pre_norm:
            self.norm_pre = nn.LayerNorm(self.epsilon)
        if self.norm_after_pool:
            self.fc_norm = nn.LayerNorm(self.epsilon)
        else:
            self.norm = nn.LayerNorm(self.epsilon)
        if self.classes:
            self.head = _dense(self.classes)
        if self.distilled:
            self.dist_token = self.param("dist_token", _init, (1, 1, self.width))
            self.head_dist = _dense(self.classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (B, classes), or features (B, width), of images (B, image_size, image_size, channels)."""
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
        before = [self.cls_token] if self.class_token else []
        before += [self.dist_token] if self.distilled else []
        before += [self.reg_token] if self.registers else []
        before = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])).astype(x.dtype) for t in before]
        if self.class_position:
            x = jnp.concatenate([*before, x], axis=1) + self.pos_embed
        else:
            x = jnp.concatenate([*before, x + self.pos_embed], axis=1)
        return self.norm_pre(x) if self.pre_norm else x

    def classify(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes), or features (B, width), of the last block's tokens (B, T, width)."""
        x = x if self.norm_after_pool else self.norm(x)
        pooled = x[:, 0] if self.pool == "token" else x[:, self.tokens_before :].mean(1)
        pooled = self.fc_norm(pooled) if self.norm_after_pool else pooled
        logits = self.head(pooled) if self.classes else pooled
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
    "deit3_base_patch16_224": dict(_BASE, layer_scale=True, class_position=False),
    "deit3_small_patch16_224": dict(_SMALL, layer_scale=True, class_position=False),
    "vit_base_patch16_clip_224": dict(_BASE, pre_norm=True, epsilon=1e-5),
    "deit_cifar10": dict(image_size=32, patch_size=4, width=192, depth=6, heads=3, classes=10),
    "deit_digits": dict(image_size=8, patch_size=2, width=48, depth=4, heads=4, channels=1, classes=10),
}

# The pixel normalization (a key of preprocessing.NORMALIZATIONS) that each model's weights expect.
NORMALIZATION = dict.fromkeys(VARIANTS, "imagenet") | {
    "vit_base_patch16_224": "half",
    "vit_small_patch16_224": "half",
    "vit_base_patch16_clip_224": "clip",
    "deit_cifar10": "cifar10",
    "deit_digits": "half",
}


def create_vit(name: str) -> ViT:
    """The model of that name; ValueError names the known ones."""
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(VARIANTS)}")
    return ViT(**VARIANTS[name])
