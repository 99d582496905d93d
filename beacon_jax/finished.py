"""Layers that an earlier run has finished, checked before they are taken as they are."""

from collections.abc import Mapping
from typing import Any

from beacon_jax.graph.model import Model
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.report import LayerReport
from beacon_jax.spec import LayerPlan

Finished = Mapping[str, tuple[LayerReport, QuantizedMatrix]]


def check_pairs(finished: Any) -> None:
    """Raises ValueError on what is not {layer name: (LayerReport, QuantizedMatrix)}."""
    expected = "finished is {layer name: (LayerReport, QuantizedMatrix)}"
    if not isinstance(finished, Mapping):
        raise ValueError(f"{expected}, got {type(finished).__name__}")
    for name, pair in finished.items():
        kinds = [type(part) for part in pair] if isinstance(pair, (tuple, list)) else type(pair).__name__
        if kinds != [LayerReport, QuantizedMatrix]:
            given = kinds if isinstance(kinds, str) else f"({', '.join(kind.__name__ for kind in kinds)})"
            raise ValueError(f"{expected}, got {given} for {name!r}")


def check_fit(finished: Finished, plan: Mapping[str, LayerPlan], model: Model) -> None:
    """Raises ValueError on a layer of another shape, method, alphabet or options than the plan's for this model.

    Options that decide nothing but rounding may differ, and those of a report that does not know them.
    """
    shapes = {layer.name: layer.shape for layer in model.layers}
    for name, (report, matrix) in finished.items():
        expected = None if name not in plan else (shapes[name], plan[name].method, plan[name].alphabet_name)
        given = matrix.shape, report.method, report.alphabet
        if given != expected:
            raise ValueError(f"the finished layer {name} ({given}) does not fit this model and spec ({expected})")
        own = deciding_options(plan[name])
        if report.options is not None and (other := _differing(report.options, own)):
            raise ValueError(f"the finished layer {name} was made with {other}")


def deciding_options(plan: LayerPlan) -> dict[str, Any]:
    """The options of a layer's method that decide its codes, defaults included, in Python's own types."""
    options = METHODS[plan.method].check(**plan.options).deciding()
    return {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name}={theirs.get(name)!r} instead of {ours.get(name)!r}" for name in names)
