"""A model's parameter leaves, into which quantized kernels and changed biases are put one after another."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from beacon_jax.devices import Placement
from beacon_jax.graph.bias import Factor
from beacon_jax.graph.layers import Layer
from beacon_jax.graph.model import Model
from beacon_jax.graph.stages import piece
from beacon_jax.quant.quantized import QuantizedMatrix


class QuantizedLeaves:
    """The leaves of a model's parameters as they are by now, in `values`; those given are not modified."""

    def __init__(self, model: Model, leaves: Sequence[Any], placement: Placement):
        self.model, self.placement, self.values = model, placement, list(leaves)

    def put(self, layer: Layer, matrix: QuantizedMatrix) -> None:
        """Puts a quantized kernel, and its change of the bias, in place of the layer's own.

        ValueError where the bias changes and the layer has none.
        """
        kernel = layer.place.write(self.values[layer.leaf], np.asarray(matrix.dequantize()))
        self._replace(layer.leaf, kernel)
        if matrix.bias_change is not None:
            self.add_to_bias(layer, np.asarray(matrix.bias_change))

    def add_to_bias(self, layer: Layer, change: np.ndarray) -> None:
        """Adds (C,), or (E, C), to a layer's bias. ValueError where it has none."""
        if layer.name not in self.model.biases:
            raise ValueError(f"layer {layer.name}: the method changes its bias, but it has none of its own")
        own = self.model.biases[layer.name]
        bias, change = np.asarray(self.values[own.leaf]), np.asarray(change, np.float64)
        for factor in own.factors:
            change = change * self._value(factor).reshape(change.shape) ** factor.power
        changed = bias.astype(np.float64) + change.reshape(bias.shape)
        self._replace(own.leaf, changed.astype(bias.dtype))

    def _value(self, factor: Factor) -> np.ndarray:
        """A factor of a layer's outputs, one for each, as the parameters are by now."""
        program = self.model.first.program
        made = piece(program, (), (factor.variable,))
        leaves = [self.values[v] for v in made.leaves]
        (value,) = jax.jit(made)(leaves, [], [program.constants[v] for v in made.constants])
        index = tuple(slice(None) if a in factor.axes else 0 for a in range(value.ndim))
        return np.asarray(value[index], np.float64)

    def _replace(self, leaf: int, value: np.ndarray) -> None:
        on_mesh = self.placement.mesh is not None
        self.values[leaf] = self.placement.everywhere(value) if on_mesh else jax.device_put(value)
