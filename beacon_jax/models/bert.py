"""The BERT encoder (arXiv 1810.04805) in Flax Linen, and sentence embeddings from it (arXiv 1908.10084).

Post-norm blocks, learned positions, exact (erf) GELU. Every linear map is an nn.Dense on (B, T, N) arrays, so that a
mask over batch and tokens says which of its rows are real.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from beacon_jax.models.vit import gelu

_init = nn.initializers.truncated_normal(0.02)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_init, name=name)


def mean_pooled(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Sentence embeddings: the mean of each row's real tokens, scaled to length 1.

    Args:
      tokens: (B, T, width).
      mask: (B, T), 1 for a token, 0 for padding.

    Returns:
      (B, width); 0 for a row without a token.
    """
    weights = mask.astype(tokens.dtype)[..., None]
    mean = (tokens * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


class BertAttention(nn.Module):
    """Multi-head attention to the real tokens of the same row: (B, T, width) → (B, T, width)."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attends where mask (B, T) is not 0."""
        batch, tokens, width = x.shape
        q, k, v = (_dense(width, name)(x).reshape(batch, tokens, self.heads, -1) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        scores = jnp.where(mask[:, None, None, :] != 0, scores, jnp.finfo(scores.dtype).min)
        out = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
        return _dense(width, "out")(out.reshape(x.shape))


class BertBlock(nn.Module):
    """Post-norm block: attention, then MLP, each added to its input and normalized."""

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        x = _layer_norm(self.epsilon, "norm1")(x + BertAttention(self.heads, name="attn")(x, mask))
        return _layer_norm(self.epsilon, "norm2")(x + BertMlp(self.hidden, name="mlp")(x))


class BertMlp(nn.Module):
    """Two linear layers with exact GELU between."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) → (B, T, width)."""
        return _dense(x.shape[-1], "fc2")(gelu(_dense(self.hidden, "fc1")(x)))


class Bert(nn.Module):
    """Token ids (B, T) → the last block's tokens (B, T, width); the pooler is left out.

    Attributes:
      vocabulary: number of token ids.
      width: features of a token.
      depth: number of blocks.
      heads: number of attention heads; divides width.
      hidden: features between an MLP's two layers.
      positions: the longest T.
      types: number of kinds of token (first and second sentence).
      epsilon: of every LayerNorm.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens (B, T, width); what they are where the mask is 0 means nothing.

        Args:
          ids: (B, T) integers below `vocabulary`, all of the first kind.
          mask: (B, T), 1 for a token, 0 for padding.

        Raises:
          ValueError: ids that are not a matrix of integers, a mask of another shape, more than `positions` tokens.
        """
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape != mask.shape:
            raise ValueError(
                f"expected ids (B, T) of integers and a mask as large, got {ids.dtype} {ids.shape} and {mask.shape}"
            )
        if ids.shape[1] > self.positions:
            raise ValueError(f"this model takes at most {self.positions} tokens, got {ids.shape[1]}")
        embed = {
            name: nn.Embed(count, self.width, embedding_init=_init, name=name)
            for name, count in (
                ("word_embed", self.vocabulary), ("position_embed", self.positions), ("type_embed", self.types)
            )
        }  # fmt: skip
        places = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        x = embed["word_embed"](ids) + embed["position_embed"](places) + embed["type_embed"](jnp.zeros_like(places))
        x = _layer_norm(self.epsilon, "embed_norm")(x)
        for i in range(self.depth):
            x = BertBlock(self.heads, self.hidden, self.epsilon, name=f"blocks_{i}")(x, mask)
        return x

    def embeddings(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Sentence embeddings (B, width) of length 1; arguments and errors as above. Use with `method="embeddings"`."""
        return mean_pooled(self(ids, mask), mask)

    @nn.nowrap
    def param_shapes(self) -> dict:
        """The parameter tree as jax.ShapeDtypeStruct, without computing anything."""
        ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(self.init, jax.random.key(0), ids, ids)["params"]


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    # An epsilon of 1e-12 does not hide what E[x²] − E[x]² loses, so the variance is of x − E[x].
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)
