"""Calibration activations on their way through a model, and the Gram statistics of every layer's inputs.

Streams of activations wait at the border between two stages: those of the float model (X), those of the model whose
earlier layers are already quantized (X̃), or both. The float stream runs through each stage once where its layers'
inputs are all wanted at that time, or are kept; the quantized one runs once per layer input, no deeper than to there,
because what lies behind an input changes when its layers are quantized.
"""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.devices import Placement
from beacon_jax.layers import Layer, lifted_layers_refused, subtree
from beacon_jax.models.capture import apply_with_inputs
from beacon_jax.models.stages import Stage, run_in
from beacon_jax.quant.gram import GramStats
from beacon_jax.spec import QuantSpec
from beacon_jax.streams import ActivationStream


@dataclasses.dataclass(frozen=True)
class Forward:
    """How a stage is run: with which dtype, and on which devices."""

    stage: Stage
    dtype: str
    placement: Placement

    def run(self, params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The stage's output, and the inputs of its layers. Under jit, XLA drops what is not asked for."""

        def run(params, x):
            return apply_with_inputs(self.stage.module, params, x, self.stage.method)

        return run_in(self.dtype, run, params, x)

    def by_rows(self, tree: Any) -> Any:
        """Inside jit: activations, each laid out by its rows."""
        return jax.tree.map(lambda a: self.placement.constrained(a, self.placement.by_rows(len(a))), tree)

    def everywhere(self, stats: dict[str, GramStats]) -> dict[str, GramStats]:
        """Inside jit: statistics, whole on every device."""
        return self.placement.constrained(stats, self.placement.replicated)


def stream_names(spec: QuantSpec) -> tuple[str, ...]:
    """The streams that a spec needs, "float" before "quantized"."""
    return ("float", "quantized") if spec.calibrate_on == "both" else (spec.calibrate_on,)


def read_batches(batches: Iterable[jax.Array], streams: list[ActivationStream]) -> Counter:
    """Puts the batches into every stream; returns how many there are of each (shape, dtype).

    Raises:
      ValueError: no batches, or one that is not an array, is empty or not finite.
    """
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


def calibrate(
    stages: list[Stage],
    layers: dict[str, Layer],
    wanted: dict[str, Layer],
    trees: list[Any],
    streams: list[ActivationStream],
    spec: QuantSpec,
    placement: Placement,
    float_stats: Mapping[str, GramStats],
) -> Iterator[tuple[str, GramStats | None, float]]:
    """Yields (layer name, its statistics or None where they are not wanted, seconds) in the order of the layers.

    A layer's statistics are collected when it is asked for, on the parameters that `trees`, one for each stream, hold
    by then: those of the quantized model carry the quantization of all layers before it. What depends on the float
    model alone is taken from `float_stats` where it is there.
    """
    last = max((layer.stage for layer in wanted.values()), default=-1)
    by_stage = _all_at_once if spec.calibrate_on == "float" else _one_by_one
    for i, stage in enumerate(stages):
        here = {name: layer for name, layer in layers.items() if layer.stage == i}
        forward = Forward(stage, spec.forward_dtype, placement)
        yield from by_stage(
            _Step(forward, here, wanted.keys() & here.keys(), trees, streams, spec, float_stats, i < last)
        )


@dataclasses.dataclass(frozen=True)
class _Step:
    """What is to be done at one stage: statistics of the layers `wanted`, and the streams' way on where `more`."""

    forward: Forward
    layers: dict[str, Layer]
    wanted: set[str]
    trees: list[Any]
    streams: list[ActivationStream]
    spec: QuantSpec
    float_stats: Mapping[str, GramStats]
    more: bool

    def params(self, stream: int) -> Any:
        """The stage's parameters as they are by now."""
        return self.forward.stage.select(self.trees[stream])

    def empty_stats(self, names: Iterable[str], float_known: bool = False) -> dict[str, GramStats]:
        """Statistics to add to, by source, for those of the layers that are wanted."""
        stats = {}
        for name in names:
            if name in self.wanted:
                layer, kernel = self.layers[name], subtree(self.trees[0], name)["kernel"]
                least = jnp.float64 if self.forward.dtype == "float64" else jnp.float32
                dtype = jnp.promote_types(least, kernel.dtype)
                stats[layer.source] = GramStats.zeros(
                    layer.shape[0], dtype, streams=len(self.streams), float_known=float_known
                )
        return self.forward.placement.everywhere(stats)

    def results(self, names: list[str], stats: dict[str, GramStats], start: float):
        """What `calibrate` yields for these layers; the time since `start` is shared out among those wanted."""
        seconds = (time.perf_counter() - start) / max(len(self.wanted.intersection(names)), 1)
        for name in names:
            yield name, stats.get(self.layers[name].source), seconds if name in self.wanted else 0.0


def _all_at_once(step: _Step):
    """Float inputs do not change when layers are quantized, so one pass gives all of them and the stage's output."""
    start, names = time.perf_counter(), list(step.layers)
    stats = step.empty_stats(names)
    if stats or step.more:
        stats = _run_float(step, stats, {})
    yield from step.results(names, stats, start)


def _one_by_one(step: _Step):
    """A pass of the quantized model for each layer input; of the float model as well, or just one where kept."""
    both, start = step.spec.calibrate_on == "both", time.perf_counter()
    once = both and step.spec.float_inputs == "kept"
    groups: dict[str, list[str]] = {}
    for name, layer in step.layers.items():
        groups.setdefault(layer.source, []).append(name)
    with contextlib.ExitStack() as stack:
        kept = _keep_float_inputs(step, stack) if once else {}
        for source, names in groups.items():
            known = next((step.float_stats[name] for name in names if both and name in step.float_stats), None)
            stats = step.empty_stats(names, float_known=known is not None)
            if stats:
                params, feeds = [step.params(i) for i in range(len(step.streams))], list(step.streams)
                if once:  # its batches are the inputs themselves
                    params[0], feeds[0] = None, ({source: x} for x in kept[source])
                stats = _collect(step.forward, stats, params, feeds)
                if known is not None:
                    stats = {source: stats[source].with_float(known)}
            yield from step.results(names, stats, start)
            start = time.perf_counter()
    if step.more:
        for i, stream in list(enumerate(step.streams))[once:]:
            stream.advance(functools.partial(_output, step.forward, step.params(i)))


def _keep_float_inputs(step: _Step, stack: contextlib.ExitStack) -> dict[str, ActivationStream]:
    """The float inputs of the wanted layers, by source, until the stack is left; moves the float stream on."""
    sources = dict.fromkeys(layer.source for name, layer in step.layers.items() if name in step.wanted)
    storage = step.spec.activations, step.forward.placement
    kept = {source: stack.enter_context(ActivationStream(*storage)) for source in sources}
    if kept or step.more:
        _run_float(step, {}, kept)
    return kept


def _run_float(step: _Step, stats: dict[str, GramStats], kept: dict[str, ActivationStream]) -> dict[str, GramStats]:
    """One pass of the float stream through the stage: adds to the statistics and to what is kept."""
    names, params = tuple(kept), step.params(0)

    def run(x):
        nonlocal stats
        y, stats, inputs = _float_batch(step.forward, names, step.more, stats, params, x)
        for name, stream in kept.items():
            stream.append(inputs[name])
        return y

    with lifted_layers_refused():
        if step.more:
            step.streams[0].advance(run)
        else:
            for x in step.streams[0]:
                run(x)
    return jax.block_until_ready(stats)


def _collect(forward: Forward, stats: dict[str, GramStats], sources: list[Any], feeds: list[Iterable]):
    """Adds the statistics of all batches, each stream's run with its source of parameters."""
    with lifted_layers_refused():
        for batches in zip(*feeds, strict=True):
            stats = _add_batch(forward, stats, sources, batches)
    return jax.block_until_ready(stats)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _float_batch(forward, names, more, stats, params, x):
    """The stage's output (None unless `more`), the statistics with the batch in them, and the inputs named."""
    y, inputs = forward.run(params, x)
    stats = {source: own.update(inputs[source]) for source, own in stats.items()}
    kept = {name: inputs[name] for name in names}
    return forward.by_rows(y) if more else None, forward.everywhere(stats), forward.by_rows(kept)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_batch(forward, stats, sources, batches):
    """Adds a batch to the layers' statistics. Only their inputs are asked for, so XLA drops what lies behind them."""
    captured = [x if params is None else forward.run(params, x)[1] for params, x in zip(sources, batches, strict=True)]
    stats = {source: own.update(*(inputs[source] for inputs in captured)) for source, own in stats.items()}
    return forward.everywhere(stats)


@functools.partial(jax.jit, static_argnums=0)
def _output(forward, params, x):
    return forward.by_rows(forward.run(params, x)[0])
