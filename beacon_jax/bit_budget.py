"""What the layers of a model take at several alphabets, and a budget for all of them together."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.layers import Layer
from beacon_jax.graph.model import Model
from beacon_jax.pipeline import plan_layers
from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.packing import packed_bytes
from beacon_jax.spec import LayerPlan, QuantSpec

Alphabet = str | float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class BitBudget:
    """The alphabets that each layer may have, and how many bits all layers may take.

    What is counted is what a file of the quantized model holds for the weights that are quantized: the bytes of the
    packed codes (log₂ K bits for each of K levels and up to 2 % more, see quant/packing.py; "1.58" takes 1.6), and the
    bits of every channel's scale, and offset where the method has one (32 each, 64 for a kernel in double precision).
    Parameters that are not quantized do not count, nor do their bits.

    Attributes:
      alphabets: those to choose from, by ascending number of levels.
      layers: {name: layer} of those to quantize, in order.
      plans: {layer name: its plan with each alphabet}; a single one where a rule of the spec fixes it.
      bits: {layer name: what it takes with each}.
      limit: of all together.
    """

    alphabets: tuple[Alphabet, ...]
    layers: dict[str, Layer]
    plans: dict[str, list[LayerPlan]]
    bits: dict[str, list[int]]
    limit: int

    @classmethod
    def of(
        cls,
        model: Model,
        params: Any,
        spec: QuantSpec,
        alphabets: Sequence[Alphabet],
        bits_per_parameter: float,
        *,
        rows: Callable[[str], int] | None = None,
        examples: int = 0,
    ) -> "BitBudget":
        """The budget of a traced model for a mean over the weights that are quantized.

        A budget above what the largest alphabets take changes nothing.

        Args:
          model: the model.
          params: its parameters.
          spec: what to quantize; its own alphabet is that of no layer, but those that its rules give stay.
          alphabets: to choose from.
          bits_per_parameter: the budget.
          rows, examples: as in `plan_layers`.

        Raises:
          ValueError: fewer than two alphabets, unknown ones, two that are the same; a budget that is no positive
            number, or below what the smallest alphabets take; as `plan_layers`.
        """
        alphabets = _checked_alphabets(alphabets)
        if isinstance(bits_per_parameter, bool) or not isinstance(bits_per_parameter, (int, float, np.number)):
            raise ValueError(f"bits_per_parameter is a number, got {bits_per_parameter!r}")
        if not 0 < bits_per_parameter < math.inf:
            raise ValueError(f"bits_per_parameter must be positive and finite, got {bits_per_parameter!r}")
        by_alphabet = [plan_layers(model, with_alphabet(spec, a), rows, examples) for a in alphabets]
        leaves = jax.tree.leaves(params)
        layers = {layer.name: layer for layer in model.layers if layer.name in by_alphabet[0]}
        plans, bits = {}, {}
        for name, layer in layers.items():
            own = [plan[name] for plan in by_alphabet]
            plans[name] = own[:1] if np.array_equal(own[0].alphabet, own[1].alphabet) else own
            bits[name] = [stored_bits(layer, leaves[layer.leaf].dtype, plan) for plan in plans[name]]
        weights = sum(math.prod(layer.shape) for layer in layers.values())
        # A mean that was itself divided out is not to miss its own sum by rounding.
        limit = math.floor(float(bits_per_parameter) * weights * (1 + 1e-12))
        if (least := sum(map(min, bits.values()))) > limit:
            raise ValueError(
                f"bits_per_parameter={bits_per_parameter:g} is below {math.ceil(least / weights * 1e4) / 1e4:g}, the "
                f"least that codes, scales and offsets of the {len(layers)} layers take with the alphabets "
                f"{', '.join(map(str, alphabets))}"
            )
        return cls(alphabets, layers, plans, bits, limit)

    @property
    def weights(self) -> int:
        """The number of weights that are quantized."""
        return sum(math.prod(layer.shape) for layer in self.layers.values())


def with_alphabet(spec: QuantSpec, alphabet: Alphabet) -> QuantSpec:
    """The spec with another alphabet for the layers whose alphabet no rule gives."""
    return dataclasses.replace(spec, alphabet=alphabet)


def stored_bits(layer: Layer, dtype: Any, plan: LayerPlan) -> int:
    """What codes, scales and offsets of a layer take, the kernel being of that dtype."""
    *groups, inputs, outputs = layer.shape
    channels = math.prod(groups) * outputs
    has_offset = _has_offset(plan.method, tuple(plan.alphabet), tuple(sorted(plan.options.items())))
    width = 64 if jax.dtypes.canonicalize_dtype(dtype) == jnp.float64 else 32
    return 8 * packed_bytes(len(plan.alphabet), channels * inputs) + channels * width * (1 + has_offset)


@functools.lru_cache(maxsize=256)
def _has_offset(method: str, alphabet: tuple[float, ...], options: tuple[tuple[str, Any], ...]) -> bool:
    """Whether a method's results have offsets, found by shapes alone."""

    def solve(kernel, stats):
        return METHODS[method](kernel, stats, np.array(alphabet), **dict(options))

    shapes = jax.ShapeDtypeStruct((2, 1), jnp.float32), jax.eval_shape(lambda: GramStats.zeros(2))
    return jax.eval_shape(solve, *shapes).offset is not None


def _checked_alphabets(alphabets: Any) -> tuple[Alphabet, ...]:
    if isinstance(alphabets, str) or not isinstance(alphabets, (Sequence, np.ndarray)) or len(alphabets) < 2:
        raise ValueError(f"alphabets are at least two to choose from, such as ('2', '3', '4'), got {alphabets!r}")
    levels = [make_alphabet(alphabet) for alphabet in alphabets]
    for i, own in enumerate(levels):
        for j in range(i):
            if np.array_equal(own, levels[j]):
                raise ValueError(f"the alphabets {alphabets[j]!r} and {alphabets[i]!r} are the same")
    order = sorted(range(len(levels)), key=lambda i: len(levels[i]))
    return tuple(alphabets[i] for i in order)
