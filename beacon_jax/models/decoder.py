"""A decoder language model in Flax Linen, of the kind of LLaMA (arXiv 2302.13971).

Pre-norm blocks with RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), causal attention, a SwiGLU MLP
(arXiv 2002.05202), no biases, and an output head of its own. Every linear map is an nn.Dense on (B, T, N) arrays.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

RMS_NORM_EPS = 1e-5
ROTARY_BASE = 10000.0


def rotate(x: jax.Array) -> jax.Array:
    """Turns each pair of features by an angle that grows with the position, at a frequency of the pair's own.

    Args:
      x: (B, T, heads, D), D even; feature i is paired with feature i + D/2, and turned by t·ROTARY_BASE^(−2i/D).

    Returns:
      (B, T, heads, D). Inner products of two results at positions s and t depend on positions by t − s alone.
    """
    tokens, size = x.shape[1], x.shape[-1]
    frequency = ROTARY_BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = jnp.outer(jnp.arange(tokens, dtype=jnp.float32), frequency)[None, :, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _dense(features: int, name: str, scale: float = 1.0) -> nn.Dense:
    init = nn.initializers.truncated_normal(0.02 * scale)
    return nn.Dense(features, use_bias=False, kernel_init=init, name=name)


class CausalAttention(nn.Module):
    """Multi-head attention of each token to itself and those before it: (B, T, width) → (B, T, width)."""

    heads: int
    out_scale: float = 1.0  # of the output projection's initial kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends; padding must come after the real tokens, which then never see it."""
        batch, tokens, width = x.shape
        q, k, v = (
            _dense(width, name)(x).reshape(batch, tokens, self.heads, -1) for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) * q.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
        scores = jnp.where(causal, scores, jnp.finfo(scores.dtype).min)
        out = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        return _dense(width, "o_proj", self.out_scale)(out.reshape(x.shape))


class GatedMlp(nn.Module):
    """SwiGLU: silu(gate(x)) · up(x), then a projection back: (B, T, width) → (B, T, width)."""

    hidden: int
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Acts on each token by itself."""
        hidden = nn.silu(_dense(self.hidden, "gate_proj")(x)) * _dense(self.hidden, "up_proj")(x)
        return _dense(x.shape[-1], "down_proj", self.out_scale)(hidden)


class DecoderBlock(nn.Module):
    """Pre-norm block: attention and MLP, each added to the residual stream."""

    heads: int
    hidden: int
    depth: int  # of the whole model: the initial projections into the residual stream shrink with it
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        scale = (2 * self.depth) ** -0.5
        drop = nn.Dropout(self.dropout, deterministic=not train)
        normed = nn.RMSNorm(epsilon=RMS_NORM_EPS, name="norm1")(x)
        x = x + drop(CausalAttention(self.heads, scale, name="attn")(normed))
        normed = nn.RMSNorm(epsilon=RMS_NORM_EPS, name="norm2")(x)
        return x + drop(GatedMlp(self.hidden, scale, name="mlp")(normed))


class Decoder(nn.Module):
    """Token ids (B, T) → logits (B, T, vocabulary) of the token that follows each."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    dropout: float = 0.0  # of what attention and MLP add, in training

    @nn.compact
    def __call__(self, ids: jax.Array, train: bool = False) -> jax.Array:
        """Logits; with `train` under dropout, which needs rngs={"dropout": key}.

        Args:
          ids: (B, T) integers below `vocabulary`; padding comes after the real tokens.
          train: whether dropout acts.

        Raises:
          ValueError: ids that are not a matrix of integers.
        """
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"token ids are a (B, T) array of integers, got {ids.dtype} of shape {ids.shape}")
        init = nn.initializers.truncated_normal(0.02)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="embed")(ids)
        for i in range(self.depth):
            x = DecoderBlock(self.heads, self.hidden, self.depth, self.dropout, name=f"blocks_{i}")(x, train)
        x = nn.RMSNorm(epsilon=RMS_NORM_EPS, name="norm")(x)
        return _dense(self.vocabulary, "head")(x)

    @nn.nowrap
    def param_shapes(self) -> dict:
        """The parameter tree as jax.ShapeDtypeStruct, without computing anything."""
        return jax.eval_shape(self.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]


# Every model size, in one table.
DECODERS: dict[str, dict] = {
    "decoder_docstrings": dict(vocabulary=1024, width=128, depth=4, heads=4, hidden=384, dropout=0.1),
}


def create_decoder(name: str) -> Decoder:
    """The model of that name; ValueError names the known ones."""
    if name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}; expected one of {', '.join(DECODERS)}")
    return Decoder(**DECODERS[name])
