"""The bias of a layer: a parameter with an element for each output, added to its products and used nowhere else."""

import math
from collections import defaultdict
from collections.abc import Sequence

from beacon_jax.graph.layers import Layer
from beacon_jax.graph.program import Program

_MOVES = ("reshape", "transpose", "squeeze", "convert_element_type", "copy")  # of a product on its way to the addition
_SPREADS = (*_MOVES, "broadcast_in_dim")  # of a bias


def find_biases(program: Program, layers: Sequence[Layer]) -> dict[str, int]:
    """{layer name: number of its bias's leaf}, of the layers that have one."""
    readers: dict[int, list[int]] = defaultdict(list)
    for position, equation in enumerate(program.equations):
        for v in equation.reads:
            readers[v].append(position)
    sources = _sources(program, readers)
    found = {}
    for layer in layers:
        biases = {_added(program, readers, sources, use.position) for use in layer.uses}
        *groups, _, outputs = layer.shape
        if len(biases) == 1 and all(use.part is None for use in layer.uses):
            (bias,) = biases
            if bias is not None and program.avals[bias].size == math.prod(groups) * outputs:
                found[layer.name] = bias
    shared = list(found.values())
    return {name: bias for name, bias in found.items() if shared.count(bias) == 1}


def _sources(program, readers):
    """{variable: leaf} of what is one leaf, laid out or repeated, and read by additions alone."""
    sources = {i: i for i in range(len(program.leaves))}
    spoiled = {v for v in program.outputs if isinstance(v, int) and v in sources}
    for equation in program.equations:
        for v in equation.reads:
            if v not in sources:
                continue
            if equation.name in _SPREADS:
                sources[equation.outputs[0]] = sources[v]
            elif equation.name not in ("add", "add_any"):
                spoiled.add(sources[v])
    return {v: leaf for v, leaf in sources.items() if leaf not in spoiled}


def _added(program, readers, sources, position) -> int | None:
    """The leaf that is added to the product at this position, and to nothing else of it."""
    v = program.equations[position].outputs[0]
    while len(readers[v]) == 1 and v not in program.outputs:
        equation = program.equations[readers[v][0]]
        if equation.name in _MOVES:
            v = equation.outputs[0]
        elif equation.name in ("add", "add_any"):
            (other,) = [a for a in equation.inputs if a != v] or [None]
            return sources.get(other) if isinstance(other, int) else None
        else:
            return None
    return None
