"""Evaluates a model on batches of any kind, by metrics of which each says how sure its number is."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from beacon_jax.batches import example_count, fingerprint, pad_to, padded, take
from beacon_jax.metrics.base import Mean, Measured, Metric
from beacon_jax.metrics.classes import Agreement, CrossEntropy, Divergence, Perplexity, Top1, Top5
from beacon_jax.metrics.vectors import MeanCosine, NeighbourOverlap, RelativeOutputError

__all__ = [
    "Agreement",
    "CrossEntropy",
    "Divergence",
    "Mean",
    "MeanCosine",
    "Measured",
    "Metric",
    "NeighbourOverlap",
    "Perplexity",
    "RelativeOutputError",
    "Top1",
    "Top5",
    "evaluate",
    "reference_of",
]
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class KeptBatch:
    """What metrics need of the float model's outputs for a batch, {metric's name: arrays}, and the batch's digest."""

    outputs: Mapping[str, Any]
    fingerprint: str


def evaluate(
    predict: Callable[[Any], Any],
    batches: Iterable[Any],
    metrics: Mapping[str, Metric],
    reference: Callable[[Any], Any] | Iterable[KeptBatch] | None = None,
) -> dict[str, Measured]:
    """Evaluates a model.

    Args:
      predict: batch → outputs, pytrees of arrays whose first axis counts the B examples. It sees every batch filled up
        to the size of the first with copies of its last example, so that a shorter last batch costs no recompilation;
        the copies count in no number.
      batches: pytrees of arrays with B examples each, such as dicts with image and label.
      metrics: what to measure, by name (see beacon_jax/metrics).
      reference: what metrics compare with: the float model, as a function like `predict`, which is run beside it; or
        what `reference_of` kept of it for the same batches and metrics.

    Returns:
      ``{name: value, standard error and number of examples}``, summed up in float64 on the host.

    Raises:
      ValueError: no batches or no metrics; batches that are no pytrees of arrays of B rows; a metric that does not fit
        the outputs or the batch (labels outside the classes, say) or lacks its reference; outputs that are not finite;
        a reference of other batches.
    """
    _check_metrics(metrics)
    comparing = [name for name, metric in metrics.items() if metric.compares]
    if comparing and reference is None:
        raise ValueError(f"{', '.join(comparing)} compare with a reference's outputs, and none is given")
    given = None if callable(reference) or not comparing else reference
    kept_batches: Iterator[Any] = itertools.repeat(None) if given is None else iter(given)
    found: dict[str, list] = {name: [] for name in metrics}
    for batch, count in padded(batches):
        size, kept = example_count(batch), next(kept_batches, _MISSING)
        outputs = predict(batch)
        for name, metric in metrics.items():
            _naming(name, metric.check, outputs, jax.tree.map(np.asarray, batch))
        if callable(reference) and comparing:
            kept = _kept(reference(batch), metrics)
        elif comparing:
            kept = _checked(kept, comparing, batch, count)
        made = measure_batch(tuple(metrics.items()), outputs, batch, kept)
        for name, arrays in made.items():
            found[name].append(_real(name, arrays, count, size))
    if not any(found.values()):
        raise ValueError("no batches to evaluate on")
    if comparing and not callable(reference) and next(kept_batches, _MISSING) is not _MISSING:
        raise ValueError(_OTHER_REFERENCE)
    together = {name: jax.tree.map(lambda *parts: np.concatenate(parts), *parts) for name, parts in found.items()}
    return {name: _naming(name, metric.summary, together[name]) for name, metric in metrics.items()}


def reference_of(
    predict: Callable[[Any], Any], batches: Iterable[Any], metrics: Mapping[str, Metric]
) -> list[KeptBatch]:
    """What the metrics need of the float model's outputs for every batch, to evaluate several models against it.

    The arguments are those of `evaluate`. It is kept in memory: for Agreement an integer per position, for the others
    the outputs.
    """
    return [
        KeptBatch(take(_kept(predict(batch), metrics), 0, count), fingerprint(batch))
        for batch, count in padded(batches)
    ]


def _check_metrics(metrics) -> None:
    if not isinstance(metrics, Mapping) or not metrics:
        raise ValueError(f"metrics is a dict of at least one metric by name, got {metrics!r}")
    for name, metric in metrics.items():
        for attribute in ("compares", "check", "keep", "examples", "summary"):
            if not hasattr(metric, attribute):
                raise ValueError(
                    f"{name}={metric!r} is no metric, it has no {attribute!r}; see beacon_jax/metrics/base.py"
                )
        try:
            hash(metric)
        except TypeError as error:
            raise ValueError(f"the metric {name} must be hashable, as a frozen dataclass is: {error}") from error


def _naming(name, run, *args):
    """run(*args), an error of which names the metric."""
    try:
        return run(*args)
    except ValueError as error:
        raise ValueError(f"metric {name}: {error}") from error


def _kept(outputs, metrics) -> dict[str, Any]:
    kept = {name: metric.keep(outputs) for name, metric in metrics.items() if metric.compares}
    return jax.tree.map(np.asarray, kept)


_OTHER_REFERENCE = "the reference is not that of these batches and metrics, in this order"


def _checked(kept: object, comparing: list[str], batch: Any, count: int):
    """What was kept for a batch of which `count` examples are real, filled up to all of them."""
    if (
        not isinstance(kept, KeptBatch)
        or kept.fingerprint != fingerprint(batch)
        or not set(comparing) <= kept.outputs.keys()
        or example_count(kept.outputs) != count
    ):
        raise ValueError(_OTHER_REFERENCE)
    return pad_to({name: kept.outputs[name] for name in comparing}, example_count(batch))


@functools.partial(jax.jit, static_argnums=0)
def measure_batch(metrics, outputs, batch, kept):
    """{name: what a metric makes of each example} for (name, metric) pairs; kept: {name: what it kept} or None."""
    return {name: _naming(name, m.examples, outputs, batch, (kept or {}).get(name)) for name, m in metrics}


def _real(name, arrays, count: int, size: int):
    """The arrays of the real examples, on the host, in float64."""
    host = jax.tree.map(np.asarray, arrays)
    for a in jax.tree.leaves(host):
        if a.ndim == 0 or len(a) != size:
            raise ValueError(f"metric {name} gives arrays of shape {a.shape} for batches of {size} examples")
    host = take(host, 0, count)
    if not all(np.isfinite(a).all() for a in jax.tree.leaves(host)):
        raise ValueError(f"the model's outputs are not all finite (metric {name})")
    return jax.tree.map(lambda a: a.astype(np.float64), host)
