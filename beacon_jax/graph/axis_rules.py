"""How each primitive carries the weights' axes from its operands to its outputs: one rule each."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from beacon_jax.graph.axes import Axes, conv_axes, cut, joined, joined_along, merged, plain, still_fixed, with_changed
from beacon_jax.graph.program import Equation
from beacon_jax.graph.views import ConvView


def same_shape(equation: Equation, operands: Sequence[Axes], made: Sequence[tuple]) -> Iterator[Axes]:
    """Elementwise and the like: axes stay where shapes do, and are lost where not."""
    for shape in made:
        fitting = [o for o in operands if tuple(math.prod(n for _, n in own) for own in o.atoms) == tuple(shape)]
        result = functools.reduce(joined, fitting, plain(shape))
        gone = set().union(*(o.known for o in operands)) - result.known
        facts = dataclasses.replace(
            result,
            fixed=still_fixed(operands, result.known),
            lost=merged(*(o.lost for o in operands), ((a, equation.name) for a in gone)),
        )
        yield facts


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
    yield cut(axes, shape, equation.params["start_indices"], equation)


def _dynamic_slice(equation, operands, made):
    axes, starts = operands[0], equation.inputs[1:]
    sizes = [math.prod(n for _, n in own) for own in axes.atoms]
    known = [
        None if isinstance(s, int) else min(max(int(s.value), 0), size - n)
        for s, size, n in zip(starts, sizes, made[0], strict=True)
    ]
    yield cut(axes, made[0], known, equation)


def _split(equation, operands, made):
    start, axis = 0, equation.params["axis"]
    for shape, size in zip(made, equation.params["sizes"], strict=True):
        yield cut(operands[0], shape, [start if i == axis else 0 for i in range(len(shape))], equation)
        start += size


def _concatenate(equation, operands, made):
    return [joined_along(equation.params["dimension"], operands, made[0], equation.name)]


def _stack(equation, operands, made):
    axis = equation.params["axis"] % len(made[0])
    wide = [o.rearranged((*o.atoms[:axis], ((None, 1),), *o.atoms[axis:])) for o in operands]
    return [joined_along(axis, wide, made[0], equation.name)]


def _unstack(equation, operands, made):
    axis = equation.params["axis"] % len(operands[0].atoms)
    for i, shape in enumerate(made):
        wide = (*shape[:axis], 1, *shape[axis:])
        one = cut(operands[0], wide, [i if k == axis else 0 for k in range(len(wide))], equation)
        yield one.rearranged((*one.atoms[:axis], *one.atoms[axis + 1 :]))


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
    facts = Axes(tuple(atoms), (), merged(*(o.lost for o in operands)))
    facts = dataclasses.replace(facts, fixed=still_fixed(operands, facts.known))
    # Positions mixed into others are lost, if none of the operands gives positions of its own; pooled ones are not.
    mixed = contracted - facts.known if all(free) else set()
    yield facts.without(mixed - {0}, equation.name)


def _conv(equation, operands, made):
    view = ConvView.of(equation, tuple(math.prod(n for _, n in own) for own in operands[1].atoms))
    yield conv_axes(view, operands[0], made[0], equation.params["dimension_numbers"].out_spec)


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
    facts = Axes(tuple(atoms), (), merged(data.lost, indices.lost))
    facts = dataclasses.replace(facts, fixed=still_fixed((data, indices), facts.known))
    yield facts.without(gone, equation.name)


def _along(name: str) -> Callable:
    """Of operations that move positions along the axes that a parameter names."""

    def rule(equation, operands, made):
        for axes, shape in zip(itertools.chain(operands, itertools.repeat(operands[0])), made, strict=False):
            acted = equation.params[name]
            acted = {i % len(shape) for i in (acted if isinstance(acted, (tuple, list)) else (acted,))}
            yield with_changed(axes, shape, acted, equation.name)

    return rule


def _fft(equation, operands, made):
    shape = made[0]
    acted = set(range(len(shape) - len(equation.params["fft_lengths"]), len(shape)))
    yield with_changed(operands[0], shape, acted, equation.name)


def _window(equation, operands, made):
    p, (shape,) = equation.params, made
    still = [
        (w, s) == (1, 1) or (s == 1 and n == math.prod(size for _, size in own))
        for w, s, n, own in zip(p["window_dimensions"], p["window_strides"], shape, operands[0].atoms, strict=True)
    ]
    changed = {i for i, same in enumerate(still) if not same}
    yield with_changed(operands[0], shape, changed, equation.name)


def _opaque(equation, operands, made):
    """Of programs inside: what is known is that examples stay where they are."""
    for axes in same_shape(equation, operands, made):
        atoms = [own if i == 0 else tuple((None, n) for _, n in own) for i, own in enumerate(axes.atoms)]
        gone = axes.known - {a for own in atoms for a, _ in own}
        yield axes.rearranged(atoms).without(gone, equation.name)


def _pad(equation, operands, made):
    changed = {i for i, cut in enumerate(equation.params["padding_config"]) if any(cut)}
    yield with_changed(operands[0], made[0], changed, equation.name)


RULES: dict[str, Callable] = {
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


RULES |= dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _window)


RULES |= dict.fromkeys(("cond", "while", "scan", "pure_callback", "custom_call", "shard_map"), _opaque)
