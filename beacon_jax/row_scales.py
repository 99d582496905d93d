"""Scales for the rows of kernels, moved into the parameters that make the layers' inputs.

A quantized kernel has a scale for each column; its rows share their scales, so rows of unlike size lose more than they
need to. Where the inputs are x_t = a_t·scale_t + bias_t of two parameters, as after a LayerNorm, scale_t and bias_t can
be multiplied by r_t and row t of the kernel divided by it: the model stays the same function, up to rounding. The same
goes for the columns of what makes the values of an attention and the rows of the projection after it, and for a layer
or a norm before a ReLU, which lets positive factors through. This is done before anything is quantized, and costs
nothing afterwards.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from beacon_jax.frameworks import as_function
from beacon_jax.graph.factor_rules import NONE
from beacon_jax.graph.folds import Fold, find_folds, several
from beacon_jax.graph.layers import Layer
from beacon_jax.graph.model import Model

_NUMBER = re.compile(r"(?<=[_./\[])\d+(?=[/\]. ]|$)")  # of a block, in a layer's or a parameter's name
LIMIT = 100.0  # no row is scaled by more than this, or by less than its inverse


class Spread(NamedTuple):
    """How unlike the rows of a kernel are in size: the standard deviation over t of log(root mean square of row t).

    Of the rows that are not 0; with groups, of logarithms centred in each. 0 where all rows are of one size.
    """

    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class FoldedRows:
    """What became of the rows of one kernel.

    Attributes:
      into: paths of the parameters that took the factors over, and names of the layers whose columns did.
      factors: r, (N,) or (E, N), float64: row t of the kernel was divided by r_t.
      note: why some rows were not scaled; "" where all could be.
    """

    into: tuple[str, ...]
    factors: Float64[np.ndarray, "*groups N"]
    note: str


@dataclasses.dataclass(frozen=True)
class BalancedRows:
    """The result of `balance_rows`.

    Attributes:
      params: the parameters, of the structure and dtypes given; leaves that nothing was folded into are the very same.
      spread: {layer name: spread of its rows before and after}, of every layer asked for.
      folded: {layer name: what became of its rows}; also of layers not asked for that share their inputs with such.
      left: {layer name: why its rows stay as they are}, of the other layers asked for.
    """

    params: Any
    spread: dict[str, Spread]
    folded: dict[str, FoldedRows]
    left: dict[str, str]

    def __str__(self) -> str:
        """One line: how many layers' rows were scaled, and why others' were not; equal blocks are one item."""
        own = [self.folded[name].note for name in self.spread if name in self.folded]
        line = f"folded for {len(own)} of {len(self.spread)} layers"
        line += f" ({len(own) - own.count('')} of them in part)" if any(own) else ""
        before, after = np.mean(list(self.spread.values()), 0)
        line += f", mean spread of the rows {before:.3f} → {after:.3f}"
        reasons = Counter(tuple(_NUMBER.sub("*", text) for text in item) for item in self.left.items())
        left = [f"{name} ({f'{count} layers: ' if count > 1 else ''}{why})" for (name, why), count in reasons.items()]
        return line + (f"; not for {', '.join(left)}" if left else "")


def balance_rows(model: Any, params: Any, batch: Any, layers: str = ".*") -> BalancedRows:
    """Gives the rows of kernels one size where the function of the model stays the same, up to rounding.

    The factor of row t is r_t = root mean square of row t, of all layers asked for that have this input and all their
    columns, relative to the geometric mean over the rows; 1 for rows that are 0, and within 1/LIMIT … LIMIT. Rows that
    have one factor in common, such as those of a convolution's channel at all its positions, count together.

    Args:
      model: a function apply(params, batch); or a Linen module that maps one array to another; or an NNX module.
      params: its parameters, a pytree of arrays, not modified; None for an NNX module.
      batch: a batch, of which only structure, shapes and dtypes count. What holds for the model with such a batch must
        hold for it with others.
      layers: regular expression over whole names of layers, such as blocks_0/attn/qkv: the layers to be quantized.

    Raises:
      ValueError: a model that cannot be read as equations, or has no layers; a bad pattern, or one that matches no
        layer; parameters without values; a kernel that is not finite.
    """
    pattern = _compiled(layers)
    apply, params = as_function(model, params)
    read = Model(apply, params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise ValueError("parameters are arrays with values, got a jax.ShapeDtypeStruct")
    read.add(batch)
    program, every = read.first.program, read.layers
    wanted = [layer for layer in every if pattern.fullmatch(layer.name)]
    if not wanted:
        names = ", ".join(layer.name for layer in every[:8])
        raise ValueError(f"layers={layers!r} matches no layer; the model has {names}{', …' if len(every) > 8 else ''}")
    given, structure = jax.tree.flatten(params)
    values = list(given)
    before = {layer.name: _spread(_kernel(layer, values)) for layer in wanted}
    found = find_folds(program, every, wanted)
    folded: dict[str, FoldedRows] = {}
    reasons = dict(found.reasons)
    for fold in found.folds:
        r = _factors(fold, {layer.name for layer in wanted}, values)
        scaled = list(values)
        with np.errstate(over="ignore"):  # looked at next
            into = _multiply(fold, r, scaled, program.leaves)
            for layer, labels in fold.rows:
                _scale(layer, 1 / r[labels][..., None], scaled)
        beyond = _beyond_range(scaled, values, program.leaves)
        if beyond:
            reasons |= {layer.name: beyond for layer, _ in fold.rows}
            continue
        values = scaled
        for layer, labels in fold.rows:
            earlier = folded.get(layer.name, FoldedRows((), np.ones(labels.shape), reasons.get(layer.name, "")))
            folded[layer.name] = FoldedRows((*earlier.into, *into), earlier.factors * r[labels], earlier.note)
    values = [_like(new, old) for new, old in zip(values, given, strict=True)]
    spread = {layer.name: Spread(before[layer.name], _spread(_kernel(layer, values))) for layer in wanted}
    left = {layer.name: reasons[layer.name] for layer in wanted if layer.name not in folded}
    return BalancedRows(jax.tree.unflatten(structure, values), spread, folded, left)


def _compiled(layers: str) -> re.Pattern:
    if not isinstance(layers, str):
        raise ValueError(f"layers is a regular expression over layer names, got {layers!r}")
    try:
        return re.compile(layers)
    except re.error as error:
        raise ValueError(f"layers={layers!r} is not a regular expression: {error}") from error


def _kernel(layer: Layer, values: Sequence[Any]) -> Float64[np.ndarray, "*groups N C"]:
    kernel = layer.place.read(values[layer.leaf]).astype(np.float64)
    if not np.isfinite(kernel).all():
        raise ValueError(f"{layer.name}: the kernel has values that are not finite")
    return kernel


def _spread(kernel: Float64[np.ndarray, "*groups N C"]) -> float:
    squares = np.square(kernel).mean(-1)
    groups = [0.5 * np.log(own[own > 0]) for own in np.atleast_2d(squares)]
    centred = np.concatenate([own - own.mean() for own in groups if own.size] or [np.zeros(1)])
    return float(np.sqrt(np.square(centred).mean()))


def _factors(fold: Fold, wanted: set[str], values: Sequence[Any]) -> Float64[np.ndarray, " factors"]:
    """The factors by number; the last is that of NONE."""
    squares, sizes = np.zeros(fold.count), np.zeros(fold.count)
    for layer, labels in fold.rows:
        if layer.name not in wanted or not several(labels):
            continue
        kernel = _kernel(layer, values)
        own = labels != NONE
        np.add.at(squares, labels[own], np.square(kernel).sum(-1)[own])
        np.add.at(sizes, labels[own], kernel.shape[-1])
    r = np.ones(fold.count + 1)
    alive = np.flatnonzero(squares)
    logs = 0.5 * np.log(squares[alive] / sizes[alive])
    if alive.size:
        r[alive] = np.clip(np.exp(logs - logs.mean()), 1 / LIMIT, LIMIT)
    return r


def _multiply(fold: Fold, r: np.ndarray, values: list[Any], paths: Sequence[str]) -> list[str]:
    """Multiplies what takes the factors over; the names of that."""
    into = []
    if fold.column is not None:
        layer, labels = fold.column
        _scale(layer, r[labels][..., None, :], values)
        into.append(layer.name)
    for leaf, labels in fold.leaves.items():
        old = np.asarray(values[leaf])
        values[leaf] = (old.astype(np.float64) * r[labels]).astype(old.dtype)
        into.append(paths[leaf])
    return into


def _scale(layer: Layer, factors: np.ndarray, values: list[Any]) -> None:
    kernel = layer.place.read(values[layer.leaf]).astype(np.float64)
    values[layer.leaf] = layer.place.write(values[layer.leaf], kernel * factors)


def _beyond_range(new: Sequence[Any], old: Sequence[Any], paths: Sequence[str]) -> str:
    """Why values cannot be scaled so: what becomes infinite in its dtype; "" where nothing does."""
    for a, b, path in zip(new, old, paths, strict=True):
        if a is not b and not np.isfinite(np.asarray(a, np.float64)).all():
            return f"{path} would pass the range of {np.asarray(b).dtype}"
    return ""


def _like(new: Any, old: Any) -> Any:
    """A new value as an array of the old one's kind, in its place."""
    if new is old or not isinstance(old, jax.Array):
        return new
    return jax.device_put(jnp.asarray(new, old.dtype), old.sharding)
