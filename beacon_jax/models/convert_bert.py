"""Hugging Face checkpoints of BERT encoders as `models.bert.Bert` and its parameters, by one table of names.

Strict: every tensor of the checkpoint must find its place, every parameter its tensor, and every shape must fit.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from beacon_jax.models.bert import Bert
from beacon_jax.models.state_dict import some_of

# {our leaf: (its leaf, whether it is transposed)}, by the kind of module.
_EMBED = {"embedding": ("weight", False)}
_NORM = {"scale": ("weight", False), "bias": ("bias", False)}
_DENSE = {"kernel": ("weight", True), "bias": ("bias", False)}

# (our module, its kind, the checkpoint's module); {i} is the block.
_TABLE = (
    ("word_embed", _EMBED, "embeddings.word_embeddings"),
    ("position_embed", _EMBED, "embeddings.position_embeddings"),
    ("type_embed", _EMBED, "embeddings.token_type_embeddings"),
    ("embed_norm", _NORM, "embeddings.LayerNorm"),
    ("blocks_{i}/attn/query", _DENSE, "encoder.layer.{i}.attention.self.query"),
    ("blocks_{i}/attn/key", _DENSE, "encoder.layer.{i}.attention.self.key"),
    ("blocks_{i}/attn/value", _DENSE, "encoder.layer.{i}.attention.self.value"),
    ("blocks_{i}/attn/out", _DENSE, "encoder.layer.{i}.attention.output.dense"),
    ("blocks_{i}/norm1", _NORM, "encoder.layer.{i}.attention.output.LayerNorm"),
    ("blocks_{i}/mlp/fc1", _DENSE, "encoder.layer.{i}.intermediate.dense"),
    ("blocks_{i}/mlp/fc2", _DENSE, "encoder.layer.{i}.output.dense"),
    ("blocks_{i}/norm2", _NORM, "encoder.layer.{i}.output.LayerNorm"),
)

# Tensors that a checkpoint may hold and the model has no use for: the numbers 0, 1, 2, …, and the head of BERT's own
# training task on its first token, which no mean over tokens goes through.
_UNUSED = {"embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.weight", "pooler.dense.bias"}

# What config.json must say where it says it, because the model does nothing else.
_REQUIRED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def bert_of_config(config: Mapping[str, Any]) -> Bert:
    """The model that a Hugging Face config.json describes.

    Raises:
      ValueError: one of another architecture, or without one of the sizes.
    """
    for key, value in _REQUIRED.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} of the BERT encoder is {value!r}, got {config[key]!r}")
    sizes = dict(
        vocabulary="vocab_size",
        width="hidden_size",
        depth="num_hidden_layers",
        heads="num_attention_heads",
        hidden="intermediate_size",
        positions="max_position_embeddings",
        types="type_vocab_size",
        epsilon="layer_norm_eps",
    )
    missing = [theirs for theirs in sizes.values() if theirs not in config]
    if missing:
        raise ValueError(f"this config.json of a BERT encoder lacks {', '.join(missing)}")
    return Bert(**{ours: config[theirs] for ours, theirs in sizes.items()})


def convert_bert_state_dict(state: Mapping[str, np.ndarray], model: Bert) -> dict:
    """The checkpoint's tensors as parameters of `model`.

    Args:
      state: {name: array}, of Hugging Face's BertModel, in any floating type; see `state_dict.read_state_dict`.
      model: the model they are for.

    Returns:
      Nested dict of float32 arrays, as `model.init` gives.

    Raises:
      ValueError: each by name, tensors left over, missing or of another shape.
    """
    expected = flatten_dict(model.param_shapes(), sep="/")
    rows = list(rows_of(model.depth))
    names = {theirs for _, theirs, _ in rows}
    missing = [theirs for _, theirs, _ in rows if theirs not in state]
    left_over = sorted(set(state) - names - _UNUSED)
    params, misshapen = {}, []
    for ours, theirs, transposed in rows:
        if theirs not in state:
            continue
        array = np.asarray(state[theirs], np.float32)
        params[ours] = array.T if transposed else array
        if params[ours].shape != expected[ours].shape:
            misshapen.append(f"{theirs} of shape {array.shape} for {ours} {expected[ours].shape}")
    problems = {"missing": missing, "left over": left_over, "misshapen": misshapen}
    if any(problems.values()):
        said = "; ".join(f"{len(found)} {what}: {some_of(found)}" for what, found in problems.items() if found)
        raise ValueError(f"this checkpoint is not one of the model given: {said}")
    return unflatten_dict(params, sep="/")


def rows_of(depth: int) -> Iterator[tuple[str, str, bool]]:
    """(our parameter, its tensor, whether it is transposed) of a model of that depth."""
    for ours, kind, theirs in _TABLE:
        for i in range(depth) if "{i}" in ours else (0,):
            for leaf, (their_leaf, transposed) in kind.items():
                yield f"{ours.format(i=i)}/{leaf}", f"{theirs.format(i=i)}.{their_leaf}", transposed
