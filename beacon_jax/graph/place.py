"""Where a kernel's elements lie in its parameter leaf."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Int64, Shaped

Loops = tuple[tuple[int, int], ...]  # (size, stride in elements), outermost first


@dataclasses.dataclass(frozen=True)
class Place:
    """The elements of a kernel (E, N, C), or (N, C) for one group, in a flat leaf.

    Element (e, n, c) is at offset + a(e) + b(n) + d(c), each a sum of index × stride over nested loops.
    """

    offset: int
    groups: Loops
    inputs: Loops
    outputs: Loops

    @classmethod
    def of(cls, indices: Int[np.ndarray, "*groups N C"]) -> "Place | None":
        """The place of a kernel (N, C) or (E, N, C), given the flat index of each element; None where there is none."""
        whole = indices if indices.ndim == 3 else indices[None]
        offset = int(whole[0, 0, 0])
        lines = whole[:, 0, 0], whole[0, :, 0], whole[0, 0, :]
        groups, inputs, outputs = (_loops(line - offset) for line in lines)
        if groups is None or inputs is None or outputs is None:
            return None
        place = cls(offset, groups, inputs, outputs)
        return place if np.array_equal(place.indices().reshape(whole.shape), whole) else None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Place":
        """Of what `dataclasses.asdict` gave, after JSON too."""
        names = ("groups", "inputs", "outputs")
        return cls(int(fields["offset"]), *(tuple((int(n), int(step)) for n, step in fields[name]) for name in names))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C), or (E, N, C) where there are groups."""
        E, N, C = (math.prod(size for size, _ in loops) for loops in (self.groups, self.inputs, self.outputs))
        return (E, N, C) if E > 1 else (N, C)

    def indices(self) -> Int64[np.ndarray, "*groups N C"]:
        """The flat index of each element, in the shape of the kernel."""
        found = np.full((), self.offset, np.int64)
        for size, stride in (*self.groups, *self.inputs, *self.outputs):
            found = found[..., None] + np.arange(size, dtype=np.int64) * stride
        return found.reshape(self.shape)

    def read(self, leaf: Any) -> Shaped[np.ndarray, "*groups N C"]:
        """The kernel, of the leaf's value."""
        flat = np.asarray(leaf).reshape(-1)
        return np.ascontiguousarray(self._view(flat)).reshape(self.shape)

    def write(self, leaf: Any, kernel: Shaped[np.ndarray, "*groups N C"]) -> Shaped[np.ndarray, "*leaf"]:
        """The leaf's value with this kernel in place of its own, in the leaf's dtype."""
        out = np.array(leaf, order="C")
        view = self._view(out.reshape(-1))
        view[...] = np.asarray(kernel).astype(out.dtype).reshape(view.shape)
        return out

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest flat index of an element."""
        ends = [stride * (size - 1) for size, stride in self._loops_of_all()]
        return self.offset + sum(min(end, 0) for end in ends), self.offset + sum(max(end, 0) for end in ends)

    def put(
        self, flat: Shaped[jax.Array, " size"], kernel: Shaped[jax.Array, "*groups N C"]
    ) -> Shaped[jax.Array, " size"]:
        """A flat leaf with this kernel in its place, both of one dtype: `write` for JAX arrays, under jit too."""
        loops = self._loops_of_all()
        order = sorted(range(len(loops)), key=lambda i: -loops[i][1])
        box = self._box([loops[i] for i in order], flat.size)
        if box is None:  # not a box in any shape of the leaf
            return flat.at[self.indices().reshape(-1)].set(kernel.reshape(-1))
        dims, start = box
        part = kernel.reshape([size for size, _ in loops]).transpose(order)
        part = part.reshape(*part.shape, *[1] * (len(dims) - part.ndim))
        return jax.lax.dynamic_update_slice(flat.reshape(dims), part, start).reshape(-1)

    def _box(self, loops: list[tuple[int, int]], size: int) -> tuple[list[int], list[int]] | None:
        """The shape in which a flat leaf of that size has the loops, outermost first, as a box, and where it starts."""
        dims, start, outer, offset = [], [], size, self.offset
        for count, stride in loops:
            if stride < 1 or outer % stride or offset // stride + count > outer // stride:
                return None
            dims.append(outer // stride)
            start.append(offset // stride)
            outer, offset = stride, offset % stride
        return [*dims, outer], [*start, offset]

    def _loops_of_all(self) -> Loops:
        """Of more than one step."""
        return tuple(loop for loop in (*self.groups, *self.inputs, *self.outputs) if loop[0] > 1)

    def _view(self, flat: np.ndarray) -> np.ndarray:
        loops = (*self.groups, *self.inputs, *self.outputs)
        sizes, strides = [size for size, _ in loops], [stride * flat.itemsize for _, stride in loops]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], sizes, strides)


def _loops(line: np.ndarray) -> Loops | None:
    """Nested loops that give these indices, the first of them 0; None where there are none."""
    if line.size == 1:
        return ()
    stride = int(line[1])
    run = int(np.argmin(np.append(line == np.arange(line.size) * stride, False)))
    outer = line[::run]
    if line.size % run or not np.array_equal(outer[:, None] + line[None, :run], line.reshape(-1, run)):
        return None
    rest = _loops(outer)
    return None if rest is None else (*rest, (run, stride))


def part_of(indices: np.ndarray, shape: Sequence[int]) -> str:
    """How to write the part of an array that has these flat indices, such as [3] or [:,0:64]; "" for all of it."""
    if indices.size == math.prod(shape):
        return ""
    ranges = [(int(i.min()), int(i.max()) + 1) for i in np.unravel_index(indices.reshape(-1), shape)]
    if math.prod(stop - start for start, stop in ranges) != indices.size:
        return f"[{indices.min()}…{indices.max()}]"  # not a box: the first and the last element
    said = [
        ":" if (start, stop) == (0, n) and n > 1 else str(start) if stop - start == 1 else f"{start}:{stop}"
        for (start, stop), n in zip(ranges, shape, strict=True)
    ]
    while said[-1] == ":":
        said.pop()
    return f"[{','.join(said)}]"
