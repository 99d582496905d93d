"""Factors that start at a parameter and end in the rows of kernels, so that the function stays what it is.

A parameter's elements are multiplied by factors of their own; the program carries these on (factor_rules.py) until they
reach the inputs of layers, whose kernels' rows are divided by them. A factor that gets anywhere else must be 1.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from beacon_jax.graph.factor_rules import NONE, SUMS, Labels, agreed, carry, layout, of_outputs, of_rows, reason, thin
from beacon_jax.graph.layers import Layer, Use
from beacon_jax.graph.program import Equation, Program


class Graph:
    """A program and its layers, with what is asked of them again and again.

    Attributes:
      program: the program.
      uses: {position: the layers that are multiplied by data there}; several where their kernels are joined.
      plain: {variable: leaf} of what is one leaf, laid out or repeated.
      returned: the variables that are outputs of the program.
    """

    def __init__(self, program: Program, layers: Sequence[Layer]):
        self.program = program
        self.uses: dict[int, list[tuple[Layer, Use]]] = defaultdict(list)
        self.plain = {leaf: leaf for leaf in range(len(program.leaves))}
        self.returned = {v for v in program.outputs if isinstance(v, int)}
        for equation in program.equations:
            if len(equation.inputs) == 1 and equation.reads and equation.reads[0] in self.plain:
                (v,) = equation.reads
                blank = np.broadcast_to(np.int32(NONE), program.avals[v].shape)
                if equation.name == "broadcast_in_dim" or layout(equation, blank, self.shapes(equation.outputs)):
                    self.plain |= dict.fromkeys(equation.outputs, self.plain[v])
        for layer in layers:
            for use in layer.uses:
                self.uses[use.position].append((layer, use))

    def indices(self, v: int) -> np.ndarray:
        """The index in its flat leaf of each element of a plain variable."""
        chain = []
        while v >= len(self.program.leaves):
            equation = self.program.equations[self.program.made_by[v]]
            chain.append((equation, equation.outputs.index(v)))
            (v,) = equation.reads
        shape = self.program.avals[v].shape
        found = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        for equation, output in reversed(chain):
            labels = carry(equation, [found], [found.shape], self.shapes(equation.outputs))[0][output]
            assert labels is not None, f"{equation.name} was to move elements about alone"
            found = labels
        return found

    def shapes(self, variables: Sequence[int]) -> list[tuple[int, ...]]:
        """Of these variables."""
        return [self.program.avals[v].shape for v in variables]

    def sides(self, position: int) -> tuple[int, int]:
        """Which input of a layer's product is its kernel, and which its data."""
        (_, use), *_ = self.uses[position]
        kernel = 1 if self.program.equations[position].inputs[0] == use.operand else 0
        return kernel, 1 - kernel

    def whole(self, position: int) -> bool:
        """Whether all of a product's kernel belongs to layers: of joined kernels one may belong to none."""
        kernel, _ = self.sides(position)
        size = self.program.avals[self.program.equations[position].inputs[kernel]].size
        return sum(math.prod(layer.shape) for layer, _ in self.uses[position]) == size


class Flow:
    """Where the factors of a parameter's elements get to.

    Attributes:
      count: the number of factors.
      leaves: {leaf: labels} of the parameters that they multiply, of the leaf's shape: the one that they start at, if
        it is no layer, and what is added to it or to the layer's products, such as a bias.
      column: the layer whose kernel's columns they multiply in order, (C,) or (E, C); None if they start at a leaf.
      rows: {layer name: (layer, labels of its rows, (N,) or (E, N))} of the kernels that they divide.
    """

    def __init__(self, graph: Graph, source: int | Layer):
        """Follows the factors of a leaf's elements, given by its number, or of a layer's columns."""
        self._graph = graph
        self._labels: dict[int, np.ndarray] = {}
        self._pending: list[int] = []
        self._absorbed: dict[str, tuple[Layer, dict[int, np.ndarray]]] = {}
        self._texts: list[str] = [""]
        self.leaves: dict[int, np.ndarray] = {}
        self.column = source if isinstance(source, Layer) else None
        if not isinstance(source, Layer):
            path, shape = graph.program.leaves[source], graph.program.avals[source].shape
            self._whose, self.count = f"the values that {path} multiplies", math.prod(shape)
            self._barred = np.zeros(self.count, np.int16)
            self.leaves[source] = np.arange(self.count, dtype=np.int32).reshape(shape)
            self._set(source, self.leaves[source])
        else:
            *groups, _, C = source.shape
            self._whose, self.count = f"the outputs of {source.name}", math.prod(groups) * C
            self._barred = np.zeros(self.count, np.int16)
            self._start(source)
        while self._pending and not self._barred.all():
            position = heapq.heappop(self._pending)
            while self._pending and self._pending[0] == position:
                heapq.heappop(self._pending)
            self._go(position)
        self._labels.clear()
        self._settle()
        self.leaves = {leaf: self._free(labels) for leaf, labels in self.leaves.items()}
        own = {name: (layer, self._free(self._rows(layer)[0])) for name, (layer, _) in self._absorbed.items()}
        self.rows = {name: (layer, rows) for name, (layer, rows) in own.items() if (rows != NONE).any()}

    def why_not(self, layer: Layer) -> str:
        """Why no factor, or not each, ends in this layer's rows: what stops most of those that would, or of all."""
        codes = self._barred
        if layer.name in self._absorbed:
            rows = np.unique(np.concatenate([r.reshape(-1) for r in self._rows(layer)]))
            codes = codes[rows[rows != NONE]]
        stopped = codes[codes > 0]
        if not stopped.size:
            return f"{self._whose} are not all that its inputs depend on"
        return f"{self._whose} {self._texts[np.bincount(stopped).argmax()]}"

    def _start(self, layer: Layer) -> None:
        everything = np.arange(self.count, dtype=np.int32)
        if layer.other_uses:
            self._bar([everything], f"share a kernel that is also {layer.other_uses}")
        if any(use.part is not None for use in layer.uses):
            self._bar([everything], "come out of one product with those of other kernels")
        for use in layer.uses:
            equation = self._graph.program.equations[use.position]
            kernel, _ = self._graph.sides(use.position)
            if use.part is None:
                sizes = self._graph.shapes((equation.inputs[kernel], *equation.outputs))
                self._set(equation.outputs[0], of_outputs(equation, use, kernel, everything, *sizes))

    def _set(self, v: int, labels: Labels) -> None:
        before = self._labels.get(v)
        if labels is not None and not (thin(labels)[0] != NONE).any():
            labels = None
        if labels is None and before is None:
            return
        if labels is not None and before is not None:
            old, new = thin(before, labels)
            if np.array_equal(old, new):
                return
        if labels is None:
            del self._labels[v]
        else:
            self._labels[v] = labels
            if v in self._graph.returned:
                self._bar([labels], "are returned as an output")
        for position in self._graph.program.readers[v]:
            heapq.heappush(self._pending, position)

    def _bar(self, labels: Sequence[np.ndarray], why: str) -> None:
        """These factors must be 1."""
        for own in labels:
            own = thin(own)[0]
            own = own[own != NONE]
            if own.size:
                if why not in self._texts:
                    self._texts.append(why)
                self._barred[own] = np.where(self._barred[own] > 0, self._barred[own], self._texts.index(why))

    def _free(self, labels: np.ndarray) -> np.ndarray:
        """NONE in place of the factors that must be 1."""
        return np.where((labels != NONE) & (self._barred[labels] == 0), labels, NONE)

    def _go(self, position: int) -> None:
        equation = self._graph.program.equations[position]
        operands = [self._labels.get(a) if isinstance(a, int) else None for a in equation.inputs]
        if position in self._graph.uses:
            self._absorb(position, equation, operands)
        elif equation.name not in SUMS or not self._join(equation, operands):
            shapes, avals = self._graph.shapes(equation.outputs), self._graph.program.avals
            sizes = [avals[a].shape if isinstance(a, int) else a.aval.shape for a in equation.inputs]
            made: Sequence[Labels] = [None] * len(shapes)
            lost: Sequence[np.ndarray] = []
            if any(o is not None for o in operands):
                made, lost = carry(equation, operands, sizes, shapes)
            self._bar(lost, reason(equation))
            for v, labels in zip(equation.outputs, made, strict=True):
                self._set(v, labels)

    def _absorb(self, position: int, equation: Equation, operands: Sequence[Labels]) -> None:
        """A layer's product: the factors of its data end in the rows of its kernel."""
        kernel, data = self._graph.sides(position)
        fits = operands[kernel] is None and self._graph.whole(position)
        if not fits:
            self._bar([o for o in operands if o is not None], reason(equation))
        for layer, use in self._graph.uses[position]:
            self._absorbed.setdefault(layer.name, (layer, {}))[1].pop(position, None)
            if fits and (own := operands[data]) is not None:
                labels, lost = of_rows(use, own)
                self._bar([lost], f"multiply rows of {layer.name} by more than one factor")
                self._absorbed[layer.name][1][position] = labels

    def _join(self, equation: Equation, operands: Sequence[Labels]) -> bool:
        """Whether a leaf that is added to values with factors has just been found to need the same factors."""
        shape = self._graph.program.avals[equation.outputs[0]].shape
        for v, labels in zip(equation.inputs, reversed(operands), strict=True):
            leaf = self._graph.plain.get(v) if isinstance(v, int) else None
            if leaf is None or labels is None:
                continue
            where, what = thin(*(np.broadcast_to(a, shape) for a in (self._graph.indices(v), labels)))
            where, what = where[what != NONE], what[what != NONE]
            size = self._graph.program.avals[leaf].shape
            before = self.leaves.get(leaf, np.full(size, NONE, np.int32)).reshape(-1)
            after = before.copy()
            after[where] = what
            fits = np.array_equal(after[where], what) and np.array_equal(after[before != NONE], before[before != NONE])
            if fits and not np.array_equal(after, before):
                self.leaves[leaf] = after.reshape(size)
                self._set(leaf, self.leaves[leaf])
                return True
        return False

    def _rows(self, layer: Layer) -> list[np.ndarray]:
        """The labels of a layer's rows at each of its uses."""
        *groups, N, _ = layer.shape
        nothing = np.full((*groups, N), NONE, np.int32)
        return [self._absorbed[layer.name][1].get(use.position, nothing) for use in layer.uses]

    def _settle(self) -> None:
        """Bars what the layers themselves do not allow."""
        for layer, _ in self._absorbed.values():
            rows = self._rows(layer)
            if layer.other_uses:
                self._bar(rows, f"reach {layer.name}, whose kernel is also {layer.other_uses}")
            _, lost = agreed(rows, rows[0].shape)
            self._bar(lost, f"are not all that {layer.name} is applied to")
