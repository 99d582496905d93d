"""Mixed bit widths: an alphabet for each layer, under a budget for all, with the least predicted harm to the output.

The prediction is a sum over the layers, sensitivity · error. The error is the layer's own, relative and squared, of
its output on the float model's inputs, measured by quantizing it with each alphabet. The sensitivity is what a unit of
that error does to the model's output: with this layer alone quantized, at a middle alphabet, the relative squared
change of the outputs (see output_change.py) divided by the error there. No gradients: one forward pass for each layer.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from beacon_jax.batches import is_read_once
from beacon_jax.bit_budget import Alphabet, BitBudget, with_alphabet
from beacon_jax.calibration import Calibration
from beacon_jax.devices import Placement
from beacon_jax.execution import Execution
from beacon_jax.float_stats import FloatStats
from beacon_jax.frameworks import as_function
from beacon_jax.graph.model import Model
from beacon_jax.knapsack import choose
from beacon_jax.leaves import as_jax_arrays
from beacon_jax.output_change import output_changes
from beacon_jax.pipeline import quantize
from beacon_jax.quantized_leaves import QuantizedLeaves
from beacon_jax.quantized_model import QuantizedModel
from beacon_jax.report import LayerReport, aligned
from beacon_jax.spec import LayerRule, QuantSpec


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """The alphabet chosen for a layer.

    Fields:
      layer, shape: its name, and (N, C) or (E, N, C).
      alphabet: the chosen one's name.
      fixed: whether a rule of the spec gave it.
      bits: of codes, scales and offsets.
      errors: {alphabet: relative squared error of the layer's output on the float model's inputs}.
      sensitivity: of the model's output, per unit of that error.
    """

    layer: str
    shape: tuple[int, ...]
    alphabet: str
    fixed: bool
    bits: int
    errors: Mapping[str, float]
    sensitivity: float

    @property
    def weights(self) -> int:
        """Their number."""
        return math.prod(self.shape)

    @property
    def error(self) -> float:
        """At the chosen alphabet."""
        return self.errors[self.alphabet]

    @property
    def predicted(self) -> float:
        """Its part in the predicted change of the outputs."""
        return self.sensitivity * self.error


@dataclasses.dataclass(frozen=True)
class BitPlan:
    """What `choose_alphabets` chose; str() of it is a table.

    Fields:
      spec: the QuantSpec to quantize with: the one given, and after its rules one more for each layer that was free.
      table: of every layer to quantize, in the order in which they run.
      budget: the bits per parameter that were allowed.
      bound: no choice within the budget has a smaller predicted change.
    """

    spec: QuantSpec
    table: tuple[LayerBits, ...]
    budget: float
    bound: float

    @property
    def alphabets(self) -> dict[str, str]:
        """{layer: the name of its alphabet}."""
        return {row.layer: row.alphabet for row in self.table}

    @property
    def bits_per_parameter(self) -> float:
        """Over the weights that are quantized, as `BitBudget` counts them."""
        return sum(row.bits for row in self.table) / sum(row.weights for row in self.table)

    @property
    def predicted(self) -> float:
        """The predicted relative squared change of the outputs."""
        return sum(row.predicted for row in self.table)

    def __str__(self) -> str:
        head = ("layer", "shape", "alphabet", "bits per weight", "error", "sensitivity", "predicted")
        lines = aligned([head, *(_shown(row) for row in self.table)])
        return "\n".join(
            [
                *lines,
                f"{self.bits_per_parameter:.4f} of {self.budget:g} bits per parameter over the "
                f"{sum(row.weights for row in self.table):,} quantized weights; predicted relative change of the "
                f"outputs {self.predicted:.3g}, within the budget at least {self.bound:.3g}",
            ]
        )


def _shown(row: LayerBits) -> tuple[str, ...]:
    alphabet = row.alphabet + (" (by rule)" if row.fixed else "")
    numbers = (f"{row.bits / row.weights:.3f}", *(f"{x:.3g}" for x in (row.error, row.sensitivity, row.predicted)))
    return row.layer, "×".join(map(str, row.shape)), alphabet, *numbers


def choose_alphabets(
    model: Any,
    params: Any,
    batches: Iterable[Any],
    spec: QuantSpec,
    alphabets: Sequence[Alphabet],
    bits_per_parameter: float,
    *,
    execution: Execution = Execution(),  # noqa: B008 (immutable)
    weights: Callable[[Any], Any] | None = None,
    float_stats: FloatStats | None = None,
) -> BitPlan:
    """Chooses an alphabet for each layer of a model, for `quantize` with the spec of the result.

    Every layer is quantized with every alphabet, on statistics of the float model, and the model runs once for each
    layer on the calibration batches. Among all choices within the budget the one of least predicted change is taken
    (exactly up to 50,000 states; see knapsack.py). Layers whose alphabet a rule of the spec gives keep it, and count in
    the budget; the methods and options of rules stay as well.

    Args:
      model, params, execution, weights: as in `quantize`.
      batches: as in `quantize`, but to be iterated several times.
      spec: what to quantize and how; its own alphabet is not looked at.
      alphabets: at least two to choose from.
      bits_per_parameter: the most that codes, scales and offsets may take, as a mean over the weights that are
        quantized (see `BitBudget`). Above what the largest alphabets take it allows everything.
      float_stats: as in `quantize`; the statistics found here serve the quantization that follows.

    Raises:
      ValueError: as `quantize`; batches that can be read only once; fewer than two alphabets, unknown ones, the same
        twice; a budget below what the smallest alphabets take; outputs that `output_changes` cannot measure.
    """
    if not isinstance(spec, QuantSpec) or not isinstance(execution, Execution):
        raise ValueError(
            f"expected a QuantSpec and an Execution, got {type(spec).__name__} and {type(execution).__name__}"
        )
    if isinstance(batches, Iterable) and is_read_once(batches):
        raise ValueError(f"batches are read several times: give a list, not a {type(batches).__name__}")
    apply, params = as_function(model, params)
    read = Model(apply, params, execution.cast)
    params = as_jax_arrays(params)
    with Calibration(read, jax.tree.leaves(params), (), execution, sample=spec.sample) as calibration:
        calibration.read(batches, weights)
        rows, examples = calibration.rows, calibration.examples
        budget = BitBudget.of(read, params, spec, alphabets, bits_per_parameter, rows=rows, examples=examples)
    float_stats = FloatStats() if float_stats is None else float_stats
    given: dict[str, Any] = dict(execution=execution, weights=weights)
    errors, middle = _layer_errors(apply, params, batches, spec, budget, dict(given, float_stats=float_stats))
    variants = {name: _Alone(read, params, execution, middle, name) for name in budget.layers}
    changes = output_changes(apply, params, batches, variants, **given)
    return _plan(spec, budget, bits_per_parameter, errors, changes, middle)


def _layer_errors(apply, params, batches, spec, budget, given) -> tuple[dict[str, list[float]], QuantizedModel]:
    """{layer: its error with each of its alphabets}, and the model quantized with the middle one."""
    errors: dict[str, list[float]] = {name: [] for name in budget.layers}
    fixed: dict[str, tuple[LayerReport, Any]] = {}
    middle: QuantizedModel | None = None
    for i, alphabet in enumerate(budget.alphabets):
        own = _on_float(with_alphabet(spec, alphabet))
        done = quantize(apply, params, batches, own, finished=fixed, **given)
        left = [name for name in budget.layers if name not in done.layers]
        if left:
            raise ValueError(
                f"the inputs of {', '.join(left)} are zero in all calibration rows; leave these layers out by a rule "
                "with skip=True"
            )
        for report in done.reports:
            if len(errors[report.layer]) < len(budget.plans[report.layer]):
                errors[report.layer].append(report.output_error)
            if len(budget.plans[report.layer]) == 1:
                fixed[report.layer] = report, done.layers[report.layer]
        if i == _middle(budget):
            middle = done
    assert middle is not None, "the middle alphabet is one of them"
    return errors, middle


def _on_float(spec: QuantSpec) -> QuantSpec:
    """The spec calibrated on the float model, whose residual stream has not changed: there is none to aim at."""

    def without(options):
        return None if options is None else {key: value for key, value in options.items() if key != "residual"}

    rules = tuple(dataclasses.replace(rule, options=without(rule.options)) for rule in spec.layer_rules)
    return dataclasses.replace(spec, calibrate_on="float", options=without(spec.options), rules=rules)


def _middle(budget: BitBudget) -> int:
    return (len(budget.alphabets) - 1) // 2


class _Alone:
    """The parameters with one layer quantized, made when they are asked for."""

    def __init__(self, read, params, execution, done: QuantizedModel, name: str):
        self._read, self._params, self._placement = read, params, Placement(execution.mesh)
        self._layer = next(layer for layer in read.layers if layer.name == name)
        self._matrix = done.layers[name]

    def __call__(self) -> Any:
        leaves, structure = jax.tree.flatten(self._params)
        quantized = QuantizedLeaves(self._read, leaves, self._placement)
        quantized.put(self._layer, self._matrix)
        return jax.tree.unflatten(structure, quantized.values)


def _plan(spec, budget, bits_per_parameter, errors, changes, middle) -> BitPlan:
    at_middle = {report.layer: report.output_error for report in middle.reports}
    # A layer that is quantized without error says nothing of its sensitivity, and needs none.
    sensitivity = {name: changes[name] / error if error > 0 else 0.0 for name, error in at_middle.items()}
    names = list(budget.layers)
    costs = [np.asarray(errors[name]) * sensitivity[name] for name in names]
    chosen, bound = choose(costs, [budget.bits[name] for name in names], budget.limit)
    rules, table = [], []
    for name, i in zip(names, chosen, strict=True):
        plans = budget.plans[name]
        if len(plans) > 1:
            chosen_plan = dict(method=plans[i].method, alphabet=budget.alphabets[i], options=plans[i].options)
            rules.append(LayerRule(re.escape(name), **chosen_plan))
        table.append(
            LayerBits(
                name,
                budget.layers[name].shape,
                plans[i].alphabet_name,
                len(plans) == 1,
                budget.bits[name][i],
                {plan.alphabet_name: error for plan, error in zip(plans, errors[name], strict=True)},
                sensitivity[name],
            )
        )
    own = dataclasses.replace(spec, rules=(*spec.rules, *rules))
    return BitPlan(own, tuple(table), float(bits_per_parameter), bound)
