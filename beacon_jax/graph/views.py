"""A kernel as (E, N, C) and its inputs as (E, m, N): how a product is seen as E matrix products.

E groups (batch dimensions, experts, feature groups of a convolution), N contracted inputs, C outputs, m rows. With one
group the leading axis is left out: kernels are (N, C) and inputs (m, N).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from beacon_jax.graph.program import Equation


def _slice(a, params):
    strides = params["strides"] or (1,) * a.ndim
    return a[tuple(slice(*s) for s in zip(params["start_indices"], params["limit_indices"], strides, strict=True))]


def _reverse(a, dimensions):
    return a[tuple(slice(None, None, -1 if i in dimensions else 1) for i in range(a.ndim))]


def _split(a, params, output):
    edges = np.cumsum((0, *params["sizes"]))
    return a[(slice(None),) * params["axis"] + (slice(int(edges[output]), int(edges[output + 1])),)]


# Equations that move a leaf's elements about and change none of them, as functions of a NumPy or JAX array.
_LAYOUT = {
    "reshape": lambda a, params, _: a.reshape(params["new_sizes"]),
    "transpose": lambda a, params, _: a.transpose(params["permutation"]),
    "squeeze": lambda a, params, _: a.reshape([n for i, n in enumerate(a.shape) if i not in params["dimensions"]]),
    "broadcast_in_dim": lambda a, params, _: a.reshape(params["shape"]),  # only where it repeats nothing
    "slice": lambda a, params, _: _slice(a, params),
    "split": lambda a, params, output: _split(a, params, output),
    "unstack": lambda a, params, output: a[(slice(None),) * (params["axis"] % a.ndim) + (output,)],
    "rev": lambda a, params, _: a[
        tuple(slice(None, None, -1 if i in params["dimensions"] else 1) for i in range(a.ndim))
    ],
} | dict.fromkeys(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "name", "sharding_constraint", "layout_constraint"),
    lambda a, params, _: a,
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The way from a parameter leaf to a product's operand, by layout equations alone."""

    steps: tuple[tuple[str, Any, int], ...] = ()

    def then(self, equation: Equation, output: int, sizes: tuple[int, int]) -> "Layout | None":
        """One equation further, None where it is no layout equation; sizes are those of its input and output."""
        name = equation.name
        if name not in _LAYOUT or (name == "broadcast_in_dim" and sizes[0] != sizes[1]):
            return None
        if name == "convert_element_type" and not jnp.issubdtype(equation.params["new_dtype"], jnp.floating):
            return None
        return Layout((*self.steps, (name, _Params(equation.params), output)))

    def __call__(self, leaf: Any) -> Any:
        """The operand, of a leaf given as NumPy or JAX array; casts are left out."""
        for name, params, output in self.steps:
            leaf = _LAYOUT[name](leaf, params.values, output)
        return leaf


class _Params:
    """An equation's parameters, compared by what they print as."""

    def __init__(self, values):
        self.values, self._text = values, repr(sorted(values.items()))

    def __hash__(self):
        return hash(self._text)

    def __eq__(self, other):
        return self._text == other._text


@dataclasses.dataclass(frozen=True)
class DotView:
    """dot_general: the operands' dimensions, paired in order: (groups, contracted, free) of kernel and of inputs."""

    kernel: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    inputs: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    groups: int

    @classmethod
    def of(cls, equation: Equation, kernel_side: int, shapes: Sequence[tuple[int, ...]]) -> "DotView":
        """The view of a dot_general equation, operands of these shapes, whose operand `kernel_side` is the kernel."""
        contract, batch = equation.params["dimension_numbers"]

        def dimensions(side):
            used = (*batch[side], *contract[side])
            free = tuple(i for i in range(len(shapes[side])) if i not in used)
            return tuple(batch[side]), tuple(contract[side]), free

        groups = math.prod(shapes[kernel_side][i] for i in batch[kernel_side])
        return cls(dimensions(kernel_side), dimensions(1 - kernel_side), groups)

    @property
    def kernel_form(self) -> tuple:
        """What decides `matrix`."""
        return "dot", self.kernel, self.groups

    def matrix(self, operand: Any) -> Any:
        """The kernel's operand as (N, C), or (E, N, C)."""
        batch, contract, free = self.kernel
        N, C = (math.prod(operand.shape[i] for i in axes) for axes in (contract, free))
        moved = operand.transpose((*batch, *contract, *free))
        return moved.reshape((self.groups, N, C) if self.groups > 1 else (N, C))

    @property
    def rows_form(self) -> tuple:
        """What decides `rows`."""
        return "dot", self.inputs, self.groups

    def rows(self, operand: jax.Array) -> jax.Array:
        """The inputs' operand as (m, N), or (E, m, N)."""
        batch, contract, free = self.inputs
        N, m = (math.prod(operand.shape[i] for i in axes) for axes in (contract, free))
        order = (*batch, *free, *contract)
        moved = operand if order == tuple(range(operand.ndim)) else operand.transpose(order)
        return moved.reshape((self.groups, m, N) if self.groups > 1 else (m, N))

    def output_axes(self, inputs_first: bool) -> tuple[int, ...]:
        """The axes of the product along which groups and the kernel's outputs lie; its operands in that order."""
        groups, outputs = len(self.kernel[0]), len(self.kernel[2])
        start = groups + (len(self.inputs[2]) if inputs_first else 0)
        return (*range(groups), *range(start, start + outputs))

    def row_axes(self, inputs_first: bool) -> tuple[int, ...]:
        """The axes of the product along which groups and rows lie, in the order of `rows`."""
        groups, rows = len(self.inputs[0]), len(self.inputs[2])
        start = groups + (0 if inputs_first else len(self.kernel[2]))
        return (*range(groups), *range(start, start + rows))

    @property
    def kind(self) -> str:
        """dense, or grouped where there are batch dimensions (experts)."""
        return "grouped" if self.groups > 1 else "dense"


@dataclasses.dataclass(frozen=True)
class ConvView:
    """conv_general_dilated: inputs are patches, in the order (input channel, kernel positions)."""

    dimension_numbers: lax.ConvDimensionNumbers
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    window: tuple[int, ...]

    @classmethod
    def of(cls, equation: Equation, kernel_shape: tuple[int, ...]) -> "ConvView":
        """The view of a convolution with a kernel of that shape."""
        p = equation.params
        spec = p["dimension_numbers"]
        window = tuple(kernel_shape[i] for i in spec.rhs_spec[2:])
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        moves = {name: tuple(p[name]) for name in names}
        return cls(spec, groups=p["feature_group_count"], window=window, **moves)

    @property
    def kernel_form(self) -> tuple:
        """What decides `matrix`."""
        return "conv", self.dimension_numbers.rhs_spec, self.groups

    def matrix(self, operand: Any) -> Any:
        """The kernel's operand as (N, C), or (groups, N, C)."""
        out, into, *space = self.dimension_numbers.rhs_spec
        moved = operand.transpose((out, into, *space)).reshape(self.groups, operand.shape[out] // self.groups, -1)
        moved = moved.swapaxes(1, 2)
        return moved if self.groups > 1 else moved[0]

    @property
    def rows_form(self) -> tuple:
        """What decides `rows`."""
        return self, self.dimension_numbers.lhs_spec

    def rows(self, operand: jax.Array) -> jax.Array:
        """The images' patches as (m, N), or (groups, m, N)."""
        spec = self.dimension_numbers
        if not jnp.issubdtype(operand.dtype, jnp.floating):
            operand = operand.astype(jnp.float32)
        patches = lax.conv_general_dilated_patches(
            operand.transpose(spec.lhs_spec),  # (B, channels, …)
            self.window,
            self.window_strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            precision=lax.Precision.HIGHEST,
        )
        features = patches.shape[1]
        rows = jnp.moveaxis(patches, 1, -1).reshape(-1, features)
        if self.groups == 1:
            return rows
        return rows.reshape(len(rows), self.groups, -1).swapaxes(0, 1)

    def output_axes(self, inputs_first: bool) -> tuple[int, ...]:
        """The axis of the product along which the kernel's outputs lie, those of all groups."""
        return (self.dimension_numbers.out_spec[1],)

    def row_axes(self, inputs_first: bool) -> tuple[int, ...]:
        """The axes of the product along which rows lie, in the order of `rows`; all groups have the same."""
        spec = self.dimension_numbers.out_spec
        return (spec[0], *spec[2:])

    @property
    def kind(self) -> str:
        """conv."""
        return "conv"
