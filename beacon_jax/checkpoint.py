"""Parameters and packed quantized models in safetensors files."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from beacon_jax.graph.place import Place
from beacon_jax.graph.program import leaf_names
from beacon_jax.quant.packing import pack_codes, unpack_codes
from beacon_jax.quant.quantized import QuantizedMatrix

FORMAT = "beacon_jax 1"


def save_params(path: str | os.PathLike, params: Any, *, model: str = "") -> None:
    """Writes a pytree of arrays, under names such as blocks_0/attn/qkv/kernel, in one atomic step.

    Args:
      path: the file, replaced.
      params: the parameters.
      model: the name of the model that they are of, for `saved_model`.
    """
    _save(path, _named(params), {"model": model} if model else {})


def load_params(path: str | os.PathLike, like: Any = None) -> Any:
    """Reads what `save_params` wrote: a nested dict, or a pytree of the structure of `like`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or other file, or parameters of another model than `like`.
    """
    tensors, metadata = _load(path)
    if "quantized" in metadata or "layer" in metadata:
        raise ValueError(f"{path} holds a quantized model; read it with load_quantized")
    return _tree(path, tensors, like)


def saved_model(path: str | os.PathLike) -> str | None:
    """The name of the model whose parameters a file holds, None where it was not recorded. Errors as `load_params`."""
    return _load(path, tensors=False)[1].get("model")


def save_quantized(
    path: str | os.PathLike,
    params: Any,
    layers: Mapping[str, QuantizedMatrix],
    places: Mapping[str, tuple[str, Place]],
) -> None:
    """Writes a quantized model: codes packed to ⌈log₂ K⌉ bits, scales, offsets, and every other parameter as it is.

    Args:
      path: the file, replaced in one atomic step.
      params: the parameter tree; what `layers` holds is left out of the file (of a leaf that is quantized in part,
        nothing is left out).
      layers: {layer name: quantized kernel}.
      places: {layer name: its leaf's path and its place in the leaf}, as in QuantizedModel.

    Raises:
      ValueError: a layer whose leaf is not in the tree.
    """
    tensors = _named(params)
    kernels, left = {}, {name: a.size for name, a in tensors.items()}
    for name, matrix in layers.items():
        leaf, place = places[name]
        if leaf not in tensors:
            raise ValueError(f"layer {name!r} has no parameter {leaf!r} in the tree")
        own = tensors[leaf]
        left[leaf] -= matrix.codes.size
        about = {"shape": matrix.shape, "dtype": str(own.dtype), "leaf": leaf, "leaf_shape": own.shape}
        kernels[name] = about | {"place": dataclasses.asdict(place)}
    tensors = {name: a for name, a in tensors.items() if left[name]}
    for name, matrix in layers.items():
        alone = dataclasses.replace(matrix, bias_change=None)  # the bias among the parameters has it
        tensors |= {f"{name}:{field}": array for field, array in _pack(alone).items()}
    _save(path, tensors, {"quantized": json.dumps(kernels)})


def load_quantized(path: str | os.PathLike, like: Any = None) -> tuple[Any, dict[str, QuantizedMatrix]]:
    """Reads what `save_quantized` wrote: the parameters, kernels dequantized, and {layer name: quantized kernel}.

    The parameters come as a nested dict, or as a pytree of the structure of `like`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged file, not a quantized model, or one of another structure than `like`.
    """
    tensors, metadata = _load(path)
    if "quantized" not in metadata:
        raise ValueError(f"{path} holds float parameters, not a quantized model; read it with load_params")
    layers = {}
    for name, about in json.loads(metadata["quantized"]).items():
        first = "leaf" not in about  # written before kernels had places: one two-dimensional leaf each
        leaf, mark = (f"{name}/kernel", f"{name}/kernel.") if first else (about["leaf"], f"{name}:")
        parts = {f: tensors.pop(f"{mark}{f}", None) for f in ("codes", "alphabet", "scale", "offset")}
        layers[name] = _unpack(parts, about["shape"])
        kernel = np.asarray(layers[name].dequantize())
        if first:
            tensors[leaf] = kernel.astype(about["dtype"])
            continue
        loops = {key: v if key == "offset" else tuple(map(tuple, v)) for key, v in about["place"].items()}
        whole = tensors.get(leaf, np.zeros(about["leaf_shape"], about["dtype"]))
        tensors[leaf] = Place(**loops).write(whole, kernel)
    return _tree(path, tensors, like), layers


def save_layer(path: str | os.PathLike, matrix: QuantizedMatrix, report: dict[str, Any]) -> None:
    """Writes a quantized kernel, packed and without its `info`, and a report as JSON, in one atomic step."""
    _save(path, _pack(matrix), {"layer": json.dumps({"shape": matrix.shape, "report": report})})


def load_layer(path: str | os.PathLike) -> tuple[QuantizedMatrix, dict[str, Any]]:
    """Reads what `save_layer` wrote. Raises FileNotFoundError, or ValueError for a damaged or other file."""
    tensors, metadata = _load(path)
    if "layer" not in metadata:
        raise ValueError(f"{path} does not hold a single quantized layer")
    layer = json.loads(metadata["layer"])
    return _unpack(tensors, layer["shape"]), layer["report"]


def _named(params: Any) -> dict[str, Any]:
    """{name: leaf}. Raises ValueError where two leaves have one name."""
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    if len(set(names)) < len(names):
        raise ValueError("two parameters have the same path; they cannot be told apart in a file")
    return dict(zip(names, leaves, strict=True))


def _tree(path, tensors: Mapping[str, Any], like: Any) -> Any:
    arrays = {name: jnp.asarray(a) for name, a in tensors.items()}
    if like is None:
        return unflatten_dict(arrays, sep="/")
    expected = {name: np.shape(a) for name, a in _named(like).items()}
    wrong = sorted(set(expected.items()) ^ {(name, a.shape) for name, a in arrays.items()})
    if wrong:
        raise ValueError(f"{path} does not hold these parameters: {wrong[0][0]} {wrong[0][1]} is in one of them alone")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])


_FLOATS = ("alphabet", "scale", "offset", "bias_change")


def _pack(matrix: QuantizedMatrix) -> dict[str, Any]:
    fields = {field: getattr(matrix, field) for field in _FLOATS}
    codes = pack_codes(np.asarray(matrix.codes), len(matrix.alphabet))
    return {"codes": codes, **{field: array for field, array in fields.items() if array is not None}}


def _unpack(parts: dict[str, Any], shape) -> QuantizedMatrix:
    codes = unpack_codes(parts["codes"], len(parts["alphabet"]), tuple(shape))
    floats = {field: jnp.asarray(parts[field]) for field in _FLOATS if parts.get(field) is not None}
    return QuantizedMatrix(jnp.asarray(codes), **floats)


def _save(path, tensors, metadata):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied into row-major order.
    tensors = {name: np.array(a, order="C") for name, a in tensors.items()}
    save_file(tensors, partial, metadata={"format": FORMAT, **metadata})
    partial.replace(path)


def _load(path, tensors: bool = True):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path} was not written by this version of beacon_jax (expected format {FORMAT!r})")
    return arrays, metadata
