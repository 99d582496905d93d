"""Quantizes a Flax model stage by stage: batches → Gram statistics → solve → quantized parameters.

Two streams of calibration activations run side by side, those of the float model (X) and those of the model whose
earlier layers are already quantized (X̃). Inside a stage the layers are done in the order in which they run, each
calibrated on inputs that carry the quantization of all layers before it.
"""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import unfreeze

from beacon_jax.models.capture import apply_with_inputs
from beacon_jax.models.stages import Stage, run_stage, stages_of
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods import METHODS
from beacon_jax.quant.metrics import cosines, relative_output_error
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.spec import LayerPlan, QuantSpec
from beacon_jax.streams import ActivationStream


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What was done to one layer, and how well.

    output_error is ‖XW − X̃Ŵ‖² / ‖XW‖² on the calibration rows of the streams that QuantSpec.calibrate_on names, the
    cosines ∠(Xw, X̃ŵ) likewise; dead counts inputs that were always zero; seconds are for the Gram statistics and for
    the solve, compilation included. sweeps (mean) and fixed_points (fraction of the channels) are None for methods
    that do not report them.
    """

    layer: str
    shape: tuple[int, int]
    method: str
    alphabet: str
    output_error: float
    mean_cosine: float
    min_cosine: float
    dead: int
    rows: int
    gram_seconds: float
    solve_seconds: float
    sweeps: float | None = None
    fixed_points: float | None = None


@dataclasses.dataclass(frozen=True)
class QuantizedModel:
    """The model's parameters with quantized kernels dequantized in place, the quantized kernels, and the reports."""

    params: Any
    layers: dict[str, QuantizedMatrix]
    reports: list[LayerReport]


def quantize_model(
    model: nn.Module,
    params: Any,
    batches: Iterable[jax.Array],
    spec: QuantSpec,
    *,
    on_layer: Callable[[LayerReport, QuantizedMatrix, int], None] | None = None,
) -> QuantizedModel:
    """Quantizes the nn.Dense kernels of a Linen model.

    Args:
      model: any Linen module that maps one array to another, without nn.scan or nn.remat. One with a `stages` method
        (see models/stages.py) is quantized stage by stage, and each stage runs once per layer in it; any other counts
        as one stage.
      params: its parameters, a nested dict or FrozenDict; not modified.
      batches: calibration inputs (B, …), read once.
      spec: what to quantize and how.
      on_layer: called with each layer's report, its result, and the number of layers in all, as soon as it is done.

    Raises:
      ValueError: no batches, or inputs that are not finite arrays; a pattern of `spec` that matches no layer; fewer
        calibration rows than a layer has inputs (unless spec.allow_few_rows); a layer used in two stages or inside a
        lifted transformation; a method's error, with the layer's name.
    """
    stages, params = stages_of(model), unfreeze(params)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(ActivationStream(spec.activations)) for _ in _stream_names(spec)]
        shapes = _read_batches(batches, streams)
        found = _find_layers(stages, params, shapes)
        plan = spec.plan(list(found))
        _check_rows({name: found[name] for name in plan}, sum(shape[0] * n for (shape, _), n in shapes.items()), spec)
        result = QuantizedModel(jax.tree.map(lambda a: a, params), {}, [])
        trees = [params if which == "float" else result.params for which in _stream_names(spec)]
        last = max(found[name].stage for name in plan)
        for i, stage in enumerate(stages[: last + 1]):
            for name in (name for name in plan if found[name].stage == i):
                own = [stage.select(tree) for tree in trees]
                collect = functools.partial(_collect, stage, found[name], own, streams)
                report, matrix = _quantize_layer(name, params, plan[name], collect)
                layer = _subtree(result.params, name)
                layer["kernel"] = matrix.dequantize().astype(layer["kernel"].dtype)
                result.layers[name] = matrix
                result.reports.append(report)
                if on_layer is not None:
                    on_layer(report, matrix, len(plan))
            if i < last:
                for tree, stream in zip(trees, streams, strict=True):
                    stream.advance(functools.partial(_run_stage, stage, stage.select(tree)))
        return result


@dataclasses.dataclass(frozen=True)
class _Layer:
    stage: int  # its position in the chain
    local: str  # its name inside the stage
    shape: tuple[int, int]
    rows: int  # calibration rows in all


def _stream_names(spec: QuantSpec) -> tuple[str, ...]:
    return ("float", "quantized") if spec.calibrate_on == "both" else (spec.calibrate_on,)


def _read_batches(batches: Iterable[jax.Array], streams: list[ActivationStream]) -> Counter:
    """Puts the batches into every stream; returns how many there are of each (shape, dtype)."""
    if isinstance(batches, (np.ndarray, jax.Array)):
        raise ValueError(f"expected several batches, got one array of shape {batches.shape}; put it into a list")
    shapes = Counter()
    for i, batch in enumerate(batches):
        if not isinstance(batch, (np.ndarray, jax.Array)):
            raise ValueError(
                f"calibration batches are arrays of inputs alone, but batch {i} is a {type(batch).__name__}"
            )
        batch = np.asarray(batch)
        if batch.ndim == 0 or batch.size == 0:
            raise ValueError(f"calibration batch {i} is empty, of shape {batch.shape}")
        if not np.isfinite(batch).all():
            raise ValueError(f"calibration batch {i} holds NaN or infinity")
        shapes[batch.shape, batch.dtype] += 1
        for stream in streams:
            stream.append(batch)
    if not shapes:
        raise ValueError("no calibration batches: at least one is needed")
    return shapes


def _find_layers(stages: list[Stage], params: Any, shapes: Counter) -> dict[str, _Layer]:
    """Every nn.Dense, in the order in which they run, and its calibration rows, without running anything."""
    found: dict[str, _Layer] = {}
    for (shape, dtype), batches in shapes.items():
        x = jax.ShapeDtypeStruct(shape, dtype)
        for i, stage in enumerate(stages):
            x, inputs = _abstract_inputs(stage, stage.select(params), x)
            for local, a in inputs.items():
                name = stage.layer_name(local)
                before = found.get(name, _Layer(i, local, _subtree(params, name)["kernel"].shape, 0))
                if before.stage != i:
                    raise ValueError(f"layer {name} is used in two stages of the model; put its uses into one stage")
                found[name] = dataclasses.replace(before, rows=before.rows + batches * (a.size // a.shape[-1]))
    return found


def _abstract_inputs(stage: Stage, params: Any, x: jax.ShapeDtypeStruct):
    """Shapes of the stage's output and of its layers' inputs, in call order (eval_shape would sort a dict by name)."""
    names = []

    def run(params, x):
        y, inputs = apply_with_inputs(stage.module, params, x, stage.method)
        names.extend(inputs)
        return y, list(inputs.values())

    with _lifted_layers_refused():
        y, inputs = jax.eval_shape(run, params, x)
    return y, dict(zip(names, inputs, strict=True))


@contextlib.contextmanager
def _lifted_layers_refused():
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            "the inputs of an nn.Dense inside nn.scan, nn.remat or another lifted transformation cannot be captured; "
            "build the model without it to quantize it"
        ) from error


def _check_rows(layers: dict[str, _Layer], examples: int, spec: QuantSpec) -> None:
    for name, layer in layers.items():
        if layer.rows < layer.shape[0] and not spec.allow_few_rows:
            need = -(-layer.shape[0] * examples // layer.rows)
            raise ValueError(
                f"too few calibration images: {examples} give {layer.rows} rows for the {layer.shape[0]} inputs of "
                f"{name}; use at least {need}, or allow_few_rows=True"
            )


def _collect(stage: Stage, layer: _Layer, sources: list[Any], streams: list[ActivationStream]) -> GramStats:
    """Runs the streams through the stage, each on its source of parameters, and returns the layer's statistics."""
    stats = GramStats.zeros(layer.shape[0])
    for batches in zip(*streams, strict=True):
        stats = _add_batch(stage, layer.local, stats, sources, batches)
    return stats


def _quantize_layer(name: str, params: Any, plan: LayerPlan, collect: Callable[[], GramStats]):
    kernel = _subtree(params, name)["kernel"]
    start = time.perf_counter()
    with _lifted_layers_refused():
        stats = jax.block_until_ready(collect())
    middle = time.perf_counter()
    try:
        matrix = METHODS[plan.method](kernel, stats, plan.alphabet, **plan.options)
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from error
    jax.block_until_ready(matrix)
    end = time.perf_counter()
    cosine = cosines(kernel, matrix, stats)
    report = LayerReport(
        layer=name,
        shape=kernel.shape,
        method=plan.method,
        alphabet=plan.alphabet_name,
        output_error=float(relative_output_error(kernel, matrix, stats)),
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        dead=int(stats.dead.sum()),
        rows=int(stats.count),
        gram_seconds=middle - start,
        solve_seconds=end - middle,
        **{key: float(matrix.info[field].mean()) for key, field in _OPTIONAL.items() if field in matrix.info},
    )
    return report, matrix


_OPTIONAL = {"sweeps": "sweeps", "fixed_points": "fixed_point"}


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _add_batch(stage, local, stats, sources, batches):
    """Adds a batch to the layer's statistics. Only the layer's input is asked for, so XLA drops what lies behind it."""
    captured = [
        apply_with_inputs(stage.module, params, x, stage.method)[1] for params, x in zip(sources, batches, strict=True)
    ]
    return stats.update(*(inputs[local] for inputs in captured))


_run_stage = jax.jit(run_stage, static_argnums=0)


def _subtree(params: Any, name: str) -> Any:
    return functools.reduce(lambda tree, key: tree[key], filter(None, name.split("/")), params)
