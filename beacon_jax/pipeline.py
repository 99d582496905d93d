"""Quantizes a model stage by stage: batches → Gram statistics → solve → quantized parameters.

The layers are done in the order in which they run, each on statistics of inputs (see calibration.py) that carry the
quantization of all layers before it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from absl import logging

from beacon_jax.calibration import Calibration
from beacon_jax.devices import Placement
from beacon_jax.execution import Execution
from beacon_jax.finished import Finished, check_fit, check_pairs
from beacon_jax.float_stats import Fingerprint, FloatStats
from beacon_jax.frameworks import as_function
from beacon_jax.graph.layers import Layer
from beacon_jax.graph.model import Model
from beacon_jax.leaves import as_jax_arrays
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quantized_model import QuantizedModel
from beacon_jax.report import LayerReport, coverage
from beacon_jax.run import STREAMS, Run
from beacon_jax.spec import LayerPlan, QuantSpec

MANY_EQUATIONS = 20_000  # a transformer of 80 blocks has 7,000


def quantize(
    model: Any,
    params: Any,
    batches: Iterable[Any],
    spec: QuantSpec,
    *,
    execution: Execution = Execution(),  # noqa: B008 (immutable)
    weights: Callable[[Any], Any] | None = None,
    finished: Finished | None = None,
    float_stats: FloatStats | None = None,
    on_layer: Callable[[LayerReport, QuantizedMatrix, int], None] | None = None,
) -> QuantizedModel:
    """Quantizes the kernels of any JAX model.

    Layers are found in the traced computation: every matrix product or convolution of data with what comes from one
    parameter leaf by reshaping, transposing, slicing or casting alone.

    Args:
      model: a function apply(params, batch); or a Linen module that maps one array to another; or an NNX module.
      params: its parameters, a pytree of arrays, keys of random numbers among them, not modified; None for an NNX
        module. Where double precision is off, a warning names those that lose some.
      batches: calibration batches, pytrees of arrays of one structure, read once. Other shapes (a shorter last batch)
        are traced and compiled again.
      spec: what to quantize, and by which method.
      execution: storage, dtype and devices. Batches are sharded over a mesh's rows, channels over all of it; several
        processes each pass the same arguments and get the same result, up to the rounding of sums over devices.
      weights: batch → (B,) or (B, T, …), the weight of each example, or of each position; rows of weight 0 (padding)
        do not count anywhere. Positions are those of every array of the batch whose first axes have the shape of the
        weights; a row that is made of many positions (pooled) has the largest of their weights.
      finished: {layer name: (report, result)} of an earlier run with the same arguments that was stopped (see
        `checkpoint.save_layer`): these layers are taken as they are.
      float_stats: statistics of the float model, used where they are there and added where not, for runs that differ in
        method, alphabet, options or calibrate_on but not in model and calibration data.
      on_layer: called with each layer's report, its result, and the number of layers in all, as soon as it is done;
        not for layers finished before.

    Raises:
      ValueError: a model that cannot be read as equations, or has no layers; parameters or batches that are no pytrees
        of finite arrays; weights that do not fit; a pattern of `spec` that matches no layer; fewer calibration rows
        than a layer has inputs (unless spec.allow_few_rows); a parameter left in float that no rule names
        (spec.strict); a finished layer that does not fit model and spec; statistics of another model or data; a
        method's error, with the layer's name.
    """
    finished = {} if finished is None else finished
    _check_kinds(spec, execution, weights, finished, float_stats, on_layer)
    apply, params = as_function(model, params)
    read = Model(apply, params, execution.cast)
    placement = Placement(execution.mesh)
    leaves, structure = jax.tree.flatten(placement.everywhere(as_jax_arrays(params)))
    fingerprint = Fingerprint() if float_stats is not None else None
    streams = STREAMS[spec.calibrate_on]
    with Calibration(read, leaves, streams, execution, spec.row_weights, spec.sample) as calibration:
        calibration.read(batches, weights, fingerprint)
        plan = plan_layers(read, spec, calibration.rows, calibration.examples)
        if (count := len(read.first.program.equations)) > MANY_EQUATIONS:
            logging.warning("the model has %d equations with its loops unrolled; compilation will take long", count)
        check_fit(finished, plan, read)
        _check_block(plan, execution)
        if float_stats is not None and fingerprint is not None:
            rows = f"{spec.row_weights} {spec.sample}"
            fingerprint.add([*leaves, execution.forward_dtype, rows, read.text()])
            float_stats.belong_to(fingerprint.digest())
        run = Run(read, spec, plan, calibration, finished, float_stats, on_layer, leaves)
        if not run.can_aim_at_residual():
            logging.warning("no layer to be quantized is added to a residual stream, which the options ask to aim at")
        run.all_stages()
        covered = coverage(read, leaves, spec, run.reports, run.layers, run.kept)
        logging.info("%s", covered)
        places = {
            layer.name: (read.leaves[layer.leaf], layer.place) for layer in read.layers if layer.name in run.layers
        }
        return QuantizedModel(
            jax.tree.unflatten(structure, calibration.quantized.values),
            run.layers,
            places,
            run.reports,
            covered,
            spec,
            plan,
        )


def plan_layers(
    model: Model, spec: QuantSpec, rows: Callable[[str], int] | None = None, examples: int = 0
) -> dict[str, LayerPlan]:
    """What the spec does with the layers of a model.

    Args:
      model: the model, traced.
      spec: the spec.
      rows: layer name → its calibration rows; None not to check them.
      examples: the number of calibration examples that these are from.

    Raises:
      ValueError: as `quantize`, for what concerns the spec.
    """
    found = model.first.found
    others = [model.leaves[i] for i in found.reasons]
    plan = spec.plan(found.layers, others)
    if spec.strict:
        left = [(model.leaves[i], why) for i, why in found.reasons.items() if not spec.names(model.leaves[i])]
        left += [(model.leaves[i], "parts of it are no layer") for i in found.partly if not spec.names(model.leaves[i])]
        left += [
            (layer.name, spec.why_left(layer))
            for layer in found.layers
            if layer.name not in plan and not spec.skips(layer)
        ]
        if left:
            said = "; ".join(f"{name}: {why}" for name, why in left[:6]) + ("; …" if len(left) > 6 else "")
            raise ValueError(f"strict: left in float, and no rule names them: {len(left)} of the parameters ({said})")
    for layer in found.layers:
        if rows is not None and layer.name in plan:
            _check_rows(layer, rows(layer.name), examples, spec.allow_few_rows)
    return plan


def _check_rows(layer: Layer, rows: int, examples: int, few_allowed: bool) -> None:
    inputs = layer.shape[-2]
    if rows < inputs and not few_allowed:
        if not rows:
            raise ValueError(
                f"none of the {examples} calibration examples gives layer {layer.name} a row of positive weight"
            )
        raise ValueError(
            f"too few calibration examples: {examples} give {rows} rows for the {inputs} inputs of {layer.name}; "
            f"use at least {-(-inputs * examples // rows)}, or allow_few_rows=True"
        )


def _check_block(plan: dict[str, LayerPlan], execution: Execution) -> None:
    kernels = [name for name, own in plan.items() if own.options.get("block") == "pallas"]
    if kernels and execution.mesh is not None:
        raise ValueError(f"block='pallas' is for one device, and a mesh is given (layer {kernels[0]}); use block='xla'")


def _check_kinds(spec, execution, weights, finished, float_stats, on_layer) -> None:
    """Raises ValueError on arguments of other types."""
    if not isinstance(spec, QuantSpec) or not isinstance(execution, Execution):
        raise ValueError(
            f"expected a QuantSpec and an Execution, got {type(spec).__name__} and {type(execution).__name__}"
        )
    if weights is not None and not callable(weights):
        raise ValueError(f"weights is a function of a batch, got {type(weights).__name__}")
    if on_layer is not None and not callable(on_layer):
        raise ValueError(f"on_layer is a function of report, result and number, got {type(on_layer).__name__}")
    if float_stats is not None and not isinstance(float_stats, FloatStats):
        raise ValueError(f"float_stats is a FloatStats, got {type(float_stats).__name__}")
    check_pairs(finished)
