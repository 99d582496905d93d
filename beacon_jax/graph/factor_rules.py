"""How each primitive carries factors of its operands' elements on to its outputs.

Say that every element of a value is multiplied by a factor of its own: which of these is written as an array of labels
of the value's shape, the factor's number, or NONE where the factor is always 1. A primitive carries factors where the
outputs for the multiplied operands are the outputs as they were, multiplied by factors, whatever these (positive)
factors are. Labels are mostly views with strides of 0, so they take little memory however many rows a value has.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from beacon_jax.graph.layers import Use
from beacon_jax.graph.program import Constant, Equation
from beacon_jax.graph.views import ConvView, Layout

NONE = -1

Labels = np.ndarray | None  # None: all NONE
Carried = tuple[Sequence[Labels], Sequence[np.ndarray]]  # labels of the outputs, and labels that cannot go on


def thin(*arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays of one shape, each axis along which all of them repeat one element cut down to 1."""
    shape = arrays[0].shape
    repeats = [all(a.strides[i] == 0 for a in arrays) for i in range(len(shape))]
    return [a[tuple(slice(0, 1) if same else slice(None) for same in repeats)] for a in arrays]


def lined_up(labels: np.ndarray, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels with these axes cut down to 1, NONE where they differ along them, and the labels that do."""
    first = labels[tuple(slice(0, 1) if i in axes else slice(None) for i in range(labels.ndim))]
    if all(labels.strides[i] == 0 or labels.shape[i] == 1 for i in axes):
        return first, labels[:0]
    same = (labels == first).all(axis=tuple(axes), keepdims=True)
    return np.where(same, first, NONE), labels[np.broadcast_to(~same, labels.shape)]


def agreed(operands: Sequence[Labels], shape: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels that all operands of that shape have alike, and those that not all have."""
    whole = thin(*(np.broadcast_to(NONE if o is None else o, shape) for o in operands))
    same = np.logical_and.reduce([w == whole[0] for w in whole])
    return np.broadcast_to(np.where(same, whole[0], NONE), shape), [w[~same] for w in whole]


def _sum(equation, operands, shapes) -> Carried:
    labels, lost = agreed(operands, shapes[0])
    return [labels], lost


def _select(equation, operands, shapes) -> Carried:
    labels, lost = agreed(operands[1:], shapes[0])
    return [labels], [*lost, *(o for o in operands[:1] if o is not None)]


def _largest(equation, operands, shapes) -> Carried:
    # max(x, 0) and min(x, 0) as well: 0 has any factor.
    labels, lost = agreed([o for o, a in zip(operands, equation.inputs, strict=True) if not _is_zero(a)], shapes[0])
    return [labels], lost


def _is_zero(operand) -> bool:
    return isinstance(operand, Constant) and not np.any(operand.value)


def _product(equation, operands, shapes) -> Carried:
    one, two = thin(*(np.broadcast_to(NONE if o is None else o, shapes[0]) for o in operands))
    both = (one != NONE) & (two != NONE)
    labels = np.where(both, NONE, np.maximum(one, two))
    return [np.broadcast_to(labels, shapes[0])], [one[both], two[both]]


def _quotient(equation, operands, shapes) -> Carried:
    above, below = operands
    return [above if above is None else np.broadcast_to(above, shapes[0])], [] if below is None else [below]


def _broadcast(equation, operands, shapes) -> Carried:
    labels = operands[0]
    wide = [1] * len(shapes[0])
    for own, to in zip(labels.shape, equation.params["broadcast_dimensions"], strict=True):
        wide[to] = own
    return [np.broadcast_to(labels.reshape(wide), shapes[0])], []


def _reduce(equation, operands, shapes) -> Carried:
    labels, lost = lined_up(operands[0], equation.params["axes"])
    return [labels.reshape(shapes[0])], [lost]


def _pool(equation, operands, shapes) -> Carried:
    p = equation.params
    moves = p["window_dimensions"], p["window_strides"], p["base_dilation"], p["padding"]
    pooled = [i for i, own in enumerate(zip(*moves, strict=True)) if own != (1, 1, 1, (0, 0))]
    labels, lost = lined_up(operands[0], pooled)
    return [np.broadcast_to(labels, shapes[0])], [lost]


def _concatenate(equation, operands, shapes, sizes) -> Carried:
    whole = [np.broadcast_to(NONE if o is None else o, size) for o, size in zip(operands, sizes, strict=True)]
    return [np.concatenate(whole, equation.params["dimension"])], []


def _stack(equation, operands, shapes, sizes) -> Carried:
    whole = [np.broadcast_to(NONE if o is None else o, size) for o, size in zip(operands, sizes, strict=True)]
    return [np.stack(whole, equation.params["axis"] % len(shapes[0]))], []


def _dynamic_slice(equation, operands, shapes) -> Carried:
    labels, *starts = operands
    if labels is None or any(s is not None for s in starts):
        return [None], [o for o in operands if o is not None]
    cut = [i for i, n in enumerate(shapes[0]) if n != labels.shape[i]]
    labels, lost = lined_up(labels, cut)
    return [np.broadcast_to(labels, shapes[0])], [lost]


def _dot(equation, operands, shapes) -> Carried:
    if all(o is not None for o in operands):
        return [None], operands
    side = 0 if operands[0] is not None else 1
    contract, batch = equation.params["dimension_numbers"]
    labels, lost = lined_up(operands[side], contract[side])
    free = [i for i in range(labels.ndim) if i not in (*contract[side], *batch[side])]
    labels = labels.transpose((*batch[side], *free, *contract[side]))
    own = [labels.shape[i] for i in range(len(batch[side]) + len(free))]
    others = len(shapes[0]) - len(own)  # free dimensions of the other operand, which come first if it does
    where = len(batch[side]) if side else len(own)
    wide = labels.reshape((*own[:where], *(1,) * others, *own[where:]))
    return [np.broadcast_to(wide, shapes[0])], [lost]


_RULES: dict[str, Callable[..., Carried]] = {
    "add": _sum,
    "add_any": _sum,
    "sub": _sum,
    "max": _largest,
    "min": _largest,
    "select_n": _select,
    "mul": _product,
    "div": _quotient,
    "neg": lambda equation, operands, shapes: (operands, []),
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduce),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _pool),
    "dynamic_slice": _dynamic_slice,
    "dot_general": _dot,
}
_SIZED = {"concatenate": _concatenate, "stack": _stack}  # rules that need the shapes of unlabelled operands, too

_COMPARISONS = ("eq", "ne", "ge", "gt", "le", "lt")

SUMS = ("add", "add_any", "sub")

_REASONS = {
    **dict.fromkeys(SUMS, "are added to other values"),
    "mul": "are multiplied by each other",
    "div": "divide other values",
    "select_n": "are mixed with other values (select_n)",
    "reduce_sum": "are summed over (reduce_sum)",
    "dot_general": "are summed over, or multiplied by each other, in a product that is no layer's (dot_general)",
}


def reason(equation: Equation) -> str:
    """Why factors cannot go on from there."""
    return _REASONS.get(equation.name, f"go through {equation.name}")


def carry(equation: Equation, operands: Sequence[Labels], sizes: Sequence[tuple], shapes: Sequence[tuple]) -> Carried:
    """The labels of an equation's outputs.

    Args:
      equation: the equation.
      operands: labels of its inputs, at least one of them not None.
      sizes: shapes of its inputs.
      shapes: shapes of its outputs.

    Returns:
      (labels of each output, arrays of the labels of factors that must be 1 for the equation to carry the others).
    """
    if len(operands) == 1 and (own := operands[0]) is not None:
        if (labels := layout(equation, own, shapes)) is not None:
            return labels, []
    if equation.name in _SIZED:
        return _SIZED[equation.name](equation, operands, shapes, sizes)
    if equation.name in _RULES:
        return _RULES[equation.name](equation, operands, shapes)
    if equation.name in _COMPARISONS and any(map(_is_zero, equation.inputs)):
        return [None], []  # positive factors change no sign
    return [None] * len(shapes), [o for o in operands if o is not None]


def layout(equation: Equation, labels: np.ndarray, shapes: Sequence[tuple]) -> list[np.ndarray] | None:
    """Labels of the outputs of a layout equation; None where it is none."""
    made = []
    for output, shape in enumerate(shapes):
        sizes = labels.size, int(np.prod(shape, dtype=np.int64))
        step = Layout().then(equation, output, sizes)
        if step is None:
            return None
        made.append(step(labels))
    return made


def carries(equation: Equation) -> bool:
    """Whether there are factors that such an equation carries."""
    known = equation.name in _RULES or equation.name in _SIZED
    return known or Layout().then(equation, 0, (1, 1)) is not None


def of_outputs(equation: Equation, use: Use, side: int, columns: np.ndarray, kernel: tuple, shape: tuple) -> Labels:
    """Labels of a product's output of that shape.

    Args:
      equation: the product.
      use: of the layer.
      side: which of the equation's inputs is the kernel.
      columns: labels of the kernel's columns, (E·C,).
      kernel: shape of the kernel's operand.
      shape: shape of the output.
    """
    if isinstance(use.view, ConvView):
        channel = equation.params["dimension_numbers"].out_spec[1]
        return np.broadcast_to(columns.reshape([-1 if i == channel else 1 for i in range(len(shape))]), shape)
    batch, contract, free = use.view.kernel
    own = columns.reshape([*(kernel[i] for i in batch), *(1 for _ in contract), *(kernel[i] for i in free)])
    operand = np.broadcast_to(own.transpose(np.argsort((*batch, *contract, *free))), kernel)
    return _dot(equation, [operand if i == side else None for i in (0, 1)], [shape])[0][0]


def of_rows(use: Use, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a kernel's rows, (N,) or (E, N), of those of its data; NONE where rows of data differ, and these."""
    view = use.view
    if isinstance(view, ConvView):
        spec = view.dimension_numbers.lhs_spec
        labels, lost = lined_up(labels, (spec[0], *spec[2:]))
        rows = np.repeat(labels.reshape(view.groups, -1), math.prod(view.window), axis=1)
        return rows if view.groups > 1 else rows[0], lost
    batch, contract, free = view.inputs
    labels, lost = lined_up(labels, free)
    rows = labels.transpose((*batch, *free, *contract))
    return rows.reshape((view.groups, -1) if view.groups > 1 else (-1,)), lost
