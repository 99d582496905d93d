"""Which layers' rows can be scaled at no cost: the factors are taken over by a parameter that makes the inputs.

That is a parameter by which each feature of the inputs is multiplied (the scale of a LayerNorm, and with it the bias),
or a layer whose outputs are the inputs but for sums over positions, factors and ReLU (the values of an attention, the
ungated half of a gated MLP).
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.factor_rules import NONE, SUMS, carries
from beacon_jax.graph.factors import Flow, Graph
from beacon_jax.graph.layers import Layer
from beacon_jax.graph.program import Equation, Program


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """Factors that leave the function as it is, whatever positive numbers they are.

    Labels are numbers of factors, below `count`, or NONE where the factor is 1.

    Attributes:
      count: numbers of factors in use are below it.
      leaves: {leaf: labels of its shape} of the parameters that are multiplied.
      column: (layer, labels of its columns, (C,) or (E, C)), whose kernel is multiplied; or None.
      rows: (layer, labels of its rows, (N,) or (E, N)) of every kernel that is divided.
    """

    count: int
    leaves: dict[int, np.ndarray]
    column: tuple[Layer, np.ndarray] | None
    rows: tuple[tuple[Layer, np.ndarray], ...]

    @property
    def position(self) -> int:
        """Where the first of the divided kernels is used."""
        return min(layer.uses[0].position for layer, _ in self.rows)


@dataclasses.dataclass(frozen=True)
class Folds:
    """The folds of a program, and {layer name: why} of the layers of which not all rows are in one.

    The folds come in such an order that factors chosen for each by the kernels as the earlier ones leave them stay the
    right ones: what makes a layer's inputs comes after the layer.
    """

    folds: tuple[Fold, ...]
    reasons: dict[str, str]


def find_folds(program: Program, layers: Sequence[Layer], wanted: Sequence[Layer]) -> Folds:
    """The folds for the rows of some of a program's layers.

    Args:
      program: the program.
      layers: all its layers.
      wanted: those whose rows are to be scaled. Another layer takes part where it has the same inputs.
    """
    graph = Graph(program, layers)
    known: dict[int | str, tuple[Flow, dict[str, Fold]]] = {}
    chosen: dict[int, Fold] = {}
    reasons: dict[str, str] = {}
    for layer in wanted:
        own, why = _of_layer(graph, layer, known)
        chosen |= {id(fold): fold for fold in own}
        if why:
            reasons[layer.name] = why
    folds = sorted(chosen.values(), key=lambda fold: fold.position, reverse=True)
    return Folds(tuple(folds), reasons)


def _of_layer(graph: Graph, layer: Layer, known: dict) -> tuple[list[Fold], str]:
    """The folds that a layer's rows are to be in, and why not all rows are in one; flows are kept in `known`."""
    *groups, N, _ = layer.shape
    taken, folds, reasons = np.zeros((*groups, N), bool), [], []
    for source in _sources(graph, layer):
        key = source.name if isinstance(source, Layer) else source
        if key not in known:
            flow = Flow(graph, source)
            known[key] = flow, _parts(flow)
        flow, parts = known[key]
        rows = flow.rows[layer.name][1] if layer.name in flow.rows else np.full(taken.shape, NONE)
        if (rows == NONE).any():
            reasons.append(flow.why_not(layer))
        if not (rows != NONE).any():
            continue
        if not several(rows):
            reasons.append("its inputs have one scale in common")
        elif ((rows != NONE) & ~taken).any():
            taken |= rows != NONE
            folds.append(parts[layer.name])
        if taken.all():
            return folds, ""
    return folds, [*reasons, _no_source(graph, layer)][0]


def several(rows: np.ndarray) -> bool:
    """Whether a kernel's rows, (N,) or (E, N), have more than one factor in a group, so that their relation changes."""
    return any(len(set(own[own != NONE])) > 1 for own in np.atleast_2d(rows))


def _parts(flow: Flow) -> dict[str, Fold]:
    """{layer name: its fold}: factors that no kernel has in common are chosen independently of each other."""
    part = np.full(flow.count + 1, NONE)  # the last for NONE
    for number, (_, rows) in enumerate(flow.rows.values()):
        own = np.unique(rows[rows != NONE])
        part[np.isin(part, part[own][part[own] != NONE])] = number
        part[own] = number
    found, of_layer = {}, {}
    for name, (_, rows) in flow.rows.items():
        number = part[rows[rows != NONE][0]]
        if number not in found:
            found[number] = _fold(flow, part == number)
        of_layer[name] = found[number]
    return of_layer


def _fold(flow: Flow, own: np.ndarray) -> Fold:
    """The factors for which `own` holds."""

    def only(labels):
        return np.where(own[labels], labels, NONE)

    leaves = {leaf: only(labels) for leaf, labels in flow.leaves.items()}
    column = None
    if flow.column is not None:
        *groups, _, C = flow.column.shape
        column = flow.column, only(np.arange(flow.count).reshape(*groups, C))
    rows = [(layer, only(labels)) for layer, labels in flow.rows.values()]
    return Fold(
        flow.count,
        {leaf: labels for leaf, labels in leaves.items() if (labels != NONE).any()},
        column,
        tuple((layer, labels) for layer, labels in rows if (labels != NONE).any()),
    )


def _sources(graph: Graph, layer: Layer) -> Iterator[int | Layer]:
    """Leaves and layers that may multiply the layer's inputs, the nearest first."""
    for v in _origins(graph, layer):
        if v in graph.plain:
            if jnp.issubdtype(graph.program.avals[v].dtype, jnp.floating):
                yield graph.plain[v]
        elif (position := graph.program.made_by.get(v)) in graph.uses:
            yield from (other for other, _ in graph.uses[position])


def _no_source(graph: Graph, layer: Layer) -> str:
    names = [
        graph.program.equations[position].name
        for v in _origins(graph, layer)
        if (position := graph.program.made_by.get(v)) is not None
    ]
    names = list(dict.fromkeys(names))
    return "no parameter multiplies its inputs" + (f", which come out of {', '.join(names[:3])}" if names else "")


def _origins(graph: Graph, layer: Layer) -> Iterator[int]:
    """The variables at which the ways back from the layer's inputs end, as far as factors are carried."""
    use = next(use for use in layer.uses if use.of_data)
    waiting, seen = deque([use.operand]), {use.operand}
    while waiting:
        v = waiting.popleft()
        position = graph.program.made_by.get(v)
        equation = None if position is None else graph.program.equations[position]
        if equation is None or v in graph.plain or position in graph.uses or not carries(equation):
            yield v
            continue
        for a in _carrying(equation, graph):
            if a not in seen:
                seen.add(a)
                waiting.append(a)


def _carrying(equation: Equation, graph: Graph) -> list[int]:
    """The inputs of which factors may come."""
    given = equation.inputs
    if equation.name in ("div", "dynamic_slice"):
        given = given[:1]
    elif equation.name == "select_n":
        given = given[1:]
    inputs = [a for a in given if isinstance(a, int)]
    added = [a for a in inputs if a in graph.plain] if equation.name in SUMS else []
    return inputs if len(added) == len(inputs) else [a for a in inputs if a not in added]  # added ones join the others
