"""Which rows of a layer's inputs belong to which example and position of the batch.

Row weights come as an array (B,) or (B, T, …), aligned with the first axes of the batch's arrays. `follow` carries
these axes through the equations of a program, so that each row of each layer gets its weight, whether rows are
flattened, transposed, taken apart by a recurrence step by step, or one for each example.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from beacon_jax.graph.trace import Equation, Program, Unsupported
from beacon_jax.graph.views import ConvView, DotView

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
        return {axis for atoms in self.atoms for axis, _ in atoms if axis is not None}

    def rearranged(self, atoms: Sequence[tuple[Atom, ...]]) -> "Axes":
        """The same facts about a value with these axes."""
        return dataclasses.replace(self, atoms=tuple(atoms))

    def without(self, axes: set[int], name: str) -> "Axes":
        """With these axes of the weights lost by a primitive."""
        atoms = tuple(tuple((None if a in axes else a, n) for a, n in own) for own in self.atoms)
        return dataclasses.replace(self, atoms=atoms, lost=_merged(self.lost, ((a, name) for a in axes)))


def _merged(*pairs):
    merged: dict[int, Any] = {}
    for own in pairs:
        for axis, value in own:
            merged[axis] = max(value, merged[axis]) if axis in merged else value
    return tuple(sorted(merged.items()))


def _still_fixed(operands, known: set[int]):
    """Positions that a value made of these belongs to: none along an axis that it has all of."""
    return tuple(f for f in _merged(*(o.fixed for o in operands)) if f[0] not in known)


def _plain(shape: Sequence[int]) -> Axes:
    return Axes(tuple(((None, n),) for n in shape))


def follow(program: Program, shape: tuple[int, ...]) -> list[Axes]:
    """For every variable of the program, what its axes are of weights of that shape."""
    found = [_plain(aval.shape) for aval in program.avals]
    for v in program.inputs:
        own = program.avals[v].shape
        depth = len(shape) if own[: len(shape)] == shape else int(own[:1] == shape[:1])
        found[v] = Axes(tuple(((i if i < depth else None, n),) for i, n in enumerate(own)))
    for equation in program.equations:
        operands = [found[a] if isinstance(a, int) else _plain(a.aval.shape) for a in equation.inputs]
        if not any(o.known or o.fixed or o.lost for o in operands):
            continue
        made = [program.avals[v].shape for v in equation.outputs]
        rule = _RULES.get(equation.name, _same_shape)
        for v, axes in zip(equation.outputs, rule(equation, operands, made), strict=True):
            found[v] = axes
    return found


def _same_shape(equation: Equation, operands, made):
    """Elementwise and the like: axes stay where shapes do, and are lost where not."""
    for shape in made:
        fitting = [o for o in operands if tuple(math.prod(n for _, n in own) for own in o.atoms) == tuple(shape)]
        result = functools.reduce(_joined, fitting, _plain(shape))
        gone = set().union(*(o.known for o in operands)) - result.known
        facts = dataclasses.replace(
            result,
            fixed=_still_fixed(operands, result.known),
            lost=_merged(*(o.lost for o in operands), ((a, equation.name) for a in gone)),
        )
        yield facts


def _joined(one: Axes, two: Axes) -> Axes:
    pick = [a if any(axis is not None for axis, _ in a) else b for a, b in zip(one.atoms, two.atoms, strict=True)]
    return Axes(tuple(pick), _merged(one.fixed, two.fixed), _merged(one.lost, two.lost))


def _reshape(equation, operands, made):
    (axes,), (shape,) = operands, made
    flat = [atom for own in axes.atoms for atom in own if atom[1] != 1]
    result, gone = [], set()
    for n in shape:
        own, size = [], 1
        while size < n and flat and n % (size * flat[0][1]) == 0:
            size *= flat[0][1]
            own.append(flat.pop(0))
        if size < n:  # an axis that is cut in two
            axis, whole = flat[0] if flat else (None, n)
            gone |= {axis} - {None}
            rest = whole // (n // size) if flat and whole % (n // size) == 0 else None
            if rest is None:
                gone |= axes.known
                yield axes.rearranged(((None, n),) for n in shape).without(gone, equation.name)
                return
            flat[:1] = [(None, rest)] if rest > 1 else []
            own.append((None, n // size))
        result.append(tuple(own) or ((None, 1),))
    yield axes.rearranged(result).without(gone, equation.name)


def _transpose(equation, operands, made):
    (axes,) = operands
    yield axes.rearranged(axes.atoms[i] for i in equation.params["permutation"])


def _broadcast(equation, operands, made):
    (axes, *_), (shape,) = operands, made
    atoms = [((None, n),) for n in shape]
    for own, to in zip(axes.atoms, equation.params["broadcast_dimensions"], strict=True):
        if math.prod(n for _, n in own) == shape[to]:
            atoms[to] = own
    yield axes.rearranged(atoms)


def _drop(name: str) -> Callable:
    def rule(equation, operands, made):
        axes = operands[0]
        gone = {i % len(axes.atoms) for i in equation.params[name]}
        kept = axes.rearranged(own for i, own in enumerate(axes.atoms) if i not in gone)
        for _ in made:
            yield kept

    return rule


def _slice(equation, operands, made):
    (axes,), (shape,) = operands, made
    yield _cut(axes, shape, equation.params["start_indices"], equation)


def _dynamic_slice(equation, operands, made):
    axes, *starts = operands[0], *equation.inputs[1:]
    sizes = [math.prod(n for _, n in own) for own in axes.atoms]
    known = [
        None if isinstance(s, int) else min(max(int(s.value), 0), size - n)
        for s, size, n in zip(starts, sizes, made[0], strict=True)
    ]
    yield _cut(axes, made[0], known, equation)


def _split(equation, operands, made):
    start, axis = 0, equation.params["axis"]
    for shape, size in zip(made, equation.params["sizes"], strict=True):
        yield _cut(operands[0], shape, [start if i == axis else 0 for i in range(len(shape))], equation)
        start += size


def _cut(axes: Axes, shape, starts, equation: Equation) -> Axes:
    """Of a part of a value: a whole axis stays, one position of an axis is remembered, else it is lost."""
    atoms, fixed, gone = [], dict(axes.fixed), set()
    for own, n, start in zip(axes.atoms, shape, starts, strict=True):
        if n == math.prod(size for _, size in own):
            atoms.append(own)
            continue
        atoms.append(((None, n),))
        labelled = {axis for axis, _ in own} - {None}
        if n == 1 and len(own) == 1 and labelled and start is not None:
            fixed[own[0][0]] = equation.outputs[0], start
        else:
            gone |= labelled
    return Axes(tuple(atoms), tuple(sorted(fixed.items())), axes.lost).without(gone, equation.name)


def _concatenate(equation, operands, made):
    return [_joined_along(equation.params["dimension"], operands, made[0], equation.name)]


def _stack(equation, operands, made):
    axis = equation.params["axis"] % len(made[0])
    wide = [o.rearranged((*o.atoms[:axis], ((None, 1),), *o.atoms[axis:])) for o in operands]
    return [_joined_along(axis, wide, made[0], equation.name)]


def _unstack(equation, operands, made):
    axis = equation.params["axis"] % len(operands[0].atoms)
    for i, shape in enumerate(made):
        wide = (*shape[:axis], 1, *shape[axis:])
        cut = _cut(operands[0], wide, [i if k == axis else 0 for k in range(len(wide))], equation)
        yield cut.rearranged((*cut.atoms[:axis], *cut.atoms[axis + 1 :]))


def _joined_along(axis: int, operands: Sequence[Axes], shape, name: str) -> Axes:
    """Of values put one after another along an axis."""
    joined = functools.reduce(lambda a, b: a if a.known >= b.known else b, operands)
    following = [o for o in operands if o.known or o.fixed or o.lost]
    sizes = [math.prod(n for _, n in o.atoms[axis]) for o in operands]
    gone = {a for o in operands for a, _ in o.atoms[axis]} - {None}
    fixed = dict(_still_fixed(operands, joined.known))
    atoms = [((None, shape[axis]),) if i == axis else own for i, own in enumerate(joined.atoms)]
    if set(sizes) == {1} and len(operands) > 1:  # the steps of a sequence, put together again?
        for a in list(fixed):
            if [dict(o.fixed).get(a, (0, None))[1] for o in following] == list(range(shape[axis])):
                atoms[axis] = ((a, shape[axis]),)
            elif len({dict(o.fixed).get(a, (0, None))[1] for o in following}) > 1:
                gone.add(a)
            else:
                continue
            del fixed[a]
    facts = Axes(tuple(atoms), tuple(sorted(fixed.items())), _merged(*(o.lost for o in operands)))
    return facts.without(gone, name)


def _dot(equation, operands, made):
    contract, batch = equation.params["dimension_numbers"]
    atoms, free, contracted = [], [], set()
    for i, j in zip(*batch, strict=True):
        own, other = operands[0].atoms[i], operands[1].atoms[j]
        atoms.append(own if any(a is not None for a, _ in own) else other)
    for side in (0, 1):
        used = {*batch[side], *contract[side]}
        free.append([own for i, own in enumerate(operands[side].atoms) if i not in used])
        contracted |= {a for i in contract[side] for a, _ in operands[side].atoms[i]} - {None}
    atoms += [*free[0], *free[1]]
    facts = Axes(tuple(atoms), (), _merged(*(o.lost for o in operands)))
    facts = dataclasses.replace(facts, fixed=_still_fixed(operands, facts.known))
    # Positions mixed into others are lost, if none of the operands gives positions of its own; pooled ones are not.
    mixed = contracted - facts.known if all(free) else set()
    yield facts.without(mixed - {0}, equation.name)


def _conv(equation, operands, made):
    view = ConvView.of(equation, [math.prod(n for _, n in own) for own in operands[1].atoms])
    yield _conv_axes(view, operands[0], made[0], equation.params["dimension_numbers"].out_spec)


def _conv_axes(view: ConvView, axes: Axes, shape, out_spec) -> Axes:
    """Of a convolution's output: the batch axis stays, and positions where each has its own output."""
    lhs = view.dimension_numbers.lhs_spec
    atoms = [((None, n),) for n in shape]
    atoms[out_spec[0]] = axes.atoms[lhs[0]]
    gone = set()
    for k, (i, o) in enumerate(zip(lhs[2:], out_spec[2:], strict=True)):
        size = math.prod(n for _, n in axes.atoms[i])
        if size == shape[o] and view.window_strides[k] == 1 and view.lhs_dilation[k] == 1:
            atoms[o] = axes.atoms[i]
        elif shape[o] > 1:
            gone |= {a for a, _ in axes.atoms[i]} - {None}
    return axes.rearranged(atoms).without(gone, "conv_general_dilated")


def _gather(equation, operands, made):
    data, indices = operands[:2]
    p, (shape,) = equation.params["dimension_numbers"], made
    sizes = equation.params["slice_sizes"]
    dropped = (*p.collapsed_slice_dims, *p.operand_batching_dims)
    whole = [i for i in range(len(sizes)) if i not in dropped]
    atoms: list[Any] = [None] * len(shape)
    gone = set()
    for i, o in zip(whole, p.offset_dims, strict=True):
        full = sizes[i] == math.prod(n for _, n in data.atoms[i])
        atoms[o] = data.atoms[i] if full else ((None, shape[o]),)
        gone |= set() if full else {a for a, _ in data.atoms[i]} - {None}
    chosen = indices.atoms[:-1]  # the last axis of the indices is the index vector
    # What is chosen along an axis of the weights has other weights, unless it is one position for each example.
    picked = {a for i in p.collapsed_slice_dims for a, _ in data.atoms[i]} - {None}
    each = math.prod(n for own in chosen for a, n in own if a != 0) == 1
    if each and len(p.collapsed_slice_dims) > 1:
        picked -= {0}
    gone |= set() if each else picked
    stripped = [tuple((None if a in gone else a, n) for a, n in own) for own in chosen]
    batch = iter(stripped)
    atoms = [next(batch) if own is None else own for own in atoms]
    facts = Axes(tuple(atoms), (), _merged(data.lost, indices.lost))
    facts = dataclasses.replace(facts, fixed=_still_fixed((data, indices), facts.known))
    yield facts.without(gone, equation.name)


def _along(name: str) -> Callable:
    """Of operations that move positions along the axes that a parameter names."""

    def rule(equation, operands, made):
        for axes, shape in zip(itertools.chain(operands, itertools.repeat(operands[0])), made, strict=False):
            acted = equation.params[name]
            acted = {i % len(shape) for i in (acted if isinstance(acted, (tuple, list)) else (acted,))}
            yield _with_changed(axes, shape, acted, equation.name)

    return rule


def _fft(equation, operands, made):
    shape = made[0]
    acted = set(range(len(shape) - len(equation.params["fft_lengths"]), len(shape)))
    yield _with_changed(operands[0], shape, acted, equation.name)


def _window(equation, operands, made):
    p, (shape,) = equation.params, made
    still = [
        (w, s) == (1, 1) or (s == 1 and n == math.prod(size for _, size in own))
        for w, s, n, own in zip(p["window_dimensions"], p["window_strides"], shape, operands[0].atoms, strict=True)
    ]
    changed = {i for i, same in enumerate(still) if not same}
    yield _with_changed(operands[0], shape, changed, equation.name)


def _opaque(equation, operands, made):
    """Of programs inside: what is known is that examples stay where they are."""
    for axes in _same_shape(equation, operands, made):
        atoms = [own if i == 0 else tuple((None, n) for _, n in own) for i, own in enumerate(axes.atoms)]
        gone = axes.known - {a for own in atoms for a, _ in own}
        yield axes.rearranged(atoms).without(gone, equation.name)


def _with_changed(axes: Axes, shape, changed: set[int], name: str) -> Axes:
    gone = {a for i in changed for a, _ in axes.atoms[i]} - {None}
    atoms = [((None, shape[i]),) if i in changed else own for i, own in enumerate(axes.atoms)]
    return axes.rearranged(atoms).without(gone, name)


def _pad(equation, operands, made):
    changed = {i for i, cut in enumerate(equation.params["padding_config"]) if any(cut)}
    yield _with_changed(operands[0], made[0], changed, equation.name)


_RULES: dict[str, Callable] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _drop("dimensions"),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "top_k": _along("axis"),
    "pad": _pad,
    "fft": _fft,
} | dict.fromkeys(
    ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"),
    _drop("axes"),
)
_RULES |= dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _window)
_RULES |= dict.fromkeys(("cond", "while", "scan", "pure_callback", "custom_call", "shard_map"), _opaque)


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
            axes = _conv_axes(view, axes, out_shape, spec)
            rows = [axes.atoms[i] for i in (spec[0], *spec[2:])]
        else:
            rows = [axes.atoms[i] for i in view.inputs[2]]
            each = {a for i in view.inputs[0] for a, _ in axes.atoms[i]} - {None}
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

    def __call__(self, weights: jax.Array) -> jax.Array:
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
