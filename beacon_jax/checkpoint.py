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


def save_params(path: str | os.PathLike, params: Any) -> None:
    """Writes a nested dict of arrays, under names such as blocks_0/attn/qkv/kernel, in one atomic step."""
    _save(path, flatten_dict(unfreeze(params), sep="/"), {})


def load_params(path: str | os.PathLike) -> Any:
    """Reads what `save_params` wrote. Raises FileNotFoundError, or ValueError for a damaged or other file."""
    tensors, metadata = _load(path)
    if metadata:
        raise ValueError(f"{path} holds a quantized model; read it with load_quantized")
    return unflatten_dict({name: jnp.asarray(a) for name, a in tensors.items()}, sep="/")


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
        tensors[f"{name}/kernel.codes"] = pack_codes(np.asarray(matrix.codes), len(matrix.alphabet))
        for field in ("alphabet", "scale", "offset"):
            if getattr(matrix, field) is not None:
                tensors[f"{name}/kernel.{field}"] = getattr(matrix, field)
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
        part = {f: tensors.pop(f"{name}/kernel.{f}", None) for f in ("codes", "alphabet", "scale", "offset")}
        codes = unpack_codes(part["codes"], len(part["alphabet"]), tuple(kernel["shape"]))
        rest = [None if part[f] is None else jnp.asarray(part[f]) for f in ("alphabet", "scale", "offset")]
        layers[name] = QuantizedMatrix(jnp.asarray(codes), *rest)
        tensors[f"{name}/kernel"] = layers[name].dequantize().astype(kernel["dtype"])
    return unflatten_dict({name: jnp.asarray(a) for name, a in tensors.items()}, sep="/"), layers


def _save(path, tensors, metadata):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied into row-major order.
    tensors = {name: np.array(a, order="C") for name, a in tensors.items()}
    save_file(tensors, partial, metadata={"format": FORMAT, **metadata})
    partial.replace(path)


def _load(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"{path} was not written by this version of beacon_jax (expected format {FORMAT!r})")
    return tensors, metadata
