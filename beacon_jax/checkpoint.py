"""Parameters, and single quantized layers, in safetensors files."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from beacon_jax import version_1
from beacon_jax.graph.program import leaf_names
from beacon_jax.packed import is_packed
from beacon_jax.quant.packed import PackedKernel
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.tensor_file import read_tensors, write_tensors


def save_params(path: str | os.PathLike, params: Any, *, model: str = "") -> None:
    """Writes a pytree of arrays, under names such as blocks_0/attn/qkv/kernel, in one atomic step.

    Args:
      path: the file, replaced.
      params: the parameters.
      model: the name of the model that they are of, for `saved_model`.

    Raises:
      ValueError: no parameters, two of one name, or one of a type that files do not hold.
      OSError: with the path, where it cannot be written.
    """
    if not jax.tree.leaves(params):
        raise ValueError(f"there are no parameters to write, got {type(params).__name__}")
    write_tensors(path, "params", named_leaves(params), {"model": model} if model else {})


def load_params(path: str | os.PathLike, like: Any = None) -> Any:
    """Reads what `save_params` wrote: a nested dict, or a pytree of the structure of `like`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or other file, or parameters of another model than `like`.
    """
    file = read_tensors(path)
    if file.kind != "params":
        raise ValueError(f"{path} holds a quantized {_KINDS[file.kind]}; read it with load_{file.kind}")
    return tree_of(path, {name: jax.device_put(a) for name, a in file.tensors.items()}, like)


_KINDS = {"quantized": "model", "layer": "layer"}


def saved_model(path: str | os.PathLike) -> str | None:
    """The name of the model whose parameters a file holds, None where it was not recorded. Errors as `load_params`."""
    file = read_tensors(path, tensors=False)
    return file.about.get("model") if file.kind == "params" else None


def save_layer(path: str | os.PathLike, matrix: QuantizedMatrix, report: dict[str, Any]) -> None:
    """Writes a quantized kernel, packed and without its `info`, and a report as JSON, in one atomic step.

    ValueError where it is no QuantizedMatrix, OSError with the path.
    """
    if not isinstance(matrix, QuantizedMatrix):
        raise ValueError(f"expected a QuantizedMatrix, got {type(matrix).__name__}")
    kernel = PackedKernel.of(matrix)
    about = {"kernel": about_kernel(kernel), "report": report}
    tensors = kernel_tensors(kernel)
    if matrix.bias_change is not None:
        tensors["bias_change"] = matrix.bias_change
    write_tensors(path, "layer", tensors, about)


def load_layer(path: str | os.PathLike) -> tuple[QuantizedMatrix, dict[str, Any]]:
    """Reads what `save_layer` wrote. Raises FileNotFoundError, or ValueError for a damaged or other file."""
    file = read_tensors(path)
    if file.kind != "layer":
        raise ValueError(f"{path} does not hold a single quantized layer")
    with named_path(path):
        tensors = dict(file.tensors)
        bias = tensors.pop("bias_change", None)
        if file.version == 1:
            kernel = version_1.kernel_of(tensors, tuple(file.about["shape"]))
        else:
            kernel = kernel_of(tensors, file.about["kernel"])
        kernel.check()
        matrix = kernel.unpack()
        if bias is not None:
            if bias.shape != kernel.scale.shape or bias.dtype != kernel.scale.dtype or not np.isfinite(bias).all():
                raise ValueError(f"bias_change is no finite {kernel.scale.dtype} of shape {kernel.scale.shape}")
            matrix = dataclasses.replace(matrix, bias_change=jnp.asarray(bias))
        return matrix, file.about["report"]


def kernel_tensors(kernel: PackedKernel) -> dict[str, Any]:
    """Its arrays, by name."""
    tensors = {"codes": kernel.words, "scale": kernel.scale, "offset": kernel.offset}
    return {name: array for name, array in tensors.items() if array is not None}


def about_kernel(kernel: PackedKernel) -> dict[str, Any]:
    """What a file says of it beside its arrays."""
    return {"shape": list(kernel.shape), "levels": list(kernel.levels)}


def kernel_of(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> PackedKernel:
    """The kernel that `kernel_tensors` and `about_kernel` wrote, not checked."""
    return PackedKernel(
        tensors["codes"], tensors["scale"], tensors.get("offset"), tuple(about["levels"]), tuple(about["shape"])
    )


def named_leaves(params: Any) -> dict[str, Any]:
    """{name: leaf}, a PackedLeaf being one. Raises ValueError where two leaves have one name."""
    names, leaves = leaf_names(params, is_packed), jax.tree.leaves(params, is_leaf=is_packed)
    if len(set(names)) < len(names):
        raise ValueError("two parameters have the same path; they cannot be told apart in a file")
    return dict(zip(names, leaves, strict=True))


def tree_of(path: str | os.PathLike, leaves: Mapping[str, Any], like: Any) -> Any:
    """A nested dict of named leaves, or a pytree of the structure of `like`. ValueError where they do not fit that."""
    if like is None:
        inner = {name[:i] for name in leaves for i, letter in enumerate(name) if letter == "/"}
        if both := sorted(inner & leaves.keys()):
            raise ValueError(f"{path} holds parameters below {both[0]!r}, and one of that name; give `like`")
        return unflatten_dict(dict(leaves), sep="/")
    expected = {name: np.shape(a) for name, a in named_leaves(like).items()}
    wrong = sorted(set(expected.items()) ^ {(name, a.shape) for name, a in leaves.items()})
    if wrong:
        raise ValueError(f"{path} does not hold these parameters: {wrong[0][0]} {wrong[0][1]} is in one of them alone")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in expected])


@contextlib.contextmanager
def named_path(path: str | os.PathLike) -> Iterator[None]:
    """Errors of what a file says become one ValueError that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} does not hold what it should: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} does not hold what it should ({type(error).__name__}: {error})") from error
