"""A model as a chain of stages, each the input of the next: what the pipeline quantizes piece by piece."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Stage:
    """A piece of a model: `module`, run by `method` on the parameters found at `path` in the model's tree.

    Stages with equal module and method are equal wherever their parameters lie, and share their compiled code: the
    blocks of a transformer compile once.
    """

    module: nn.Module
    path: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    method: str | None = None

    def __hash__(self) -> int:
        try:
            return hash((self.module, self.method))
        except TypeError:  # a module with a list or an array among its fields, such as nn.Sequential
            return hash((id(self.module), self.method))

    def select(self, params: Any) -> Any:
        """This stage's parameters, out of the whole model's."""
        for key in self.path:
            params = params[key]
        return params

    def layer_name(self, local: str) -> str:
        """The full name, such as blocks_0/attn/qkv, of the layer `local` of this stage ("" for the stage itself)."""
        return "/".join((*self.path, *([local] if local else [])))


def stages_of(model: nn.Module) -> list[Stage]:
    """`model.stages()` where it has that method, else the whole model as one stage."""
    stages = getattr(model, "stages", None)
    return stages() if callable(stages) else [Stage(model)]


FORWARD_DTYPES = ("float32", "bfloat16", "float64")


def run_in(dtype: str, run: Callable, params: Any, x: jax.Array) -> Any:
    """run(params, x) in a dtype of FORWARD_DTYPES.

    "float32" leaves the arrays as they are and makes products true float32 on every backend (TPUs default to bfloat16);
    "bfloat16" and "float64" cast what is floating point.
    """
    if dtype != "float32":
        params, x = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (params, x))
    with jax.default_matmul_precision("default" if dtype == "bfloat16" else "highest"):
        return run(params, x)
