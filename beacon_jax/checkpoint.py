"""Parameters and packed quantized models in safetensors files."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from beacon_jax.quant.packing import pack_codes, unpack_codes
from beacon_jax.quant.quantized import QuantizedMatrix

FORMAT = "beacon_jax 1"


def save_params(path: str | os.PathLike, params: Any, *, model: str = "") -> None:
    """Writes a nested dict of arrays, under names such as blocks_0/attn/qkv/kernel, in one atomic step.

    Args:
      path: the file, replaced.
      params: the parameters.
      model: the name of the model that they are of, for `saved_model`.
    """
    _save(path, flatten_dict(unfreeze(params), sep="/"), {"model": model} if model else {})


def load_params(path: str | os.PathLike) -> Any:
    """Reads what `save_params` wrote. Raises FileNotFoundError, or ValueError for a damaged or other file."""
    tensors, metadata = _load(path)
    if "quantized" in metadata or "layer" in metadata:
        raise ValueError(f"{path} holds a quantized model; read it with load_quantized")
    return unflatten_dict({name: jnp.asarray(a) for name, a in tensors.items()}, sep="/")


def saved_model(path: str | os.PathLike) -> str | None:
    """The name of the model whose parameters a file holds, None where it was not recorded. Errors as `load_params`."""
    return _load(path, tensors=False)[1].get("model")


def save_quantized(path: str | os.PathLike, params: Any, layers: dict[str, QuantizedMatrix]) -> None:
    """Writes a quantized model: codes packed to ⌈log₂ K⌉ bits, scales, offsets, and every other parameter as it is.

    Args:
      path: the file, replaced in one atomic step.
      params: the parameter tree; the kernels of `layers` are left out of the file.
      layers: {layer name: quantized kernel}.

    Raises:
      ValueError: a layer whose kernel is not in the tree.
    """
    tensors = flatten_dict(unfreeze(params), sep="/")
    kernels = {}
    for name, matrix in layers.items():
        if f"{name}/kernel" not in tensors:
            raise ValueError(f"layer {name!r} has no kernel in the parameter tree")
        dtype = str(tensors.pop(f"{name}/kernel").dtype)
        tensors |= {f"{name}/kernel.{field}": array for field, array in _pack(matrix).items()}
        kernels[name] = {"shape": matrix.shape, "dtype": dtype}
    _save(path, tensors, {"quantized": json.dumps(kernels)})


def load_quantized(path: str | os.PathLike) -> tuple[Any, dict[str, QuantizedMatrix]]:
    """Reads what `save_quantized` wrote: the parameter tree, kernels dequantized, and {layer name: quantized kernel}.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged file, or not a quantized model.
    """
    tensors, metadata = _load(path)
    if "quantized" not in metadata:
        raise ValueError(f"{path} holds float parameters, not a quantized model; read it with load_params")
    layers = {}
    for name, kernel in json.loads(metadata["quantized"]).items():
        parts = {f: tensors.pop(f"{name}/kernel.{f}", None) for f in ("codes", "alphabet", "scale", "offset")}
        layers[name] = _unpack(parts, kernel["shape"])
        tensors[f"{name}/kernel"] = layers[name].dequantize().astype(kernel["dtype"])
    return unflatten_dict({name: jnp.asarray(a) for name, a in tensors.items()}, sep="/"), layers


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


def _pack(matrix: QuantizedMatrix) -> dict[str, Any]:
    fields = {field: getattr(matrix, field) for field in ("alphabet", "scale", "offset")}
    codes = pack_codes(np.asarray(matrix.codes), len(matrix.alphabet))
    return {"codes": codes, **{field: array for field, array in fields.items() if array is not None}}


def _unpack(parts: dict[str, Any], shape) -> QuantizedMatrix:
    codes = unpack_codes(parts["codes"], len(parts["alphabet"]), tuple(shape))
    rest = (parts.get(field) for field in ("alphabet", "scale", "offset"))
    return QuantizedMatrix(jnp.asarray(codes), *(None if array is None else jnp.asarray(array) for array in rest))


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
