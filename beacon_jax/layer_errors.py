"""The layers' errors on other data than they were calibrated on."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from beacon_jax.calibration import Calibration
from beacon_jax.execution import Execution
from beacon_jax.frameworks import as_function
from beacon_jax.graph.model import Model
from beacon_jax.leaves import as_jax_arrays
from beacon_jax.quant.metrics import relative_output_error
from beacon_jax.quantized_model import QuantizedModel

STREAMS = {"float": ("float",), "both": ("float", "quantized")}


def layer_errors(
    model: Any,
    params: Any,
    quantized: QuantizedModel,
    batches: Iterable[Any],
    *,
    streams: str = "both",
    weights: Callable[[Any], Any] | None = None,
    execution: Execution = Execution(),  # noqa: B008 (immutable)
) -> dict[str, float]:
    """{layer: ‖XW − X̃Ŵ − 1bᵀ‖² / ‖XW‖²} of a quantized model on batches, test data as a rule.

    Args:
      model, params, weights, execution: as for `quantize`; `params` are the float ones that it was given.
      quantized: its result.
      batches: pytrees as for `quantize`.
      streams: "both": X̃ are the layer's inputs in the quantized model; "float": X̃ = X.

    A layer whose float output is zero on these batches has an infinite error unless it is zero in the quantized model.

    Raises:
      ValueError: unknown streams; what is no result of `quantize`, or one of another model; what `quantize` raises for
        model, parameters, batches and weights.
    """
    if not isinstance(streams, str) or streams not in STREAMS:
        raise ValueError(f"unknown streams {streams!r}; expected one of {', '.join(STREAMS)}")
    if not isinstance(quantized, QuantizedModel) or not isinstance(execution, Execution):
        given = f"{type(quantized).__name__} and {type(execution).__name__}"
        raise ValueError(f"expected a QuantizedModel and an Execution, got {given}")
    apply, params = as_function(model, params)
    read = Model(apply, params, execution.cast)
    params = as_jax_arrays(params)
    if jax.tree.map(jnp.shape, quantized.params) != jax.tree.map(jnp.shape, params):
        raise ValueError("the quantized model's parameters are not those of this model")
    errors: dict[str, float] = {}
    with Calibration(read, jax.tree.leaves(params), STREAMS[streams], execution) as calibration:
        for i, leaf in enumerate(jax.tree.leaves(quantized.params)):
            calibration.quantized.values[i] = calibration.placement.everywhere(leaf)
        calibration.read(batches, weights)
        kernels = {layer.name: layer for layer in read.layers if layer.name in quantized.layers}
        if not kernels:
            raise ValueError("the quantized model has no layers of this model")
        last = max(s for s in range(read.stages) for g in read.groups(s) if kernels.keys() & set(g))
        for stage in range(last + 1):
            groups = [g for g, names in enumerate(read.groups(stage)) if kernels.keys() & set(names)]
            stats, _ = calibration.all_statistics(stage, groups, leave=False)
            for g, own in zip(groups, stats, strict=True):
                for name in kernels.keys() & set(read.groups(stage)[g]):
                    layer = kernels[name]
                    W = jnp.asarray(layer.place.read(jax.tree.leaves(params)[layer.leaf]))
                    errors[name] = float(relative_output_error(W, quantized.layers[name], own))
            if stage < last:
                calibration.leave(stage)
    return {layer.name: errors[layer.name] for layer in read.layers if layer.name in errors}
