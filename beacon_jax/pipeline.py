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
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import unfreeze

from beacon_jax.layers import Layer, check_rows, find_layers, lifted_layers_refused, subtree
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
    finished: Mapping[str, tuple[LayerReport, QuantizedMatrix]] | None = None,
    float_stats: MutableMapping[str, GramStats] | None = None,
    on_layer: Callable[[LayerReport, QuantizedMatrix, int], None] | None = None,
) -> QuantizedModel:
    """Quantizes the nn.Dense kernels of a Linen model.

    Args:
      model: any Linen module that maps one array to another, without nn.scan or nn.remat. One with a `stages` method
        (see models/stages.py) is quantized stage by stage, and each stage runs once per layer in it (once for all of
        them where calibrate_on is "float"); any other counts as one stage.
      params: its parameters, a nested dict or FrozenDict; not modified.
      batches: calibration inputs (B, …), read once.
      spec: what to quantize and how.
      finished: {layer name: (report, result)} of an earlier run with the same arguments that was stopped (see
        `checkpoint.save_layer`): these layers are taken as they are.
      float_stats: {layer name: statistics} of the float model, used where there and added where not, for runs that
        differ in method, alphabet or options but not in model and calibration inputs. Only for calibrate_on "float".
      on_layer: called with each layer's report, its result, and the number of layers in all, as soon as it is done;
        not for layers finished before.

    Raises:
      ValueError: no batches, or inputs that are not finite arrays; a pattern of `spec` that matches no layer; fewer
        calibration rows than a layer has inputs (unless spec.allow_few_rows); a layer used in two stages or inside a
        lifted transformation; a finished layer that is not to be quantized; a method's error, with the layer's name.
    """
    stages, params, finished = stages_of(model), unfreeze(params), finished or {}
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(ActivationStream(spec.activations)) for _ in _stream_names(spec)]
        shapes = _read_batches(batches, streams)
        found = find_layers(stages, params, shapes)
        plan, layers = plan_layers(found, spec, sum(shape[0] * n for (shape, _), n in shapes.items()))
        _check_finished(finished, plan, found)
        result = QuantizedModel(jax.tree.map(lambda a: a, params), {}, [])
        trees = [params if which == "float" else result.params for which in _stream_names(spec)]
        known = dict(float_stats or {}) if spec.calibrate_on == "float" else {}
        wanted = {name: layer for name, layer in layers.items() if name not in finished and name not in known}
        for name, stats, seconds in _calibrate(stages, layers, wanted, trees, streams, spec):
            if name in finished:
                report, matrix = finished[name]
            else:
                stats = known.get(name, stats)
                report, matrix = _quantize_layer(name, params, plan[name], stats, seconds)
                if float_stats is not None and spec.calibrate_on == "float":
                    float_stats[name] = stats
            layer = subtree(result.params, name)
            layer["kernel"] = matrix.dequantize().astype(layer["kernel"].dtype)
            result.layers[name] = matrix
            result.reports.append(report)
            if on_layer is not None and name not in finished:
                on_layer(report, matrix, len(plan))
        return result


def plan_layers(found: dict[str, Layer], spec: QuantSpec, images: int) -> tuple[dict[str, LayerPlan], dict[str, Layer]]:
    """What the spec does with the layers that `find_layers` found, and these layers; ValueError as `quantize_model`."""
    plan = spec.plan(list(found))
    layers = {name: found[name] for name in plan}
    if not spec.allow_few_rows:
        check_rows(layers, images)
    return plan, layers


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


def _check_finished(finished, plan: dict[str, LayerPlan], found: dict[str, Layer]) -> None:
    for name, (report, matrix) in finished.items():
        expected = None if name not in plan else (found[name].shape, plan[name].method, plan[name].alphabet_name)
        given = matrix.shape, report.method, report.alphabet
        if given != expected:
            raise ValueError(f"the finished layer {name} ({given}) does not fit this model and spec ({expected})")


def _calibrate(
    stages: list[Stage],
    layers: dict[str, Layer],
    wanted: dict[str, Layer],
    trees: list[Any],
    streams: list[ActivationStream],
    spec: QuantSpec,
) -> Iterator[tuple[str, GramStats | None, float]]:
    """Yields (layer name, its statistics or None where they are not wanted, seconds) in the order of the layers.

    A layer's statistics are collected when it is asked for, on the parameters that `trees` hold by then: those of the
    quantized model carry the quantization of all layers before it.
    """
    last = max((layer.stage for layer in wanted.values()), default=-1)
    for i, stage in enumerate(stages):
        names = [name for name, layer in layers.items() if layer.stage == i]
        # Float inputs do not change as layers are quantized, so one pass serves all layers of the stage.
        for group in [names] if spec.calibrate_on == "float" else [[name] for name in names]:
            locals_ = {wanted[name].local: wanted[name].shape[0] for name in group if name in wanted}
            start = time.perf_counter()
            collected = _collect(stage, locals_, [stage.select(tree) for tree in trees], streams)
            seconds = (time.perf_counter() - start) / max(len(locals_), 1)
            for name in group:
                yield name, collected.pop(layers[name].local, None), seconds if name in wanted else 0.0
        if i < last:
            for tree, stream in zip(trees, streams, strict=True):
                stream.advance(functools.partial(_run_stage, stage, stage.select(tree)))


def _collect(stage: Stage, widths: dict[str, int], sources: list[Any], streams: list[ActivationStream]):
    """Runs the streams through the stage, each on its source of parameters: the statistics of some of its layers."""
    stats = {local: GramStats.zeros(width) for local, width in widths.items()}
    if stats:
        with lifted_layers_refused():
            for batches in zip(*streams, strict=True):
                stats = _add_batch(stage, stats, sources, batches)
    return jax.block_until_ready(stats)


def _quantize_layer(name: str, params: Any, plan: LayerPlan, stats: GramStats, gram_seconds: float):
    kernel = subtree(params, name)["kernel"]
    start = time.perf_counter()
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
        gram_seconds=gram_seconds,
        solve_seconds=end - start,
        **{key: float(matrix.info[field].mean()) for key, field in _OPTIONAL.items() if field in matrix.info},
    )
    return report, matrix


_OPTIONAL = {"sweeps": "sweeps", "fixed_points": "fixed_point"}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_batch(stage, stats, sources, batches):
    """Adds a batch to the layers' statistics. Only their inputs are asked for, so XLA drops what lies behind them."""
    captured = [
        apply_with_inputs(stage.module, params, x, stage.method)[1] for params, x in zip(sources, batches, strict=True)
    ]
    return {local: own.update(*(inputs[local] for inputs in captured)) for local, own in stats.items()}


_run_stage = jax.jit(run_stage, static_argnums=0)
