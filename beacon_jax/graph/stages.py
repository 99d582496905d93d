"""A program cut into stages, at points where little data is live.

What waits between two stages is exactly the data that the later ones need, masks included; parameters and what is
computed from them alone is computed where it is needed. Inside a stage the layers are visited in groups of the same
inputs. Pieces of equal equations are equal, whatever parameters they take, and so share compiled code.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from beacon_jax.graph.layers import Layer
from beacon_jax.graph.program import Constant, Equation, Program

PASSES = 2.0  # how often a stage's equations may run for the statistics of all its layers and its output
NEARLY = 1.25  # so many times the fewest bytes are hardly more


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A function of arrays made of a program's equations; equal to another of the same structure.

    It holds no arrays, so that compiled code, which keeps it, keeps none.

    Attributes:
      equations: in the order in which they run.
      leaves: the parameter leaves that it takes, by number, in order.
      given: the variables that it takes after them, in order.
      constants: the closed-over arrays that it takes last, in order.
      dtypes: of all these variables, as traced.
      wanted: the variables that it returns.
    """

    equations: tuple[Equation, ...]
    leaves: tuple[int, ...]
    given: tuple[int, ...]
    constants: tuple[int, ...]
    dtypes: tuple[Any, ...]
    wanted: tuple[int, ...]
    key: Any

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __eq__(self, other: Any) -> bool:
        return self is other or (isinstance(other, Piece) and self.key == other.key)

    @property
    def size(self) -> int:
        """The number of its equations."""
        return len(self.equations)

    def __call__(
        self,
        leaves: Sequence[jax.Array],
        given: Sequence[jax.Array],
        constants: Sequence[jax.Array],
        through: Mapping[int, Callable[[jax.Array], jax.Array]] | None = None,
    ) -> list[jax.Array]:
        """The values of the variables wanted; arrays are cast to the type that was traced.

        `through` has functions of what an equation makes, by variable; their results take its place.
        """
        replaced = through or {}
        variables = (*self.leaves, *self.given, *self.constants)
        values = zip(variables, (*leaves, *given, *constants), self.dtypes, strict=True)
        env = {v: value if _is_key(dtype) else jnp.asarray(value, dtype) for v, value, dtype in values}
        for equation in self.equations:
            operands = [env[a] if isinstance(a, int) else a.value for a in equation.inputs]
            env.update(zip(equation.outputs, equation.run(*operands), strict=True))
            for v in replaced.keys() & equation.outputs:
                env[v] = replaced[v](env[v])
        return [env[v] for v in self.wanted]


def _is_key(dtype) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def piece(program: Program, given: Sequence[int], wanted: Sequence[int]) -> Piece:
    """The equations that lead from the variables given, and from parameters, to those wanted."""
    made_by = program.made_by
    count = len(program.leaves)
    positions, inputs, stack = set(), set(), list(wanted)
    have = set(given)
    while stack:
        v = stack.pop()
        if v in have:
            continue
        if v not in made_by:
            inputs.add(v)
        elif made_by[v] not in positions:
            positions.add(made_by[v])
            stack += program.equations[made_by[v]].reads
    ordered = tuple(sorted(positions))
    # Parameters and constants in the order of their first use, so that equal pieces take them alike.
    first_use = dict.fromkeys(v for p in ordered for v in program.equations[p].reads if v in inputs)
    first_use |= dict.fromkeys(v for v in wanted if v in inputs)
    leaves = tuple(v for v in first_use if v < count)
    constants = tuple(v for v in first_use if v in program.constants)
    missing = [v for v in first_use if v >= count and v not in program.constants]
    if missing:
        raise ValueError(f"variables {missing} are neither given nor computed from parameters")
    used = {v for p in ordered for v in program.equations[p].reads} | set(wanted)
    given = tuple(v for v in given if v in used)
    key = _structure(program, ordered, (leaves, given, constants), wanted)
    dtypes = tuple(program.avals[v].dtype for v in (*leaves, *given, *constants))
    equations = tuple(program.equations[p] for p in ordered)
    return Piece(equations, leaves, given, constants, dtypes, tuple(wanted), key)


def _structure(program, positions, inputs, wanted):
    number: dict[int, int] = {}
    key: list[Any] = []
    for variables in inputs:
        key.append(len(variables))
        for v in variables:
            number[v] = len(number)
            key.append((program.avals[v].shape, program.avals[v].dtype, bool(program.avals[v].weak_type)))
    for position in positions:
        equation = program.equations[position]
        reads = tuple(a.key if isinstance(a, Constant) else number[a] for a in equation.inputs)
        key.append((equation.key, reads))
        for v in equation.outputs:
            number[v] = len(number)
    return (*key, tuple(number[v] for v in wanted))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a program between two cuts.

    Attributes:
      given: the data at its start.
      groups: its layers; those of one group have the same inputs.
      output: the data at its end.
    """

    given: tuple[int, ...]
    groups: tuple[tuple[Layer, ...], ...]
    output: tuple[int, ...]


def one_stage(program: Program, layers: Sequence[Layer]) -> Stage:
    """The whole program as one stage, each layer a group of its own, in the order given."""
    return Stage(_Lives(program).at(0), tuple((layer,) for layer in layers), ())


def find_stages(program: Program, layers: Sequence[Layer]) -> tuple[Stage, ...]:
    """The program as stages that run one after another.

    It is cut where the data waiting is narrower than at the neighbouring layers, and more finely where a stage would
    otherwise run more than `PASSES` times over (once up to the inputs of each of its groups, once for its output).

    Args:
      program: the program.
      layers: those to be visited; other products are equations like any other.
    """
    groups = _groups(layers)
    count = len(program.equations)
    lives = _Lives(program)
    if len(groups) < 2:
        edges = [0, count]
    else:
        edges = _cuts(lives, groups, count)
    last = edges[-1]
    stages = []
    for start, stop in itertools.pairwise(edges):
        inside = tuple(g for g in groups if start <= g[0].uses[0].position < stop)
        output = () if stop == last else lives.at(stop)
        stages.append(Stage(lives.at(start), inside, output))
    return tuple(stages)


def _groups(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    groups: dict[Any, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.inputs, []).append(layer)
    return [tuple(group) for group in groups.values()]


class _Lives:
    """Which data is live before each equation: made before it, read later."""

    def __init__(self, program: Program):
        _, data = program.depends
        made = {v: 0 for v in program.inputs}
        last: dict[int, int] = {}
        for position, equation in enumerate(program.equations):
            for v in equation.outputs:
                made[v] = position + 1
            for v in equation.reads:
                last[v] = position
        end = len(program.equations)
        last |= {v: end for v in program.outputs if isinstance(v, int)}
        self._spans = [(v, made[v], last[v]) for v in sorted(last) if v in made and data[v]]
        change = [0] * (end + 2)
        for v, start, stop in self._spans:
            if start <= stop:
                change[start] += program.nbytes(v)
                change[stop + 1] -= program.nbytes(v)
        self.bytes = list(itertools.accumulate(change))  # live before equation p
        self.steps = list(itertools.accumulate(_weights(program, data), initial=0))

    def at(self, position: int) -> tuple[int, ...]:
        """The variables live before the equation at that position, in the order in which they were made."""
        return tuple(v for v, start, stop in self._spans if start <= position <= stop)


def _weights(program: Program, data: list[bool]) -> list[int]:
    """1 for every equation on data, and 1 more for each equation on parameters alone that it is the first to need."""
    weight = [0] * len(program.equations)
    needed_at: dict[int, int] = {}
    for position in range(len(weight) - 1, -1, -1):
        equation = program.equations[position]
        on_data = any(data[v] for v in equation.outputs)
        at = position if on_data else min((needed_at[v] for v in equation.outputs if v in needed_at), default=None)
        if at is not None:
            weight[at] += 1
            needed_at |= {v: min(at, needed_at.get(v, at)) for v in equation.reads}
    return weight


def _cuts(lives: _Lives, groups: Sequence[Sequence[Layer]], count: int) -> list[int]:
    """Positions of the cuts, 0 and the end included.

    Between each two groups there is a best point. Those with no more bytes than the points before and after them are
    cuts; where a stage would run too often, more of its points are. All of it looks at a point's surroundings alone, so
    that equal blocks are cut alike.
    """
    starts = [min(layer.uses[0].position for layer in group) for group in groups]
    reach = list(itertools.accumulate((max(layer.uses[-1].position for layer in group) for group in groups), max))
    narrow = [_latest_narrow(lives.bytes, range(reach[i - 1] + 1, starts[i] + 1)) for i in range(1, len(groups))]
    points = [p for p in narrow if p is not None]  # none where uses of one layer lie on both sides
    size = [lives.bytes[p] for p in points]
    around = [(size[i - 1] if i else size[i], size[i + 1] if i + 1 < len(size) else size[i]) for i in range(len(size))]
    valleys = [p for p, own, others in zip(points, size, around, strict=True) if own <= min(others)]
    edges = [0]
    for start, stop in itertools.pairwise([0, *valleys, count]):
        inner = [p for p in points if start < p < stop]
        edges += _finer(lives, starts, [start, *inner, stop])
    return edges


def _latest_narrow(sizes: Sequence[int], here: range) -> int | None:
    """Of the positions where hardly more bytes are live than at the narrowest, the last: least is computed again."""
    least = min((sizes[p] for p in here), default=None)
    return None if least is None else max(p for p in here if sizes[p] <= least * NEARLY)


def _finer(lives: _Lives, starts: Sequence[int], points: Sequence[int]) -> list[int]:
    """Ends of the stages between the first and the last of the points: the fewest bytes with few enough passes."""
    best: list[tuple[float, float, list[int]]] = [(0.0, 0.0, [])]  # passes too many, bytes, ends
    for j in range(1, len(points)):
        options = []
        for i in range(j):
            inside = [s for s in starts if points[i] <= s < points[j]]
            over = max(_passes(lives.steps, points[i], points[j], inside) - PASSES, 0.0)
            waiting = lives.bytes[points[i]] if i else 0
            options.append((best[i][0] + over, best[i][1] + waiting, [*best[i][2], points[j]]))
        best.append(min(options))
    return best[-1][2]


def _passes(steps: Sequence[int], start: int, stop: int, starts: Sequence[int]) -> float:
    whole = max(steps[stop] - steps[start], 1)
    return (whole + sum(steps[s] - steps[start] for s in starts)) / whole
