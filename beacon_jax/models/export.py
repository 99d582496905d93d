"""Parameters of our ViT and BERT under the names of timm and Hugging Face: the tables of convert*.py, backwards."""

import os
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from beacon_jax.disk import replace_file
from beacon_jax.models.bert import Bert
from beacon_jax.models.convert import rows_of
from beacon_jax.models.convert_bert import rows_of as bert_rows_of
from beacon_jax.models.vit import ViT
from beacon_jax.places import place

NAMINGS = ("timm", "hf")


def to_state_dict(params: Mapping, model: ViT | Bert, naming: str) -> dict[str, np.ndarray]:
    """Parameters of `model` under another library's names, the inverse of `convert_state_dict`.

    Args:
      params: nested dict of arrays, as `model.init` gives; floating point of any width.
      model: the model they are of.
      naming: "timm"; or "hf" for the names under which Hugging Face saves ViTForImageClassification, of a distilled
        model DeiTForImageClassificationWithTeacher, of a Bert BertModel(config, add_pooling_layer=False).

    Returns:
      ``{name: float32 array}``.

    Raises:
      ValueError: a naming that there is not for the model, or parameters of another model.
    """
    if naming not in NAMINGS:
        raise ValueError(f"unknown naming {naming!r}; expected one of {', '.join(NAMINGS)}")
    flat = flatten_dict(params, sep="/")
    shapes = {name: s.shape for name, s in flatten_dict(model.param_shapes(), sep="/").items()}
    wrong = sorted({(name, np.shape(a)) for name, a in flat.items()} ^ set(shapes.items()))
    if wrong:
        name, shape = wrong[0]
        raise ValueError(f"these are not the parameters of the model given: {name} {shape} is in one of them alone")
    arrays = {name: np.asarray(a).astype(np.float32) for name, a in flat.items()}
    return _bert_state(arrays, model, naming) if isinstance(model, Bert) else _vit_state(arrays, model, naming)


def save_state_dict(path: str | os.PathLike, params: Mapping, model: ViT | Bert, naming: str) -> str:
    """Writes `to_state_dict` as a safetensors file that timm and transformers read, in one atomic step.

    Returns:
      A sentence that says what is in the file and what was lost.

    Raises:
      ValueError: as `to_state_dict`.
      OSError: with the path, where it cannot be written.
    """
    state, own = to_state_dict(params, model, naming), place(path)
    replace_file(own, lambda partial: save_file(state, partial, metadata={"format": "pt"}))
    return (
        f"{own}: {len(state)} float32 tensors in {_LIBRARIES[naming]} naming, {own.stat().st_size / 1e6:.1f} MB; "
        "kernels have the values of their codes, and codes, scales, alphabets and what was done are not in this file"
    )


_OF_TIMM_ALONE = {
    "layer scale": lambda model: model.layer_scale,
    "registers": lambda model: model.registers,
    "norm before the blocks": lambda model: model.pre_norm,
    "models without a class token": lambda model: not model.class_token,
    "class token without a position": lambda model: model.class_token and not model.class_position,
    "mean pooling": lambda model: model.class_token and model.pool != "token",
    "norm after pooling": lambda model: model.norm_after_pool,
    "classifier without classes": lambda model: not model.classes,
}
_LIBRARIES = {"timm": "timm's", "hf": "Hugging Face's"}


def _vit_state(arrays, model, naming):
    missing = [said for said, has in _OF_TIMM_ALONE.items() if has(model)]
    if naming == "hf" and missing:
        raise ValueError(f"Hugging Face's ViT and DeiT have no {', '.join(missing)}; export the model in timm's naming")
    prefix, head = ("deit", "cls_classifier") if model.distilled else ("vit", "classifier")
    state = {}
    for ours, kind, row, i in rows_of(model.depth):
        own = row.timm if naming == "timm" else row.hf
        names = [n.format(i=i, p=prefix, head=head) for n in ([own] if isinstance(own, str) else own)]
        for leaf, (theirs, _, back) in kind.items():
            source = "/".join(filter(None, (ours, leaf)))
            if source not in arrays:
                continue
            for name, part in zip(names, np.split(back(arrays[source], model), len(names)), strict=True):
                state[".".join(filter(None, (name, theirs)))] = np.ascontiguousarray(part)
    return state


def _bert_state(arrays, model, naming):
    if naming != "hf":
        raise ValueError("timm has no BERT; export the model in Hugging Face's naming, hf")
    return {
        theirs: np.ascontiguousarray(arrays[ours].T if transposed else arrays[ours])
        for ours, theirs, transposed in bert_rows_of(model.depth)
    }
