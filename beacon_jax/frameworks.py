"""Modules of Flax as functions of (params, batch)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
from flax import nnx


def as_function(model: Any, params: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """A function apply(params, batch), and the parameters.

    Args:
      model: such a function; a Linen module that maps one array to another and has no other variables; or an NNX
        module, run as it is (call its `eval()` first, where it has dropout or batch statistics).
      params: the parameters; None for an NNX module, which holds its own.

    Raises:
      ValueError: parameters for an NNX module, none for another model, or all collections of a Linen module; by the
        function, an NNX module whose BatchNorm or Dropout is in training mode, or a Linen module with other variables.
    """
    if isinstance(model, nnx.Module):
        if params is not None:
            raise ValueError(
                "an NNX module holds its own parameters; pass params=None, or a function apply(params, batch)"
            )
        graph, own, *rest = nnx.split(model, nnx.Param, ...)
        return functools.partial(_run_module, graph, rest), own
    if params is None:
        raise ValueError(f"params is None, which only an NNX module takes; got a {type(model).__name__}")
    if isinstance(model, nn.Module):
        if isinstance(params, Mapping) and "params" in params:
            raise ValueError(
                'params holds the collection "params" itself: pass variables["params"], or a function apply(params, '
                "batch) for a module with other variables"
            )
        return functools.partial(_run_linen, model), params
    return model, params


def _run_linen(module, params, batch):
    try:
        return module.apply({"params": params}, batch)
    except flax.errors.ScopeCollectionNotFound as error:
        raise ValueError(
            "the Linen module reads variables that are not among its parameters, such as batch statistics; pass a "
            f"function apply(params, batch) that gives it all of them: {error}"
        ) from error


def _run_module(graph, rest, params, batch):
    module = nnx.merge(graph, params, *rest, copy=True)
    before = jax.tree.leaves(nnx.state(module, _CHANGING))
    output = module(batch)
    after = jax.tree.leaves(nnx.state(module, _CHANGING))
    # Either may be so in a module that changes nothing: nnx.jit gives new arrays, and a call may say otherwise.
    if any(old is not new for old, new in zip(before, after, strict=True)) and any(
        map(_trains, nnx.iter_modules(module))
    ):
        raise ValueError(
            "the NNX module changes its batch statistics, or draws for dropout, so it is in training mode; call its "
            "eval() first"
        )
    return output


_CHANGING = (nnx.BatchStat, nnx.RngState)


def _trains(found):
    _, module = found
    if isinstance(module, nnx.BatchNorm):
        return not module.use_running_average
    return isinstance(module, nnx.Dropout) and not module.deterministic and module.rate > 0
