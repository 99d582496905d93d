"""safetensors files with a checksum of every tensor, and of what is said about them. docs/files.md has the format.

All metadata is one string under one key: safetensors writes several keys in random order, and so would not write the
same file twice.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from beacon_jax.disk import disk_errors, replace_file
from beacon_jax.leaves import as_key, is_key, key_name, key_numbers
from beacon_jax.places import is_file, local_copy, place

VERSION = 2
KEY = "beacon_jax"
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_FIRST = "beacon_jax 1"  # metadata "format" of version 1
# What can be written and read again: bool, and of these kinds, and the bytes of each number.
_SIZES = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8,)}
_OTHERS = {ml_dtypes.bfloat16, *FLOAT8.values()}


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
      version: 1 or 2.
      kind: "params", "layer" or "quantized".
      about: what is said about the tensors, of JSON's types.
      tensors: {name: array}, keys of random numbers being JAX's; empty where they were not asked for.
    """

    version: int
    kind: str
    about: dict[str, Any]
    tensors: dict[str, Any]


def write_tensors(path: str | os.PathLike, kind: str, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a file of this version in one atomic step; the same arguments give the same bytes.

    Args:
      path: the file, replaced; its folder is made.
      kind: "params", "layer" or "quantized".
      tensors: {name: array}, keys of random numbers among them.
      about: of JSON's types.

    Raises:
      ValueError: a tensor of a type that such files do not hold.
      OSError: with the path, where it cannot be written.
    """
    keys = {name: key_name(a) for name, a in tensors.items() if is_key(a) and key_name(a)}
    tensors = {name: key_numbers(a) if name in keys else a for name, a in tensors.items()}
    for name, a in tensors.items():
        dtype = getattr(a, "dtype", None) or np.asarray(a).dtype
        if not _is_held(dtype):
            raise ValueError(f"{name!r} is of type {dtype}, which a safetensors file does not hold")
    # safetensors writes the buffer as it lies in memory, so a transposed view must be copied into row-major order.
    tensors = {name: np.array(a, order="C") for name, a in tensors.items()}
    sums = {name: _checksum(a) for name, a in tensors.items()}
    said = {"version": VERSION, "kind": kind, "about": about, "checksums": sums}
    said |= {"keys": keys} if keys else {}
    said["checksum"] = _digest(_text(said).encode())
    replace_file(path, lambda partial: save_file(tensors, partial, metadata={KEY: _text(said)}))


def read_tensors(path: str | os.PathLike, *, tensors: bool = True) -> TensorFile:
    """Reads a file of this version, checking every byte of it, or of version 1, which has no checksums.

    Args:
      path: the file, or an address (see places.py).
      tensors: whether to read them, or only what is said about them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, or another one.
    """
    if not is_file(place(path)):
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with local_copy(path) as local, disk_errors(path, "read"), safe_open(local, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = arrays_of(local, file) if tensors else {}
    except (SafetensorError, AttributeError, TypeError) as error:  # the last two: a dtype that NumPy has not
        raise ValueError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error
    if metadata.get("format") == _FIRST:
        return _first_version(path, metadata, arrays)
    if KEY not in metadata:
        raise ValueError(f"{path} was not written by this version of beacon_jax (expected metadata {KEY!r})")
    said = _checked(path, metadata[KEY])
    if tensors:
        damaged = sorted(arrays.keys() ^ said["checksums"].keys())
        damaged += [name for name, a in arrays.items() if not damaged and _checksum(a) != said["checksums"][name]]
        if damaged:
            raise ValueError(f"{path} is damaged: {damaged[0]!r} is not the tensor that was written")
        arrays |= {name: as_key(arrays[name], kind) for name, kind in said.get("keys", {}).items()}
    return TensorFile(said["version"], said["kind"], said["about"], arrays)


def arrays_of(path: str | os.PathLike, file: Any) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which is open. AttributeError or TypeError for a type that NumPy has not."""
    types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    arrays = {name: file.get_tensor(name) for name, kind in types.items() if kind not in FLOAT8}
    if len(arrays) < len(types):  # safetensors looks for float8 in NumPy, which has none
        for name, about in deserialize(Path(path).read_bytes()):
            if name not in arrays:
                arrays[name] = np.frombuffer(about["data"], FLOAT8[types[name]]).reshape(about["shape"])
    return arrays


def _is_held(dtype: Any) -> bool:
    if not isinstance(dtype, np.dtype):  # of a key whose implementation has no name
        return False
    return dtype.kind == "b" or dtype.type in _OTHERS or dtype.itemsize in _SIZES.get(dtype.kind, ())


def _checked(path, text: str) -> dict[str, Any]:
    """The metadata. ValueError where they are not the text that was written, or of a later version."""
    try:
        said = json.loads(text)
        own = said.pop("checksum")
        intact = own == _digest(_text(said).encode()) and text == _text(said | {"checksum": own})
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged: its metadata are not those that were written")
    if said["version"] != VERSION:
        raise ValueError(f"{path} is of format version {said['version']}, and this beacon_jax reads 1 and {VERSION}")
    return said


def _first_version(path, metadata, arrays) -> TensorFile:
    kind = next((kind for kind in ("quantized", "layer") if kind in metadata), "params")
    try:
        about = {"model": metadata["model"]} if "model" in metadata else {}
        about = about if kind == "params" else json.loads(metadata[kind])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its metadata are not JSON") from error
    return TensorFile(1, kind, about, arrays)


def _text(said: Any) -> str:
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def _checksum(array: np.ndarray) -> str:
    return _digest(f"{array.dtype}{array.shape}".encode(), array.reshape(-1).view(np.uint8).data)


def _digest(*parts) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
