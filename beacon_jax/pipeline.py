"""Quantizes a Flax model stage by stage: batches → Gram statistics → solve → quantized parameters.

The layers are done in the order in which they run, each on statistics of inputs (see calibration.py) that carry the
quantization of all layers before it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jax.sharding import Mesh

from beacon_jax.calibration import calibrate, read_batches, stream_names
from beacon_jax.devices import Placement
from beacon_jax.layers import Layer, check_rows, find_layers, subtree
from beacon_jax.models.stages import stages_of
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
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
    mesh: Mesh | None = None,
    on_layer: Callable[[LayerReport, QuantizedMatrix, int], None] | None = None,
) -> QuantizedModel:
    """Quantizes the nn.Dense kernels of a Linen model.

    Args:
      model: any Linen module that maps one array to another, without nn.scan or nn.remat. One with a `stages` method
        (see models/stages.py) is quantized stage by stage, and each stage runs once per layer in it, no deeper than to
        that layer's input (once for layers of the same input; once for all of them where calibrate_on is "float"); any
        other counts as one stage.
      params: its parameters, a nested dict or FrozenDict; not modified.
      batches: calibration inputs (B, …), read once.
      spec: what to quantize and how.
      finished: {layer name: (report, result)} of an earlier run with the same arguments that was stopped (see
        `checkpoint.save_layer`): these layers are taken as they are.
      float_stats: {layer name: statistics} of the float model, used where there and added where not, for runs that
        differ in method, alphabet, options or calibrate_on but not in model and calibration inputs.
      mesh: devices to use (see `devices.make_mesh`), None for the default one. Batches are sharded over its rows,
        channels over all of it; several processes each pass the same arguments and get the same result, up to the
        rounding of sums over devices.
      on_layer: called with each layer's report, its result, and the number of layers in all, as soon as it is done;
        not for layers finished before.

    Raises:
      ValueError: no batches, or inputs that are not finite arrays; a pattern of `spec` that matches no layer; fewer
        calibration rows than a layer has inputs (unless spec.allow_few_rows); a layer used in two stages or inside a
        lifted transformation; a finished layer that is not to be quantized; a method's error, with the layer's name.
    """
    stages, placement, finished = stages_of(model), Placement(mesh), finished or {}
    params = placement.everywhere(unfreeze(params))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(ActivationStream(spec.activations, placement)) for _ in stream_names(spec)]
        shapes = read_batches(batches, streams)
        found = find_layers(stages, params, shapes)
        plan, layers = plan_layers(found, spec, sum(shape[0] * n for (shape, _), n in shapes.items()))
        _check_finished(finished, plan, found)
        result = QuantizedModel(jax.tree.map(lambda a: a, params), {}, [])
        trees = [params if which == "float" else result.params for which in stream_names(spec)]
        shared = dict(float_stats or {})
        known = shared if spec.calibrate_on == "float" else {}
        wanted = {name: layer for name, layer in layers.items() if name not in finished and name not in known}
        for name, stats, seconds in calibrate(stages, layers, wanted, trees, streams, spec, placement, shared):
            if name in finished:
                report, matrix = finished[name][0], placement.everywhere(finished[name][1])
            else:
                stats = known.get(name, stats)
                report, matrix = _quantize_layer(name, params, plan[name], stats, seconds, placement)
                if float_stats is not None and spec.calibrate_on != "quantized":
                    float_stats.setdefault(name, stats.float_part())
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


def _check_finished(finished, plan: dict[str, LayerPlan], found: dict[str, Layer]) -> None:
    for name, (report, matrix) in finished.items():
        expected = None if name not in plan else (found[name].shape, plan[name].method, plan[name].alphabet_name)
        given = matrix.shape, report.method, report.alphabet
        if given != expected:
            raise ValueError(f"the finished layer {name} ({given}) does not fit this model and spec ({expected})")


def _quantize_layer(name: str, params: Any, plan: LayerPlan, stats: GramStats, gram_seconds: float, placement):
    kernel = subtree(params, name)["kernel"]
    start = time.perf_counter()
    try:
        matrix = METHODS[plan.method](placement.by_channels(kernel), stats, plan.alphabet, **plan.options)
        matrix = placement.everywhere(matrix).first_channels(kernel.shape[1])
        matrix = matrix.astype(jnp.promote_types(jnp.float32, kernel.dtype))
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
        rows=int(stats.rows),
        gram_seconds=gram_seconds,
        solve_seconds=end - start,
        **{key: float(matrix.info[field].mean()) for key, field in _OPTIONAL.items() if field in matrix.info},
    )
    return report, matrix


_OPTIONAL = {"sweeps": "sweeps", "fixed_points": "fixed_point"}
