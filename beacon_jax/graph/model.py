"""A model's programs, one for each shape of batch, with the same layers and the same stages."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.bias import Bias, find_biases
from beacon_jax.graph.layers import Found, Layer, find_layers
from beacon_jax.graph.program import Program, Unsupported, leaf_names
from beacon_jax.graph.residual import find_residuals
from beacon_jax.graph.row_weights import RowWeights, follow
from beacon_jax.graph.stages import Stage, find_stages, one_stage
from beacon_jax.graph.trace import trace

Signature = tuple  # (tree structure, ((shape, dtype) of every leaf))


@dataclasses.dataclass(frozen=True)
class Traced:
    """The model for batches of one signature."""

    program: Program
    found: Found
    stages: tuple[Stage, ...]

    @functools.cached_property
    def residuals(self) -> dict[str, int]:
        """{layer name: the variable of the residual stream that its output is added to}, of the layers with one."""
        return find_residuals(self.program, self.found.layers)

    def row_weights(self, shape: tuple[int, ...]) -> dict[tuple, RowWeights | Unsupported]:
        """{(operand, form of its rows): how its rows' weights come from weights of that shape, or why they do not}."""
        axes = follow(self.program, shape)
        result: dict[tuple, RowWeights | Unsupported] = {}
        for layer in self.found.layers:
            for use in layer.uses:
                made = self.program.equations[use.position].outputs[0]
                out = self.program.avals[made].shape
                key = use.operand, use.view.rows_form
                try:
                    result[key] = RowWeights.of(axes[use.operand], use.view, out, len(shape), layer.name)
                except Unsupported as why:  # of concern only where the layer is quantized
                    result[key] = why
        return result


class Model:
    """A function (params, batch) → outputs, read as layers and stages; nothing is computed.

    Args:
      apply: the function.
      params: its parameters, a pytree of arrays or of jax.ShapeDtypeStruct.
      dtype: None, or the floating-point type in which it is to run.

    Raises:
      Unsupported (a ValueError): a leaf of `params` that is no array, or an `apply` that cannot be read.
    """

    def __init__(self, apply: Callable[[Any, Any], Any], params: Any, dtype: str | None = None):
        self.apply, self.dtype = apply, dtype
        self.leaves = leaf_names(params)
        twice = sorted(name for name, count in Counter(self.leaves).items() if count > 1)
        if twice:
            raise Unsupported(f"parameters need a path each, but {', '.join(twice)} is that of several")
        for name, leaf in zip(self.leaves, jax.tree.leaves(params), strict=True):
            if not _is_array(leaf):
                raise Unsupported(
                    f"parameters are a pytree of arrays, but {name} is a {type(leaf).__name__}; "
                    "keep what is no array out of it, as with equinox.partition(model, equinox.is_array)"
                )
        self._shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
        self._traced: dict[Signature, Traced] = {}
        self._whole = False

    @property
    def first(self) -> Traced:
        """The model for the first batch that it was traced with."""
        return next(iter(self._traced.values()))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In the order in which they first run."""
        return self.first.found.layers

    def text(self) -> str:
        """What the model computes, and of which batches, as text; the contents of closed-over arrays as numbers."""
        parts = []
        for signature, traced in self._traced.items():
            values = [_digest(a) for a in traced.program.constants.values()]
            parts += [str(signature), traced.program.text(), *values]
        return "\n".join(parts)

    @functools.cached_property
    def biases(self) -> dict[str, Bias]:
        """{layer name: its bias}, of the layers that have one."""
        return find_biases(self.first.program, self.layers)

    @property
    def stages(self) -> int:
        """Their number."""
        return len(self.first.stages)

    def groups(self, stage: int) -> list[list[str]]:
        """Names of the layers of a stage; those of one group share their inputs."""
        return [[layer.name for layer in group] for group in self.first.stages[stage].groups]

    def __getitem__(self, signature: Signature) -> Traced:
        return self._traced[signature]

    def add(self, batch: Any) -> Signature:
        """Traces the model with such a batch, unless that is done; returns the batch's signature.

        Raises:
          Unsupported: a batch of another structure than the first, or one for which the model has other layers.
        """
        signature = self.signature(batch)
        if signature in self._traced:
            return signature
        if self._traced and signature[0] != self.first.program.structure:
            raise Unsupported(
                f"batches must have one structure: the first is {self.first.program.structure}, "
                f"a later one is {signature[0]}"
            )
        program = trace(self.apply, self._shapes, batch, self.dtype)
        traced = self._read(program, find_layers(program))
        if self._traced:
            self._check_same(traced)
        self._traced[signature] = traced
        if not self._whole and not self._alike():
            # Other equations for other shapes, as with a recurrence of another length: no cuts that fit all.
            self._whole = True
            self._traced = {key: self._read(t.program, t.found) for key, t in self._traced.items()}
        return signature

    @staticmethod
    def signature(batch: Any) -> Signature:
        """A batch's tree structure, and shape and dtype of its leaves."""
        leaves, structure = jax.tree.flatten(batch)
        return structure, tuple((np.shape(a), str(a.dtype)) for a in leaves)

    def _read(self, program: Program, found: Found) -> Traced:
        if not self._whole:
            return Traced(program, found, find_stages(program, found.layers))
        own = {layer.name: layer for layer in found.layers}
        order = [own[layer.name] for layer in (self.layers if self._traced else found.layers)]
        return Traced(program, found, (one_stage(program, order),))

    def _check_same(self, traced: Traced) -> None:
        known, other = ({(layer.name, layer.place) for layer in t.found.layers} for t in (self.first, traced))
        if known != other:
            names = sorted(name for name, _ in known ^ other)
            raise Unsupported(f"batches of different shapes use different layers: {', '.join(names[:4])}")

    def _alike(self) -> bool:
        forms = {
            (
                tuple(e.name for e in t.program.equations),
                tuple(tuple(layer.name for layer in group) for stage in t.stages for group in stage.groups),
                tuple(len(stage.groups) for stage in t.stages),
            )
            for t in self._traced.values()
        }
        return len(forms) == 1


def _digest(constant: Any) -> str:
    if jnp.issubdtype(constant.dtype, jax.dtypes.extended):
        constant = jax.random.key_data(constant)
    return hashlib.sha256(np.ascontiguousarray(constant).tobytes()).hexdigest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))
