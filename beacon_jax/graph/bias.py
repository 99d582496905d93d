"""The bias of a layer: a parameter with an element for each output, added to its products and used nowhere else.

Between the product and the addition there may be shifts and factors of each output that come of parameters alone, as of
a BatchNorm with running statistics: its bias is then the layer's, times these factors.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

from beacon_jax.graph.layers import Layer, Use
from beacon_jax.graph.program import Equation, Program

_CASTS = ("convert_element_type", "copy")
_SPREADS = (*_CASTS, "reshape", "transpose", "squeeze", "broadcast_in_dim")  # of a bias
_SUMS = ("add", "add_any", "sub")


@dataclasses.dataclass(frozen=True)
class Factor:
    """What a product is multiplied by, or divided: a variable, which of its axes are the outputs', +1 or −1."""

    variable: int
    axes: tuple[int, ...]
    power: int


@dataclasses.dataclass(frozen=True)
class Bias:
    """The number of a bias's leaf, and the factors between the product and its addition."""

    leaf: int
    factors: tuple[Factor, ...] = ()


def find_biases(program: Program, layers: Sequence[Layer]) -> dict[str, Bias]:
    """{layer name: its bias}, of the layers that have one."""
    sources, additions = _sources(program)
    found = {}
    for layer in layers:
        biases = {_added(program, sources, use, layer) for use in layer.uses}
        if len(biases) == 1 and all(use.part is None for use in layer.uses):
            (bias,) = biases
            # Added to something else as well, it is not the layer's alone.
            if bias is not None and additions[bias.leaf] == len(layer.uses):
                found[layer.name] = bias
    return found


def _sources(program):
    """{variable: leaf} of what is one leaf, laid out or repeated, and only added; {leaf: number of additions}."""
    sources = {i: i for i in range(len(program.leaves))}
    spoiled = {v for v in program.outputs if isinstance(v, int) and v in sources}
    additions: dict[int, int] = defaultdict(int)
    for equation in program.equations:
        for v in equation.reads:
            if v not in sources:
                continue
            if equation.name in _SPREADS and not _permutes(program, equation):
                sources[equation.outputs[0]] = sources[v]
            elif equation.name in ("add", "add_any"):
                additions[sources[v]] += 1
            else:
                spoiled.add(sources[v])
    return {v: leaf for v, leaf in sources.items() if leaf not in spoiled}, additions


def _permutes(program, equation: Equation) -> bool:
    """Whether an equation puts the elements of its operand in another order."""
    shape = program.avals[equation.reads[0]].shape
    return equation.name == "transpose" and sum(n > 1 for n in shape) > 1


def _added(program, sources, use: Use, layer: Layer) -> Bias | None:
    """What is added to the product of a use, and to nothing else of it."""
    *groups, _, outputs = layer.shape
    size = math.prod(groups) * outputs
    _, data = program.depends
    product = program.equations[use.position]
    v = product.outputs[0]
    axes: tuple[int, ...] | None = use.view.output_axes(product.inputs[0] == use.operand)
    factors: list[Factor] = []
    while axes is not None and len(program.readers[v]) == 1 and v not in program.outputs:
        equation = program.equations[program.readers[v][0]]
        if equation.name in (*_SUMS, "mul", "div"):
            other = _other(equation, v)
            if other is None or data[other] or not _varies_along(program, other, axes):
                return None
            if equation.name in ("mul", "div"):
                factors.append(Factor(other, axes, -1 if equation.name == "div" else 1))
            elif other in sources and program.avals[sources[other]].size == size and equation.name != "sub":
                return Bias(sources[other], tuple(factors))
        else:
            axes = _moved(program, equation, axes)
        v = equation.outputs[0]
    return None


def _other(equation: Equation, v: int) -> int | None:
    """The other operand; None where there is none, or v is what is subtracted or divided by."""
    first, second = equation.inputs
    if first == v and isinstance(second, int) and second != v:
        return second
    return first if equation.name in ("add", "add_any", "mul") and isinstance(first, int) and second == v else None


def _moved(program, equation: Equation, axes) -> tuple[int, ...] | None:
    """Where the axes are after an equation that moves elements about; None where that is no such, or they are lost."""
    if equation.name in _CASTS:
        return axes
    if equation.name == "transpose":
        moved = tuple(equation.params["permutation"].index(a) for a in axes)
        return moved if list(moved) == sorted(moved) else None
    if equation.name not in ("reshape", "squeeze"):
        return None
    old, new = (program.avals[v].shape for v in (equation.inputs[0], equation.outputs[0]))
    found = [_block(old, new, a) for a in _runs(axes)]
    blocks = [block for block in found if block is not None]
    return tuple(a for block in blocks for a in block) if len(blocks) == len(found) else None


def _runs(axes):
    """Axes one after another, together."""
    runs: list[list[int]] = []
    for a in axes:
        if runs and runs[-1][-1] == a - 1:
            runs[-1].append(a)
        else:
            runs.append([a])
    return runs


def _block(old, new, run) -> tuple[int, ...] | None:
    """The axes of the shape `new` that hold what the run of axes of `old` does; None where others are among them."""
    before, size = math.prod(old[: run[0]]), math.prod(old[a] for a in run)
    for start in range(len(new)):
        if math.prod(new[:start]) != before or new[start] == 1:
            continue
        for stop in range(start + 1, len(new) + 1):
            if math.prod(new[start:stop]) == size:
                return tuple(range(start, stop))
    return () if size == 1 else None


def _varies_along(program, v: int, axes) -> bool:
    """Whether a variable of the product's shape is the same along all other axes, as far as broadcasts tell."""
    return _varying(program, v) <= set(axes)


def _varying(program, v: int) -> set[int]:
    """The axes along which a variable may vary."""
    shape = program.avals[v].shape
    whole = {a for a, n in enumerate(shape) if n > 1}
    if v not in program.made_by:
        return whole
    equation = program.equations[program.made_by[v]]
    inputs = [a for a in equation.inputs if isinstance(a, int)]
    if equation.name == "broadcast_in_dim" and inputs:
        dimensions = equation.params["broadcast_dimensions"]
        return {dimensions[a] for a in _varying(program, inputs[0])}
    if all(program.avals[a].shape == shape for a in inputs) and len(equation.outputs) == 1 and equation.name in _EACH:
        return set().union(*(_varying(program, a) for a in inputs)) if inputs else set()
    if equation.name in ("reshape", "squeeze") and inputs:
        old = program.avals[inputs[0]].shape
        found = [_block(old, shape, [a]) for a in sorted(_varying(program, inputs[0]))]
        blocks = [block for block in found if block is not None]
        return {a for block in blocks for a in block} if len(blocks) == len(found) else whole
    return whole


# Equations that work on each element for itself.
_EACH = (*_CASTS, "add", "add_any", "sub", "mul", "div", "rsqrt", "sqrt", "neg", "max", "integer_pow", "exp", "square")
