"""The weight of each row of a layer's inputs."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from beacon_jax.graph.axes import Atom, Axes, conv_axes, labels_of, plain
from beacon_jax.graph.axis_rules import RULES, same_shape
from beacon_jax.graph.program import Program, Unsupported
from beacon_jax.graph.views import ConvView, DotView


def follow(program: Program, shape: tuple[int, ...]) -> list[Axes]:
    """For every variable of the program, what its axes are of weights of that shape."""
    found = [plain(aval.shape) for aval in program.avals]
    for v in program.inputs:
        own = program.avals[v].shape
        depth = len(shape) if own[: len(shape)] == shape else int(own[:1] == shape[:1])
        found[v] = Axes(tuple(((i if i < depth else None, n),) for i, n in enumerate(own)))
    for equation in program.equations:
        operands = [found[a] if isinstance(a, int) else plain(a.aval.shape) for a in equation.inputs]
        if not any(o.known or o.fixed or o.lost for o in operands):
            continue
        made = [program.avals[v].shape for v in equation.outputs]
        rule = RULES.get(equation.name, same_shape)
        for v, axes in zip(equation.outputs, rule(equation, operands, made), strict=True):
            found[v] = axes
    return found


@dataclasses.dataclass(frozen=True)
class RowWeights:
    """How the weights of a use's rows come from the weights given: taken at `fixed`, the largest over `pooled`, then
    laid out by `atoms`."""

    atoms: tuple[Atom, ...]
    fixed: tuple[tuple[int, int], ...]
    pooled: tuple[int, ...]

    @classmethod
    def of(
        cls, axes: Axes, view: DotView | ConvView, out_shape: tuple[int, ...], rank: int, layer: str
    ) -> "RowWeights":
        """For rows that `view` makes of a value with these axes; weights have `rank` axes.

        Raises:
          Unsupported: an axis of the weights was lost on the way.
        """
        if isinstance(view, ConvView):
            spec = view.dimension_numbers.out_spec
            axes = conv_axes(view, axes, out_shape, spec)
            rows = [axes.atoms[i] for i in (spec[0], *spec[2:])]
        else:
            rows = [axes.atoms[i] for i in view.inputs[2]]
            each = set().union(*(labels_of(axes.atoms[i]) for i in view.inputs[0]))
            if each:
                raise Unsupported(f"the weights' axis {min(each)} is that of the groups of {layer}; leave weights out")
        atoms, here = [], set()
        for a, n in (atom for own in rows for atom in own):
            atoms.append((None if a in here else a, n))  # of two axes of the same, as in a square of scores, the first
            here |= {a} - {None}
        fixed = tuple((a, i) for a, (_, i) in axes.fixed if a not in here)
        rest = tuple(a for a in range(rank) if a not in here and a not in dict(fixed))
        for axis in rest:
            if axis in dict(axes.lost):
                instead = "give weights (B,) for whole examples, or leave them out" if axis else "leave them out"
                raise Unsupported(
                    f"the weights' axis {axis} cannot be followed to the inputs of {layer}: {dict(axes.lost)[axis]} "
                    f"takes it apart; {instead}"
                )
        return cls(tuple(atoms), fixed, rest)

    def __call__(self, weights: Shaped[jax.Array, "*axes"]) -> Shaped[jax.Array, " m"]:
        """(m,) weights of the rows."""
        axes = list(range(weights.ndim))
        for axis, index in self.fixed:
            weights = jnp.take(weights, index, axes.index(axis))
            axes.remove(axis)
        for axis in self.pooled:
            weights = weights.max(axes.index(axis))
            axes.remove(axis)
        order = [a for a, _ in self.atoms if a is not None]
        weights = weights.transpose([axes.index(a) for a in order])
        known = iter(weights.shape)
        shape = [next(known) if a is not None else 1 for a, _ in self.atoms]
        return jnp.broadcast_to(weights.reshape(shape), [n for _, n in self.atoms]).reshape(-1)
