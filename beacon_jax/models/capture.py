"""The inputs of a module's linear layers, seen while it runs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def apply_with_inputs(
    module: nn.Module, params: Any, x: jax.Array, method: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs a Linen module and returns the input of every nn.Dense in it.

    Args:
      module: any Linen module.
      params: its parameters.
      x: its input.
      method: the method to run, None for __call__.

    Returns:
      The output, and {layer name: input (…, N)} in the order of the calls, with names such as attn/qkv. The inputs of a
      layer that is called several times are flattened to rows and concatenated.
    """
    inputs: dict[str, jax.Array] = {}

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            name, value = "/".join(context.module.path), args[0]
            if name in inputs:
                value = jnp.concatenate([a.reshape(-1, a.shape[-1]) for a in (inputs[name], value)])
            inputs[name] = value
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        y = module.apply({"params": params}, x, method=method)
    return y, inputs
