"""timm and Hugging Face checkpoints of ViT and DeiT as parameters of `models.vit.ViT`, by one table of names.

Strict: every tensor of the checkpoint must find its place, every parameter its tensor, and every shape must fit.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from beacon_jax.models.state_dict import some_of
from beacon_jax.models.vit import ViT


def _same(a, *_):
    return a


def _transposed(a, *_):
    return a.T


def _patches(a):
    """A convolution over patches is a dense map of the flattened patch: (out, c, h, w) → (h·w·c, out)."""
    return a.transpose(2, 3, 1, 0).reshape(-1, len(a))


def _convolution(a, model):
    p = model.patch_size
    return a.reshape(p, p, model.channels, -1).transpose(3, 2, 0, 1)


# What becomes of a tensor, by the kind of module it belongs to: {our leaf: (its leaf, to ours, from ours)}.
_AS_IS: dict[str, tuple[str, Callable, Callable]] = {"": ("", _same, _same)}
_LAYER_SCALE = {"gamma": ("gamma", _same, _same)}
_NORM = {"scale": ("weight", _same, _same), "bias": ("bias", _same, _same)}
_DENSE = {"kernel": ("weight", _transposed, _transposed), "bias": ("bias", _same, _same)}
_PATCH = {"kernel": ("weight", _patches, _convolution), "bias": ("bias", _same, _same)}


@dataclasses.dataclass(frozen=True)
class _Row:
    ours: str
    kind: dict
    timm: str
    hf: str | tuple[str, ...] = ()  # as saved; several are stacked along the outputs, () where it has no such thing
    hf_loaded: str | tuple[str, ...] = ""  # as `state_dict()` of transformers 5 names it, where that differs


# {i} is the block, {p} the model's prefix (vit or deit), {head} the classifier's name.
_TABLE = (
    _Row("cls_token", _AS_IS, "cls_token", "{p}.embeddings.cls_token"),
    _Row("dist_token", _AS_IS, "dist_token", "{p}.embeddings.distillation_token"),
    _Row("reg_token", _AS_IS, "reg_token"),
    _Row("pos_embed", _AS_IS, "pos_embed", "{p}.embeddings.position_embeddings"),
    _Row("patch_embed/proj", _PATCH, "patch_embed.proj", "{p}.embeddings.patch_embeddings.projection"),
    _Row(
        "blocks_{i}/norm1", _NORM, "blocks.{i}.norm1",
        "{p}.encoder.layer.{i}.layernorm_before", "{p}.layers.{i}.layernorm_before",
    ),
    _Row(
        "blocks_{i}/attn/qkv", _DENSE, "blocks.{i}.attn.qkv",
        tuple("{p}.encoder.layer.{i}.attention.attention." + name for name in ("query", "key", "value")),
        tuple("{p}.layers.{i}.attention." + name for name in ("q_proj", "k_proj", "v_proj")),
    ),
    _Row(
        "blocks_{i}/attn/proj", _DENSE, "blocks.{i}.attn.proj",
        "{p}.encoder.layer.{i}.attention.output.dense", "{p}.layers.{i}.attention.o_proj",
    ),
    _Row("blocks_{i}/ls1", _LAYER_SCALE, "blocks.{i}.ls1"),
    _Row("blocks_{i}/ls2", _LAYER_SCALE, "blocks.{i}.ls2"),
    _Row(
        "blocks_{i}/norm2", _NORM, "blocks.{i}.norm2",
        "{p}.encoder.layer.{i}.layernorm_after", "{p}.layers.{i}.layernorm_after",
    ),
    _Row(
        "blocks_{i}/mlp/fc1", _DENSE, "blocks.{i}.mlp.fc1",
        "{p}.encoder.layer.{i}.intermediate.dense", "{p}.layers.{i}.mlp.fc1",
    ),
    _Row(
        "blocks_{i}/mlp/fc2", _DENSE, "blocks.{i}.mlp.fc2",
        "{p}.encoder.layer.{i}.output.dense", "{p}.layers.{i}.mlp.fc2",
    ),
    _Row("norm_pre", _NORM, "norm_pre"),
    _Row("norm", _NORM, "norm", "{p}.layernorm"),
    _Row("fc_norm", _NORM, "fc_norm"),
    _Row("head", _DENSE, "head", "{head}"),
    _Row("head_dist", _DENSE, "head_dist", "distillation_classifier"),
)  # fmt: skip


def convert_state_dict(state: Mapping[str, np.ndarray], model: ViT) -> dict:
    """The checkpoint's tensors as parameters of `model`.

    Position embeddings for another image size are resized to the model's, which is logged as a warning.

    Args:
      state: {name: array}, of timm or of Hugging Face's ViT/DeiT classifiers, in float16, bfloat16 or float32.
      model: the model they are for.

    Returns:
      Nested dict of float32 arrays, as `model.init` gives.

    Raises:
      ValueError: names of neither library, or, each by name, tensors left over, missing or of another shape.
    """
    name_of = _naming(state)
    expected = flatten_dict(model.param_shapes(), sep="/")
    params, used, missing, misshapen = {}, set(), [], []
    for ours, kind, row, i in rows_of(model.depth):
        for leaf, (theirs, transform, _) in kind.items():
            target = "/".join(filter(None, (ours, leaf)))
            if target not in expected:
                continue
            sources = [".".join(filter(None, (name, theirs))) for name in name_of(row, i)]
            used.update(sources)
            absent = [name for name in sources if name not in state] if sources else [target]
            if absent:
                missing += absent
                continue
            array = np.concatenate([np.asarray(state[name], np.float32) for name in sources])
            try:
                array = transform(array)
            except ValueError:  # a tensor of another rank
                array = array.reshape(-1)
            if target == "pos_embed":
                array = _fitting_positions(array, model)
            if array.shape != expected[target].shape:
                shapes = " + ".join(str(np.shape(state[name])) for name in sources)
                misshapen.append(f"{', '.join(sources)} of shape {shapes} for {target} {expected[target].shape}")
            params[target] = array
    problems = {"missing": missing, "left over": sorted(set(state) - used), "misshapen": misshapen}
    if any(problems.values()):
        said = "; ".join(f"{len(names)} {what}: {some_of(names)}" for what, names in problems.items() if names)
        raise ValueError(f"this checkpoint is not one of the model given{_looks_like(state)}: {said}")
    return unflatten_dict(params, sep="/")


def resize_positions(
    pos_embed: np.ndarray, tokens_before: int, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> np.ndarray:
    """Position embeddings of one grid of patches, resized to another: bicubic, antialiased, as timm does it.

    Args:
      pos_embed: (1, tokens_before + h · w, width), the patches in rows.
      tokens_before: embeddings in front that belong to no patch (class token, …); they stay as they are.
      grid_from: (h, w), rows and columns of patches.
      grid_to: the same of the result.

    Returns:
      (1, tokens_before + the patches of grid_to, width), float32; `pos_embed` itself where the grids are equal.

    Raises:
      ValueError: pos_embed does not have the shape said, or a grid has no patches.
    """
    if min(*grid_from, *grid_to) < 1:
        raise ValueError(f"a grid has at least one row and column, got {grid_from} and {grid_to}")
    tokens = tokens_before + grid_from[0] * grid_from[1]
    if np.ndim(pos_embed) != 3 or pos_embed.shape[:2] != (1, tokens):
        expected = f"(1, {tokens_before} + {grid_from[0]} · {grid_from[1]}, width)"
        raise ValueError(f"expected position embeddings {expected}, got {np.shape(pos_embed)}")
    if tuple(grid_from) == tuple(grid_to):
        return pos_embed
    pos_embed = np.asarray(pos_embed, np.float32)
    width = pos_embed.shape[2]
    patches = pos_embed[:, tokens_before:].reshape(1, *grid_from, width)
    resized = jax.image.resize(patches, (1, *grid_to, width), "bicubic", antialias=True)
    return np.concatenate([pos_embed[:, :tokens_before], np.asarray(resized).reshape(1, -1, width)], axis=1)


def _fitting_positions(pos_embed: np.ndarray, model: ViT) -> np.ndarray:
    """Resized where they are of another image size; as they are where they can be of no image of this model."""
    before, to = model.positions_before, model.image_size // model.patch_size
    patches = pos_embed.shape[1] - before if pos_embed.ndim == 3 else 0
    side = math.isqrt(max(patches, 0))
    if pos_embed.shape[::2] != (1, model.width) or side in (0, to) or side**2 != patches:
        return pos_embed
    logging.warning(
        "position embeddings of %d × %d patches (images of %d pixels) resized to %d × %d (%d pixels)",
        side, side, side * model.patch_size, to, to, model.image_size,
    )  # fmt: skip
    return resize_positions(pos_embed, before, (side, side), (to, to))


# What tells of other models, the first that some name matches; of the last two there is a model here.
_FAMILIES = (
    (r"^(clip\.)?vision_model\.", "CLIP or SigLIP in Hugging Face's names, which are not converted"),
    (r"^visual\.", "CLIP in OpenAI's or OpenCLIP's names, which are not converted; timm's are"),
    (r"\.layer_scale1\.", "DINOv2 in Hugging Face's names, which are not converted; timm's are"),
    (r"^(mask_token|register_tokens)$", "DINOv2 in Meta's names, which are not converted; timm's are"),
    (r"^decoder_(blocks|embed|pos_embed)", "a masked autoencoder with its decoder, which is not converted"),
    (r"^attn_pool\.", "SigLIP, pooled by attention, which is not converted"),
    (r"blocks_token_only\.", "CaiT, which is not converted"),
    (r"^layers\.\d+\.(blocks|downsample)\.", "Swin, which is not converted"),
    (r"relative_position_bias|\.gamma_1$|attn\.q_bias$|\.mlp\.(fc1_g|w12)\.", "BEiT, EVA or DINOv3, not converted"),
    (r"attn\.q_norm\.", "a ViT with norms of queries and keys, which is not converted"),
    (r"^pre_logits\.", "a ViT with a layer before its head, which is not converted"),
    (r"^patch_embed\.backbone\.", "a ViT behind a convolutional network, which is not converted"),
    (r"^(layer1|stages)\.", "a convolutional network, which is not converted"),
    (r"\.ls1\.gamma$", "DeiT III or DINOv2 in timm's names"),
    (r"^norm_pre\.", "CLIP in timm's names"),
)


def _looks_like(state: Mapping[str, np.ndarray]) -> str:
    found = (family for pattern, family in _FAMILIES if any(re.search(pattern, name) for name in state))
    family = next(found, None)
    return f" (it looks like {family})" if family else ""


def rows_of(depth: int) -> Iterator[tuple[str, dict, _Row, int]]:
    """(our module, its kind, its row of the table, the block) of a model of that depth."""
    for row in _TABLE:
        for i in range(depth) if "{i}" in row.ours else (0,):
            yield row.ours.format(i=i), row.kind, row, i


def _naming(state: Mapping[str, np.ndarray]) -> Callable[[_Row, int], list[str]]:
    """A function from a row and a block to the checkpoint's names for it."""
    if "patch_embed.proj.weight" in state:
        return lambda row, i: [row.timm.format(i=i)]
    prefix = next((p for p in ("vit", "deit") if f"{p}.embeddings.cls_token" in state), None)
    if prefix is None:
        like = _looks_like(state)
        raise ValueError(
            f"neither timm's nor Hugging Face's names of a ViT or DeiT classifier{like}: {some_of(list(state))}"
        )
    loaded = any(name.startswith(f"{prefix}.layers.") for name in state)
    head = "cls_classifier" if "cls_classifier.weight" in state else "classifier"

    def name_of(row, i):
        names = (row.hf_loaded or row.hf) if loaded else row.hf
        names = (names,) if isinstance(names, str) else names
        return [name.format(i=i, p=prefix, head=head) for name in names]

    return name_of
