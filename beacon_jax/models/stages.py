"""A model as a chain of stages, each the input of the next: what the pipeline quantizes piece by piece."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class Stage:
    """A piece of a model: `module`, run by `method` on the parameters found at `path` in the model's tree.

    Stages with equal module and method (the blocks of a transformer) share their compiled code.
    """

    module: nn.Module
    path: tuple[str, ...] = ()
    method: str | None = None

    def select(self, params: Any) -> Any:
        """This stage's parameters, out of the whole model's."""
        for key in self.path:
            params = params[key]
        return params

    def layer_name(self, local: str) -> str:
        """The full name of a layer known inside this stage as `local`, such as blocks_0/attn/qkv."""
        return "/".join((*self.path, local))


def stages_of(model: nn.Module) -> list[Stage]:
    """`model.stages()` where it has that method, else the whole model as one stage."""
    return model.stages() if hasattr(model, "stages") else [Stage(model)]


def run_stage(stage: Stage, params: Any, x: jax.Array) -> jax.Array:
    """The stage's output on x; `params` are the stage's own (see `Stage.select`)."""
    return stage.module.apply({"params": params}, x, method=stage.method)
