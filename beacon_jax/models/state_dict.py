"""The tensors of checkpoint files, as other libraries write them: safetensors or torch, whole or in parts."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open

from beacon_jax.tensor_file import FLOAT8, arrays_of

_TORCH = (".pth", ".pt", ".bin")
ENDINGS = (".safetensors", *_TORCH)
_INDEX = ".index.json"
# What a folder's weights are called, the first that is there.
_IN_FOLDER = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")

_READ = {*FLOAT8, "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"}

# Where training checkpoints keep the weights, the averaged ones first, as timm takes them.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")
_WEIGHTS = ("state_dict", "model_state_dict", "model")
# What wrappers of modules put before all names, and inside of names.
_PREFIXES = ("module.", "model.", "base_model.", "timm_model.", "backbone.")
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, without what wrappers put before the names (module., _orig_mod., …).

    Args:
      path: a .safetensors file; a .pth, .pt or .bin file, which torch reads without running code from it; the index
        (.index.json) of a checkpoint in several such files; or a folder with one of these. Of a training checkpoint it
        is the averaged weights where it has some, which is logged as a warning.

    Returns:
      ``{name: array}``, floats of the type in the file, or float32 from torch files.

    Raises:
      FileNotFoundError: no such file, or a part that the index names is missing.
      ValueError: another ending, a damaged file, or one that holds other things than tensors, or of types not read.
      ImportError: torch is needed and not installed.
    """
    path = _weights_of(Path(path))
    state = _read_parts(path) if path.name.endswith(_INDEX) else _read_file(path)
    return _unwrapped_names(path, state)


def _weights_of(path: Path) -> Path:
    """The file of a folder that holds its weights, or the file itself."""
    if path.is_dir():
        found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        others = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if not found and len(others) != 1:
            names = ", ".join(file.name for file in others[:4]) or "none"
            raise ValueError(
                f"{path} holds no {_IN_FOLDER[0]} and not exactly one file that ends in {_ENDINGS}: {names}; "
                "name the file"
            )
        return (found or others)[0]
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    if path.suffix not in ENDINGS and not path.name.endswith(_INDEX):
        raise ValueError(f"a checkpoint ends in {_ENDINGS}, or is their {_INDEX}, got {path.name!r}")
    return path


_ENDINGS = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    """All tensors of the files that an index names."""
    try:
        wanted = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(wanted.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a checkpoint: it needs a weight_map of tensors to files") from error
    state: dict[str, np.ndarray] = {}
    for part in parts:
        if Path(part).name != part or Path(part).suffix not in ENDINGS:
            raise ValueError(f"{index} names {part!r}, which is no checkpoint file beside it")
        if not (index.parent / part).is_file():
            raise FileNotFoundError(f"{index} names {part}, one of {len(parts)} files, which is not beside it")
        state |= _read_file(index.parent / part)
    different = sorted(set(wanted) ^ set(state))
    if different:
        where = "is in none of its files" if different[0] in wanted else "is in its files and not named"
        raise ValueError(f"{index} does not fit its files: {different[0]} {where} ({len(different)} such tensors)")
    return state


def _read_file(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is a pointer of Git LFS, not the file itself; fetch it by: git lfs pull")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            unknown = sorted(name for name, kind in types.items() if kind not in _READ)
            if unknown:
                kinds = ", ".join(sorted({types[name] for name in unknown}))
                raise ValueError(f"{path} holds tensors of type {kinds}, which are not read: {some_of(unknown)}")
            return arrays_of(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); is it truncated?") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import pickle

    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path.name} needs torch: pip install torch, or use a .safetensors file") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_about_pickle(path, str(error))) from error
    except Exception as error:  # its unpickler raises whatever damaged bytes lead to
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} is not a readable torch file ({reason}); is it truncated?") from error
    state = _weights(path, state)
    bad = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if bad:
        kinds = ", ".join(sorted({type(state[name]).__name__ for name in bad}))
        raise ValueError(f"{path} holds no state dict: beside tensors it has {some_of(list(map(str, bad)))} ({kinds})")
    return {name: _array(path, name, tensor) for name, tensor in state.items()}


def _array(path: Path, name: str, tensor) -> np.ndarray:
    if tensor.is_sparse or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise ValueError(f"{path} holds {name} of type {tensor.dtype}, {tensor.layout}, which is not read")
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _about_pickle(path: Path, message: str) -> str:
    """torch's reasons, some of them pages long, in one sentence."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found is None:
        return f"{path} is damaged, or holds more than tensors, which is not loaded"
    return (
        f"{path} holds more than tensors, which is not loaded since it could run code: objects of {found[1]}; save its "
        "weights alone where it came from"
    )


def _weights(path: Path, state: Any) -> Mapping[str, Any]:
    """The weights among what a training checkpoint holds."""
    for _ in range(4):
        if not isinstance(state, Mapping):
            raise ValueError(f"{path} holds no state dict but a {type(state).__name__}")
        inner = [key for key in (*_AVERAGED, *_WEIGHTS) if isinstance(state.get(key), Mapping) and state[key]]
        if not inner:
            return state
        if inner[0] in _AVERAGED:
            others = ", ".join(inner[1:])
            logging.warning("%s: taken are the averaged weights %s%s", path, inner[0], f", not {others}" * bool(others))
        state = state[inner[0]]
    return state


def _unwrapped_names(path: Path, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {
        name: _WRAPPERS.sub("", name) for name in state if name != "n_averaged"
    }  # a count, beside averaged weights
    while names and (prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in names.values())), None)):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path} holds two tensors of one name: {some_of(list(names))}")
    return {short: state[name] for name, short in names.items()}


def some_of(names: list[str], most: int = 4) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
