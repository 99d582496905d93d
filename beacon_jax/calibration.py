"""Calibration data on its way through a model, and the Gram statistics of every layer's inputs.

Streams of data wait at the border between two stages: those of the float model (X), those of the model whose earlier
layers are already quantized (X̃), or both. The float stream's statistics are collected in one pass where they are all
wanted at that time; the quantized one runs once per group of layers with the same inputs, no deeper than to there,
because what lies behind an input changes when its layers are quantized.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.calibration_data import checked_batch, checked_weights, shapes_told
from beacon_jax.calibration_step import Step, add_batch
from beacon_jax.devices import Placement
from beacon_jax.execution import Execution
from beacon_jax.float_stats import Fingerprint
from beacon_jax.graph.layers import Use
from beacon_jax.graph.model import Model, Signature
from beacon_jax.graph.program import Unsupported
from beacon_jax.graph.row_weights import RowWeights
from beacon_jax.graph.stages import Piece, piece
from beacon_jax.influence import Influence
from beacon_jax.quant.gram import GramStats
from beacon_jax.quantized_leaves import QuantizedLeaves
from beacon_jax.row_sample import RowSample
from beacon_jax.streams import ActivationStream


@dataclasses.dataclass
class Stream:
    """One model's way: its name ("float" or "quantized"), its parameter leaves as they are by now, its data."""

    name: str
    leaves: list[Any]
    data: ActivationStream


class Calibration:
    """The streams of a model and a set of calibration batches, moved from stage to stage.

    Use it in a `with`; the data is freed at its end. `examples` and `rows` are known once `read` has returned.
    `quantized` are the parameter leaves of the quantized stream: what is put there, the stream has from then on.
    """

    def __init__(
        self,
        model: Model,
        leaves: list[Any],
        streams: Sequence[str],
        execution: Execution,
        row_weights: str = "uniform",
        sample: RowSample | None = None,
        placement: Placement | None = None,
    ):
        self.model, self.execution, self.placement = model, execution, placement or Placement(execution.mesh)
        self._stack = contextlib.ExitStack()
        self.quantized, self._leaves = QuantizedLeaves(model, leaves, self.placement), leaves
        self._influence = Influence(self.placement) if row_weights == "influence" else None
        self._sample = sample
        self.streams = [
            Stream(
                name, leaves if name == "float" else self.quantized.values, self._stack.enter_context(self._storage())
            )
            for name in streams
        ]
        self._signatures: list[Signature] = []
        self._weights: list[np.ndarray | None] = []
        self._examples: list[int] = []
        self._row_weights: dict[tuple, dict[tuple, RowWeights | Unsupported]] = {}
        self._pieces: dict[tuple, Piece] = {}
        self._counts: dict[str, int] = {}
        self._lost: dict[str, Unsupported] = {}  # layers to which the weights cannot be followed

    @property
    def examples(self) -> int:
        """The number of examples read."""
        return sum(self._examples)

    def _storage(self) -> ActivationStream:
        return ActivationStream(self.execution.activations, self.placement, self.execution.folder)

    def __enter__(self) -> "Calibration":
        return self

    def __exit__(self, *_):
        self._stack.close()

    def read(
        self, batches: Iterable[Any], weights: Callable[[Any], Any] | None, fingerprint: Fingerprint | None = None
    ) -> None:
        """Takes in the batches, and adds them to the fingerprint.

        Raises:
          ValueError: no batches; one that is no pytree of arrays, is empty, not finite, of another structure than the
            first, or of shapes that the model does not take beside the first one's; weights that do not fit.
        """
        if isinstance(batches, (np.ndarray, jax.Array)):
            raise ValueError(f"expected several batches, got one array of shape {batches.shape}; put it into a list")
        if not isinstance(batches, Iterable):
            raise ValueError(f"expected batches to iterate over, got {type(batches).__name__}")
        first: list[tuple[int, ...]] = []
        for i, batch in enumerate(batches):
            leaves = checked_batch(batch, i)
            own = None if weights is None else checked_weights(weights(batch), leaves, i)
            shapes = [np.shape(a) for a in leaves]
            first = first or shapes
            with shapes_told(i, shapes, first):
                self.add(jax.tree.unflatten(jax.tree.structure(batch), leaves), own)
            if fingerprint is not None:
                fingerprint.add([*leaves, *([] if own is None else [own])])
        if not self._signatures:
            raise ValueError("no calibration batches: at least one is needed")

    def add(self, batch: Any, weights: np.ndarray | None) -> None:
        """Takes in a batch that is known to be sound, and the weights of its examples or positions."""
        signature, leaves = self.model.add(batch), jax.tree.leaves(batch)
        self._signatures.append(signature)
        self._weights.append(weights)
        self._examples.append(max((a.shape[0] for a in leaves if a.ndim), default=1))
        self._count(signature, weights, self._examples[-1])
        traced = self.model[signature]
        if self._influence is not None:
            rules = self._given_weights(signature, weights)
            self._influence.add(signature, traced, self._leaves, leaves, weights, rules)
        given = traced.stages[0].given
        first = traced.program.inputs[0] if traced.program.inputs else 0
        for stream in self.streams:
            stream.data.append([leaves[v - first] for v in given])

    def _count(self, signature, weights, examples):
        """Adds a batch's rows to those of each layer."""
        rules = {} if weights is None else self._rules(signature, weights.shape)
        distinct = {rule for rule in rules.values() if isinstance(rule, RowWeights)}
        values: dict[RowWeights | None, np.ndarray] = {r: np.asarray(r(jnp.asarray(weights))) for r in distinct}
        for layer in self.model[signature].found.layers:
            count = 0
            for use in layer.uses:
                rule = None if weights is None else rules[use.operand, use.view.rows_form]
                if isinstance(rule, Unsupported):
                    self._lost.setdefault(layer.name, rule)
                    continue
                count += self._taken(use.rows, examples, values.get(rule))
            self._counts[layer.name] = self._counts.get(layer.name, 0) + count

    def _taken(self, rows, examples, weights):
        if self._sample is not None:
            return self._sample.rows(rows, examples, weights)
        return rows if weights is None else int((weights > 0).sum())

    def _rules(self, signature, shape):
        if (signature, shape) not in self._row_weights:
            self._row_weights[signature, shape] = self.model[signature].row_weights(shape)
        return self._row_weights[signature, shape]

    def _given_weights(self, signature, weights) -> Callable[[Use], np.ndarray | None]:
        """The weights of a use's rows that follow from those given for a batch."""
        rules = {} if weights is None else self._rules(signature, weights.shape)

        def given(use):
            rule = rules.get((use.operand, use.view.rows_form))
            return np.asarray(rule(jnp.asarray(weights))) if isinstance(rule, RowWeights) else None

        return given

    def rows(self, layer: str) -> int:
        """Rows of positive weight that all batches give a layer (each of its groups).

        Raises:
          Unsupported (a ValueError): the weights cannot be followed to the layer.
        """
        if layer in self._lost:
            raise self._lost[layer]
        return self._counts[layer]

    def without_influence(self, layer: str) -> bool:
        """Whether rows are to count by their influence, and those of this layer have none."""
        return self._influence is not None and self._influence.none(layer)

    def statistics(
        self, stage: int, group: int, *, known: GramStats | None = None, leave: bool = False, residual: bool = False
    ) -> tuple[GramStats, float]:
        """The Gram statistics of the inputs that a group of layers shares, as the streams are by now, and the seconds.

        Args:
          stage: where the streams are.
          group: its number in the stage.
          known: statistics of the float stream, where they are known; what depends on it alone is then not computed.
          leave: whether the float stream is needed no more in this stage, and moves on to the next.
          residual: whether to add up the change of the residual stream beside the group's only layer, too.
        """
        start = time.perf_counter()
        two = len(self.streams) == 2
        stats = [self._empty(stage, group, float_known=two and known is not None, residual=residual)]
        onward = leave and two and self.streams[0].name == "float"
        stats = self._run(stage, [group], stats, onward=onward, residual=residual)
        (done,) = jax.block_until_ready(stats)
        if two and known is not None:
            done = self.placement.call(GramStats.with_float, done, known)
        return done, time.perf_counter() - start

    def all_statistics(self, stage: int, groups: Sequence[int], *, leave: bool) -> tuple[list[GramStats], float]:
        """The same of several groups in one pass, for a single stream that no layer's quantization changes."""
        start = time.perf_counter()
        stats: list[GramStats] = [self._empty(stage, group) for group in groups]
        if groups or leave:
            stats = self._run(stage, list(groups), stats, onward=leave)
        return jax.block_until_ready(stats), time.perf_counter() - start

    def leave(self, stage: int, *, float_too: bool = True) -> None:
        """Moves the streams on to the next stage, with the parameters as they are by now."""
        for stream in self.streams:
            if float_too or stream.name != "float":
                for i in range(len(stream.data)):
                    step = self._step(stage, [], i, [stream], onward=True)
                    _, output = self._add_batch(step, [], self._arrays([stream], step, i), None, [], np.int32(i))
                    stream.data.put(i, output)

    def _empty(self, stage: int, group: int, float_known: bool = False, residual: bool = False) -> GramStats:
        layer = self.model.first.stages[stage].groups[group][0]
        double = self.execution.forward_dtype == "float64" or self.streams[0].leaves[layer.leaf].dtype == jnp.float64
        dtype = jnp.float64 if double else jnp.float32
        N, groups = layer.shape[-2], layer.shape[0] if len(layer.shape) == 3 else None
        outputs = layer.shape[-1] if residual else None
        stats = GramStats.zeros(
            N, dtype, streams=len(self.streams), float_known=float_known, groups=groups, residual=outputs
        )
        return self.placement.everywhere(stats)

    def _run(self, stage, groups, stats, onward, residual=False):
        """One pass of all streams to the inputs of these groups; with `onward` the first stream moves on as well."""
        for i in range(len(self._signatures)):
            step = self._step(stage, groups, i, self.streams, onward, residual)
            weights = self._weights[i]
            factors = [self._factors(stage, g, i) for g in groups]
            arrays = self._arrays(self.streams, step, i)
            stats, output = self._add_batch(step, stats, arrays, weights, factors, np.int32(i))
            if onward:
                self.streams[0].data.put(i, output)
        return [self.placement.call(GramStats.finished, own) for own in stats]

    def _add_batch(self, step, *args):
        return self.placement.call(functools.partial(add_batch, step), *args)

    def _factors(self, stage, group, i):
        """What the rows' weights are multiplied with, for each use of a group."""
        layer = self.model[self._signatures[i]].stages[stage].groups[group][0]
        if self._influence is None:
            return [None] * len(layer.uses)
        return [self._influence.factor(i, layer.name, use) for use in layer.uses]

    def _arrays(self, streams, step, i):
        """What each stream's piece takes: leaves, data, constants."""
        traced = self.model[self._signatures[i]]
        program, given = traced.program, traced.stages[step.stage].given
        arrays = []
        for stream, own in zip(streams, step.pieces, strict=True):
            data = dict(zip(given, stream.data[i], strict=True))
            leaves = [stream.leaves[v] for v in own.leaves]
            constants = self.placement.everywhere([program.constants[v] for v in own.constants])
            arrays.append((leaves, [data[v] for v in own.given], constants))
        return arrays

    def _piece(self, stage, groups, signature, onward, residual) -> Piece:
        key = stage, groups, signature, onward, residual
        if key not in self._pieces:
            traced = self.model[signature]
            here = traced.stages[stage]
            wanted = [operand for g in groups for operand, _ in here.groups[g][0].inputs]
            wanted += [traced.residuals[here.groups[g][0].name] for g in groups if residual]
            self._pieces[key] = piece(traced.program, here.given, (*wanted, *(here.output if onward else ())))
        return self._pieces[key]

    def _step(self, stage, groups, i, streams, onward, residual=False) -> Step:
        signature, weights = self._signatures[i], self._weights[i]
        rules = {} if weights is None else self._rules(signature, weights.shape)
        here = self.model[signature].stages[stage]
        uses = tuple(
            tuple((use.view, rules.get((use.operand, use.view.rows_form))) for use in here.groups[g][0].uses)
            for g in groups
        )
        pieces = tuple(
            self._piece(stage, tuple(groups), signature, onward and k == 0, residual) for k in range(len(streams))
        )
        return Step(pieces, uses, self.placement, self._sample, self._examples[i], stage)
