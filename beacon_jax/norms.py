"""The parameters of a model's normalization layers, by structure, or by their paths."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from beacon_jax.graph.program import leaf_names

_OFFSETS, _STATISTICS = {"bias", "offset"}, {"mean", "var"}


def norm_paths(params: Any, norms: str | Sequence[str] | None = None) -> list[str]:
    """Paths such as blocks_0/norm1/scale of the parameters that norm tuning trains, in the order of jax.tree.leaves.

    Args:
      params: pytree of arrays.
      norms: a regular expression over whole paths; or paths; or None for the scales and offsets of what looks like a
        LayerNorm, RMSNorm, BatchNorm or GroupNorm: a module whose arrays have one shape and are a scale and perhaps a
        bias (Haiku: offset), mean and var, in Linen, NNX or Haiku, or a weight and a bias of one axis (Equinox). A
        scale alone may also be another factor, such as LayerScale; give a pattern where a model has both.

    Raises:
      ValueError: parameters that are no arrays, a bad regular expression, a path that is not there or not floating
        point, or nothing found.
    """
    leaves = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"parameters are a pytree of arrays, but {path or 'params'} is a {type(leaf).__name__}")
    floats = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if norms is None:
        found, sought = _by_structure(floats), "module of one scale, perhaps with bias, mean and var"
    elif isinstance(norms, str):
        try:
            pattern = re.compile(norms)
        except re.error as error:
            raise ValueError(f"norms={norms!r} is not a regular expression: {error}") from error
        found, sought = [path for path in floats if pattern.fullmatch(path)], f"path that matches {norms!r}"
    else:
        for path in norms:
            if path not in floats:
                why = "not floating point" if path in leaves else f"none of {_some(leaves)}"
                raise ValueError(f"norms names the parameter {path!r}, which is {why}")
        found, sought = [path for path in floats if path in set(norms)], "path given"
    if not found:
        raise ValueError(
            f"no normalization layers to tune: no {sought} among the floating-point parameters {_some(floats)}"
        )
    return found


def _by_structure(leaves: dict[str, Any]) -> list[str]:
    modules: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = leaf
    norms = {module for module, own in modules.items() if _is_norm(own)}
    trained = {"scale", "weight"} | _OFFSETS
    return [path for path in leaves if path.rpartition("/")[0] in norms and path.rpartition("/")[2] in trained]


def _is_norm(own: dict[str, Any]) -> bool:
    if len({leaf.shape for leaf in own.values()}) > 1:
        return False
    if own.keys() == {"weight", "bias"}:
        return own["weight"].ndim == 1
    return "scale" in own and own.keys() <= {"scale"} | _OFFSETS | _STATISTICS


def _some(paths) -> str:
    """The first of many paths."""
    shown = list(paths)[:12]
    return ", ".join(shown) + (f", … ({len(paths)} in all)" if len(paths) > 12 else "")
