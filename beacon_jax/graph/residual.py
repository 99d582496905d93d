"""The residual stream beside a layer: the data that its output is added to, the bias being in it."""

from collections.abc import Sequence

from beacon_jax.graph.layers import Layer
from beacon_jax.graph.program import Program

_MOVES = ("reshape", "squeeze", "convert_element_type", "copy", "name", "sharding_constraint")


def find_residuals(program: Program, layers: Sequence[Layer]) -> dict[str, int]:
    """{layer name: the variable that its output is added to}, of the layers that have such an addition.

    Their rows are those of the layer's inputs, in order, and nothing in them depends on the layer itself. Layers with
    several uses or groups, and those whose output is transposed, scaled or otherwise changed before, are left out.
    """
    found = {}
    for layer in layers:
        use = layer.uses[0]
        if len(layer.uses) == 1 and len(layer.shape) == 2 and layer.kind == "dense" and use.part is None:
            residual = _added(program, use.position, layer.shape[-1])
            if residual is not None:
                found[layer.name] = residual
    return found


def _added(program, position, outputs) -> int | None:
    """The data that is added to the product at that position and to nothing else of it; parameters are passed over."""
    _, data = program.depends
    made = v = program.equations[position].outputs[0]
    while program.avals[v].shape[-1:] == (outputs,) and len(program.readers[v]) == 1 and v not in program.outputs:
        equation = program.equations[program.readers[v][0]]
        if equation.name not in (*_MOVES, "add", "add_any"):
            return None
        if equation.name not in _MOVES:
            others = [a for a in equation.inputs if a != v]
            if len(others) != 1:
                return None
            (other,) = others
            if isinstance(other, int) and data[other]:
                same = program.avals[other].shape == program.avals[v].shape
                return other if same and not _follows(program, other, made, position) else None
        v = equation.outputs[0]
        if program.avals[v].size != program.avals[made].size:
            return None
    return None


def _follows(program, v, made, position) -> bool:
    """Whether v depends on what the equation at that position made."""
    stack, seen = [v], set()
    while stack:
        v = stack.pop()
        if v == made:
            return True
        before = program.made_by.get(v, -1)
        if before > position and before not in seen:
            seen.add(before)
            stack += program.equations[before].reads
    return False
