"""What was done to every layer, and to every parameter of the model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.model import Model
from beacon_jax.graph.multiplications import multiplications
from beacon_jax.quant.packing import packed_bytes
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.spec import QuantSpec


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What was done to one layer, and how well.

    shape is (N, C), or (E, N, C) where there are groups. output_error is ‖XW − X̃Ŵ‖² / ‖XW‖², a change of the bias
    included, on the calibration rows of the streams that QuantSpec.calibrate_on names, the cosines ∠(Xw, X̃ŵ) likewise;
    dead counts inputs that were always zero; rows are those of positive weight, of each group; seconds are for the Gram
    statistics and for the solve, compilation included. sweeps (mean) and fixed_points (fraction of the channels) are
    None for methods that do not report them. note says where the arithmetic was not the usual one. options are those of
    the method that decide its codes, defaults included; None where they are not known.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    method: str
    alphabet: str
    output_error: float
    mean_cosine: float
    min_cosine: float
    dead: int
    rows: int
    gram_seconds: float
    solve_seconds: float
    sweeps: float | None = None
    fixed_points: float | None = None
    note: str = ""
    options: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class LeafCoverage:
    """What was done to one parameter leaf.

    quantized counts its elements that are, in the layers named; reason says why the others are not ("" where all are).
    method, alphabet, rows and error are of its layers, several joined or averaged (None without any); bits counts all
    of its storage: codes, scales, offsets, and what stays as it is.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    quantized: int
    layers: tuple[str, ...]
    reason: str
    method: str
    alphabet: str
    rows: int | None
    error: float | None
    bits: int

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What was done to every parameter leaf, and of all: parameters (their number), quantized (fraction of them),
    multiplications (fraction of the model's, in products and convolutions, that has a quantized kernel; those inside
    cond, while and shard_map are among the model's), and bits_per_parameter, of codes, scales, offsets and what stays
    as it is.
    """

    leaves: tuple[LeafCoverage, ...]
    multiplications: float

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def quantized(self) -> float:
        """The fraction of the parameters that is quantized."""
        return sum(leaf.quantized for leaf in self.leaves) / max(self.parameters, 1)

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole model."""
        return sum(leaf.bits for leaf in self.leaves) / max(self.parameters, 1)

    def summary(self) -> str:
        """One line."""
        return (
            f"{100 * self.quantized:.1f} % of {self.parameters:,} parameters and {100 * self.multiplications:.1f} % of "
            f"the multiplications are quantized; {self.bits_per_parameter:.2f} bits per parameter over the whole model"
        )

    def __str__(self) -> str:
        head = ("parameter", "shape", "quantized", "method", "alphabet", "rows", "error", "left because")
        return "\n".join([*aligned([head, *(_row(leaf) for leaf in self.leaves)]), self.summary()])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of each row, its cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(leaf: LeafCoverage) -> tuple[str, ...]:
    share = f"{100 * leaf.quantized / max(leaf.size, 1):.3g} %"
    rows = "" if leaf.rows is None else str(leaf.rows)
    error = "" if leaf.error is None else f"{leaf.error:.3g}"
    shape = "×".join(map(str, leaf.shape)) or "1"
    return leaf.path, shape, share, leaf.method, leaf.alphabet, rows, error, leaf.reason


def coverage(
    model: Model,
    leaves: Sequence[Any],
    spec: QuantSpec,
    reports: Sequence[LayerReport],
    layers: Mapping[str, QuantizedMatrix],
    kept: Mapping[str, str],
) -> Coverage:
    """What `reports` and `layers` say of every parameter leaf of a model; `leaves` are the float ones.

    kept: {layer name: why it stays in float although the spec asks for it}.
    """
    found, program = model.first.found, model.first.program
    by_name = {report.layer: report for report in reports}
    rows = []
    for i, (path, leaf) in enumerate(zip(program.leaves, leaves, strict=True)):
        here = [layer for layer in found.layers if layer.leaf == i]
        done = [layer for layer in here if layer.name in by_name]
        own = [by_name[layer.name] for layer in done]
        quantized = sum(math.prod(layer.shape) for layer in done)
        reasons = [kept.get(layer.name) or spec.why_left(layer) for layer in here if layer.name not in by_name]
        if not here:
            reasons = [found.reasons[i]]
        elif i in found.partly:
            reasons.append("parts of it are no layer")
        rows.append(
            LeafCoverage(
                path,
                tuple(leaf.shape),
                str(leaf.dtype),
                quantized,
                tuple(layer.name for layer in done),
                "; ".join(dict.fromkeys(reasons)),
                ", ".join(dict.fromkeys(r.method for r in own)),
                ", ".join(dict.fromkeys(r.alphabet for r in own)),
                max((r.rows for r in own), default=None),
                float(np.mean([r.output_error for r in own])) if own else None,
                sum(_bits(layers[layer.name]) for layer in done) + (leaf.size - quantized) * 8 * leaf.dtype.itemsize,
            )
        )
    return Coverage(tuple(rows), _multiplications(model, by_name))


def _bits(matrix: QuantizedMatrix) -> int:
    """Of codes, scales and offsets, as they are in a file."""
    floats = matrix.scale.size + (0 if matrix.offset is None else matrix.offset.size)
    codes = packed_bytes(len(matrix.alphabet), matrix.codes.size)
    return 8 * codes + floats * 8 * jnp.dtype(matrix.scale.dtype).itemsize


def _multiplications(model: Model, done) -> float:
    """The fraction of the multiplications of products and convolutions that has a kernel among `done`."""
    total = sum(multiplications(equation.eqn) for equation in model.first.program.equations)
    layers = model.first.found.layers
    return sum(use.multiplications for layer in layers if layer.name in done for use in layer.uses) / max(total, 1)
