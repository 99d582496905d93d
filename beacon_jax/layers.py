"""The linear layers of a model, found without running it."""

import contextlib
import dataclasses
import functools
from collections import Counter
from typing import Any

import jax

from beacon_jax.models.capture import apply_with_inputs
from beacon_jax.models.stages import Stage


@dataclasses.dataclass(frozen=True)
class Layer:
    """One nn.Dense of a model."""

    stage: int  # its position in the chain
    local: str  # its name inside the stage
    source: str  # the first layer of the stage with the very same input, such as q for k and v
    shape: tuple[int, int]
    rows: int  # calibration rows in all


def find_layers(stages: list[Stage], params: Any, shapes: Counter) -> dict[str, Layer]:
    """Every nn.Dense, in the order in which they run, and its calibration rows, without running anything."""
    found: dict[str, Layer] = {}
    for (shape, dtype), batches in shapes.items():
        x = jax.ShapeDtypeStruct(shape, dtype)
        for i, stage in enumerate(stages):
            x, inputs, sources = _abstract_inputs(stage, stage.select(params), x)
            for local, a in inputs.items():
                name = stage.layer_name(local)
                before = found.get(name, Layer(i, local, sources[local], subtree(params, name)["kernel"].shape, 0))
                if before.stage != i:
                    raise ValueError(f"layer {name} is used in two stages of the model; put its uses into one stage")
                found[name] = dataclasses.replace(before, rows=before.rows + batches * (a.size // a.shape[-1]))
    return found


def _abstract_inputs(stage: Stage, params: Any, x: jax.ShapeDtypeStruct):
    """Shapes of the stage's output and of its layers' inputs, in call order, and each layer's `source`."""
    sources = {}  # in call order; eval_shape would sort a dict by name

    def run(params, x):
        y, inputs = apply_with_inputs(stage.module, params, x, stage.method)
        first = {id(value): local for local, value in reversed(inputs.items())}
        sources.update({local: first[id(value)] for local, value in inputs.items()})
        return y, list(inputs.values())

    with lifted_layers_refused():
        y, inputs = jax.eval_shape(run, params, x)
    return y, dict(zip(sources, inputs, strict=True)), sources


@contextlib.contextmanager
def lifted_layers_refused():
    """Says in one sentence what a captured value that escapes from a lifted transformation means."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "the inputs of an nn.Dense inside nn.scan, nn.remat or another lifted transformation cannot be captured; "
            "build the model without it to quantize it"
        ) from error


def check_rows(layers: dict[str, Layer], examples: int) -> None:
    """Raises ValueError if a layer has fewer rows than inputs; `examples` is the number of calibration images."""
    for name, layer in layers.items():
        if layer.rows < layer.shape[0]:
            need = -(-layer.shape[0] * examples // layer.rows)
            raise ValueError(
                f"too few calibration images: {examples} give {layer.rows} rows for the {layer.shape[0]} inputs of "
                f"{name}; use at least {need}, or allow_few_rows=True"
            )


def subtree(params: Any, name: str) -> Any:
    """The part of a parameter tree under a name such as blocks_0/attn/qkv."""
    return functools.reduce(lambda tree, key: tree[key], filter(None, name.split("/")), params)
