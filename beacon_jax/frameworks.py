"""Modules of Flax as functions of (params, batch)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax import nnx


def as_function(model: Any, params: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """A function apply(params, batch), and the parameters.

    Args:
      model: such a function; a Linen module that maps one array to another and has no other variables; or an NNX
        module, run as it is (call its `eval()` first, where it has dropout or batch statistics).
      params: the parameters; None for an NNX module, which holds its own.

    Raises:
      ValueError: parameters for an NNX module, none for another model, or all collections of a Linen module.
    """
    if isinstance(model, nnx.Module):
        if params is not None:
            raise ValueError(
                "an NNX module holds its own parameters; pass params=None, or a function apply(params, batch)"
            )
        graph, own, rest = nnx.split(model, nnx.Param, ...)
        return lambda p, batch: nnx.merge(graph, p, rest, copy=True)(batch), own
    if params is None:
        raise ValueError(f"params is None, which only an NNX module takes; got a {type(model).__name__}")
    if isinstance(model, nn.Module):
        if isinstance(params, Mapping) and "params" in params:
            raise ValueError(
                'params holds the collection "params" itself: pass variables["params"], or a function apply(params, '
                "batch) for a module with other variables"
            )
        return lambda p, batch: model.apply({"params": p}, batch), params
    return model, params
