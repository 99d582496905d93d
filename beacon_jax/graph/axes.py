"""Which rows of a layer's inputs belong to which example and position of the batch.

Row weights come as an array (B,) or (B, T, …), aligned with the first axes of the batch's arrays. Their axes are
carried through the equations of a program (axis_rules.py), so that each row of each layer gets its weight
(row_weights.py), whether rows are flattened, transposed, taken apart by a recurrence step by step, or one for each
example.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from beacon_jax.graph.program import Equation
from beacon_jax.graph.views import ConvView

Atom = tuple[int | None, int]  # (axis of the weights or None, size); a flattened axis of a value holds several


@dataclasses.dataclass(frozen=True)
class Axes:
    """What a value's axes are of the weights' axes.

    Attributes:
      atoms: for each axis of the value.
      fixed: {axis of the weights: (order, index)} where the value belongs to one position alone; of several, as in a
        recurrence the last step's and this one's, the one that was cut out last counts (the highest order).
      lost: {axis of the weights: primitive} that could not be followed through that primitive.
    """

    atoms: tuple[tuple[Atom, ...], ...]
    fixed: tuple[tuple[int, tuple[int, int]], ...] = ()
    lost: tuple[tuple[int, str], ...] = ()

    @property
    def known(self) -> set[int]:
        """The axes of the weights that it still has."""
        return set().union(*map(labels_of, self.atoms))

    def rearranged(self, atoms: Sequence[tuple[Atom, ...]]) -> "Axes":
        """The same facts about a value with these axes."""
        return dataclasses.replace(self, atoms=tuple(atoms))

    def without(self, axes: set[int], name: str) -> "Axes":
        """With these axes of the weights lost by a primitive."""
        atoms = tuple(tuple((None if a in axes else a, n) for a, n in own) for own in self.atoms)
        return dataclasses.replace(self, atoms=atoms, lost=merged(self.lost, ((a, name) for a in axes)))


def labels_of(atoms: Sequence[Atom]) -> set[int]:
    """The axes of the weights among these atoms."""
    return {axis for axis, _ in atoms if axis is not None}


def merged(*pairs: Iterable[tuple[int, Any]]) -> tuple[tuple[int, Any], ...]:
    """Facts (axis, value) of several values together; of two about one axis the larger, so the later position."""
    found: dict[int, Any] = {}
    for own in pairs:
        for axis, value in own:
            found[axis] = max(value, found[axis]) if axis in found else value
    return tuple(sorted(found.items()))


def still_fixed(operands: Iterable[Axes], known: set[int]) -> tuple[tuple[int, Any], ...]:
    """Positions that a value made of these belongs to: none along an axis that it has all of."""
    return tuple(f for f in merged(*(o.fixed for o in operands)) if f[0] not in known)


def plain(shape: Sequence[int]) -> Axes:
    """Of a value of that shape that has none of the weights' axes."""
    return Axes(tuple(((None, n),) for n in shape))


def joined(one: Axes, two: Axes) -> Axes:
    """Of an elementwise combination of two values of one shape."""
    pick = [a if any(axis is not None for axis, _ in a) else b for a, b in zip(one.atoms, two.atoms, strict=True)]
    return Axes(tuple(pick), merged(one.fixed, two.fixed), merged(one.lost, two.lost))


def cut(axes: Axes, shape, starts, equation: Equation) -> Axes:
    """Of a part of a value: a whole axis stays, one position of an axis is remembered, else it is lost."""
    atoms, fixed, gone = [], dict(axes.fixed), set()
    for own, n, start in zip(axes.atoms, shape, starts, strict=True):
        if n == math.prod(size for _, size in own):
            atoms.append(own)
            continue
        atoms.append(((None, n),))
        labelled = labels_of(own)
        if n == 1 and len(own) == 1 and labelled and start is not None:
            fixed[min(labelled)] = equation.outputs[0], start
        else:
            gone |= labelled
    return Axes(tuple(atoms), tuple(sorted(fixed.items())), axes.lost).without(gone, equation.name)


def joined_along(axis: int, operands: Sequence[Axes], shape, name: str) -> Axes:
    """Of values put one after another along an axis."""
    fullest = functools.reduce(lambda a, b: a if a.known >= b.known else b, operands)
    following = [o for o in operands if o.known or o.fixed or o.lost]
    sizes = [math.prod(n for _, n in o.atoms[axis]) for o in operands]
    gone = set().union(*(labels_of(o.atoms[axis]) for o in operands))
    fixed = dict(still_fixed(operands, fullest.known))
    atoms = [((None, shape[axis]),) if i == axis else own for i, own in enumerate(fullest.atoms)]
    if set(sizes) == {1} and len(operands) > 1:  # the steps of a sequence, put together again?
        for a in list(fixed):
            if [dict(o.fixed).get(a, (0, None))[1] for o in following] == list(range(shape[axis])):
                atoms[axis] = ((a, shape[axis]),)
            elif len({dict(o.fixed).get(a, (0, None))[1] for o in following}) > 1:
                gone.add(a)
            else:
                continue
            del fixed[a]
    facts = Axes(tuple(atoms), tuple(sorted(fixed.items())), merged(*(o.lost for o in operands)))
    return facts.without(gone, name)


def with_changed(axes: Axes, shape, changed: set[int], name: str) -> Axes:
    """Of a value of that shape with these of its axes changed by a primitive, so that they are lost."""
    gone = set().union(*(labels_of(axes.atoms[i]) for i in changed))
    atoms = [((None, shape[i]),) if i in changed else own for i, own in enumerate(axes.atoms)]
    return axes.rearranged(atoms).without(gone, name)


def conv_axes(view: ConvView, axes: Axes, shape, out_spec) -> Axes:
    """Of a convolution's output: the batch axis stays, and positions where each has its own output."""
    lhs = view.dimension_numbers.lhs_spec
    atoms: list[tuple[Atom, ...]] = [((None, n),) for n in shape]
    atoms[out_spec[0]] = axes.atoms[lhs[0]]
    gone = set()
    for k, (i, o) in enumerate(zip(lhs[2:], out_spec[2:], strict=True)):
        size = math.prod(n for _, n in axes.atoms[i])
        if size == shape[o] and view.window_strides[k] == 1 and view.lhs_dilation[k] == 1:
            atoms[o] = axes.atoms[i]
        elif shape[o] > 1:
            gone |= labels_of(axes.atoms[i])
    return axes.rearranged(atoms).without(gone, "conv_general_dilated")
