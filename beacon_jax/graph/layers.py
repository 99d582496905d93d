"""The layers of a program: products of data with one parameter leaf. And why the other parameters are none."""

import dataclasses
import math
from collections import defaultdict
from typing import Any

import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.place import Place, part_of
from beacon_jax.graph.program import Equation, Program, Unsupported
from beacon_jax.graph.views import ConvView, DotView, Layout

# Last parts of a leaf's path that do not name it: blocks_0/attn/qkv/kernel is the layer blocks_0/attn/qkv.
_KERNEL_NAMES = ("kernel", "weight", "w")


@dataclasses.dataclass(frozen=True)
class Use:
    """One product: the equation's position in the program, the variable with its inputs, and their view."""

    position: int
    operand: int
    view: DotView | ConvView
    rows: int  # m, of each group
    multiplications: int
    of_data: bool  # False where the inputs are constants, such as the first state of a recurrence
    part: int | None  # which of several kernels that are joined for the product; None where it is alone


@dataclasses.dataclass(frozen=True)
class Layer:
    """A kernel and all products with it.

    Attributes:
      name: its leaf's path without a last kernel, weight or w, and the part of a leaf that holds several, as in
        blocks/mlp/fc1[3].
      path: its leaf's whole path.
      leaf: the number of its parameter leaf.
      place: where its elements lie in the leaf.
      uses: in the order in which they run.
      other_uses: how else the leaf is used, such as "looked up (gather)"; "" where it is not.
    """

    name: str
    path: str
    leaf: int
    place: Place
    uses: tuple[Use, ...]
    other_uses: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C), or (E, N, C) where there are groups."""
        return self.place.shape

    @property
    def kind(self) -> str:
        """dense, grouped (batch dimensions: experts) or conv."""
        return self.uses[0].view.kind

    @property
    def inputs(self) -> tuple:
        """Where its rows come from; layers of the same inputs share their statistics."""
        return tuple((use.operand, use.view.rows_form) for use in self.uses)

    @property
    def rows(self) -> int:
        """Rows of each group, of all uses."""
        return sum(use.rows for use in self.uses)


@dataclasses.dataclass(frozen=True)
class Found:
    """The layers in the order in which they first run, and {leaf number: reason} of the leaves that hold none.

    `partly` has the numbers of the leaves of which only parts are layers, ascending.
    """

    layers: tuple[Layer, ...]
    reasons: dict[int, str]
    partly: tuple[int, ...]


_READ = {
    "gather": "looked up (gather)",
    "dynamic_slice": "looked up (dynamic_slice)",
    "add": "added",
    "add_any": "added",
    "sub": "added",
    "mul": "multiplied elementwise",
    "div": "multiplied elementwise",
    "concatenate": "joined with other values (concatenate)",
    "while": "used inside a while loop",
    "scan": "used inside a scan",
    "cond": "used inside a cond",
    "shard_map": "used inside a shard_map",
    "dot_general": "multiplied by other parameters, not by data",
    "conv_general_dilated": "multiplied by other parameters, not by data",
    "ragged_dot_general": "multiplied by groups of rows whose sizes depend on data (ragged_dot_general)",
}


def find_layers(program: Program) -> Found:
    """Every product of data with what comes from one parameter leaf by layout equations alone.

    Raises:
      Unsupported: there are none that the outputs depend on.
    """
    products, reads = _walk(program)
    layers: list[Layer] = []
    reasons: dict[int, str] = {}
    partly: list[int] = []
    for leaf in range(len(program.leaves)):
        others = ", ".join(dict.fromkeys(reads[leaf]))
        own = products[leaf]
        aval = program.avals[leaf]
        if not own:
            reasons[leaf] = others or "not used: no output depends on it"
        elif not any(use.of_data for _, use in own):
            reasons[leaf] = ", ".join(filter(None, ("multiplied by constants, not by data", others)))
        elif not jnp.issubdtype(aval.dtype, jnp.floating):
            reasons[leaf] = f"not floating point ({aval.dtype})"
        elif isinstance(parts := _parts(program, leaf, own), str):
            reasons[leaf] = "; ".join(filter(None, (parts, others)))
        else:
            layers += [dataclasses.replace(layer, other_uses=others) for layer in parts]
            if sum(math.prod(layer.shape) for layer in parts) < aval.size:
                partly.append(leaf)
    if not layers:
        said = "; ".join(f"{program.leaves[leaf]}: {why}" for leaf, why in list(reasons.items())[:4])
        raise Unsupported(
            f"no output of the function depends on a product of data and a parameter ({said or 'no parameters'})"
        )
    layers = _named(program, layers)
    layers.sort(key=lambda layer: (layer.uses[0].position, layer.uses[0].part or 0))
    return Found(tuple(layers), reasons, tuple(partly))


def _walk(program: Program):
    """(uses with their layout, and other ways of being read) of each leaf."""
    leaves, data = program.depends
    exact: dict[int, tuple[int, Layout]] = {i: (i, Layout()) for i in range(len(program.leaves))}
    joined: dict[int, tuple[int, list[int]]] = {}  # a concatenation of kernels: its dimension, and what it joins
    spread = {i: i for i in exact}  # by layout or repetition
    products: dict[int, list[tuple[Layout, Use]]] = defaultdict(list)
    reads: dict[int, list[str]] = defaultdict(list)
    for position, equation in enumerate(program.equations):
        if len(equation.inputs) == 1 and equation.reads and equation.reads[0] in spread:
            (v,) = equation.reads
            for output, made in enumerate(equation.outputs):
                sizes = program.avals[v].size, program.avals[made].size
                layout = exact[v][1].then(equation, output, sizes) if v in exact else None
                if layout is not None:
                    exact[made] = exact[v][0], layout
                if layout is not None or equation.name == "broadcast_in_dim":
                    spread[made] = spread[v]
            if equation.outputs[0] in spread:
                continue
        if equation.name == "concatenate" and all(v in exact for v in equation.inputs):
            joined[equation.outputs[0]] = equation.params["dimension"], list(equation.inputs)
            continue
        for side, v in enumerate(equation.inputs):
            if not isinstance(v, int) or not (v in spread or v in joined):
                continue
            dimension, parts = joined.get(v, (None, [v]))
            for k, part in enumerate(parts):
                arguments = program, equation, position, side, k, parts, dimension
                use = _product(*arguments) if part in exact else None
                if use is not None:
                    products[exact[part][0]].append((exact[part][1], use))
                else:
                    reads[spread[part]].append(_how(program, equation, side, leaves, data, part != v))
    for v in program.outputs:
        if isinstance(v, int) and v in spread:
            reads[spread[v]].append("returned as an output")
    return products, reads


def _product(
    program: Program, equation: Equation, position: int, side: int, k: int, parts: list[int], dimension: int | None
) -> Use | None:
    """The product of data (or constants) with the operand on that side, None where the equation is none.

    The operand is parts[k], or where `dimension` is given that is one of the kernels joined along it, with its own
    outputs.
    """
    if equation.name not in ("dot_general", "conv_general_dilated"):
        return None
    leaves, data = program.depends
    other = equation.inputs[1 - side]
    if not isinstance(other, int) or (leaves[other] and not data[other]):
        return None
    if any(jnp.issubdtype(program.avals[v].dtype, jnp.complexfloating) for v in (other, *equation.outputs)):
        return None
    shapes = [program.avals[v].shape for v in equation.inputs]
    shapes[side] = program.avals[parts[k]].shape
    part = k if len(parts) > 1 else None
    view: DotView | ConvView
    if equation.name == "dot_general":
        view = DotView.of(equation, side, shapes)
        rows = math.prod(shapes[1 - side][i] for i in view.inputs[2])
        inputs, outputs = (math.prod(shapes[side][i] for i in view.kernel[k]) for k in (1, 2))
        if dimension is not None and dimension not in view.kernel[2]:
            return None
        multiplications = view.groups * rows * inputs * outputs
    else:
        if side != 1 or equation.params["batch_group_count"] > 1 or dimension is not None:
            return None
        view = ConvView.of(equation, shapes[1])
        out = math.prod(program.avals[equation.outputs[0]].shape)
        channels = shapes[1][view.dimension_numbers.rhs_spec[0]]
        rows, inputs = out // channels, math.prod(shapes[1]) // channels
        multiplications = out * inputs
    return Use(position, other, view, rows, multiplications, data[other], part) if multiplications else None


def _how(program, equation, side, leaves, data, joined=False) -> str:
    if joined:
        return _READ["concatenate"]
    if equation.name == "conv_general_dilated" and side == 1 and any(data[v] for v in equation.reads):
        return "used in a convolution with batch groups"
    if equation.name == "gather" and side == 1:
        return "used as indices (gather)"
    if equation.name in ("dot_general", "conv_general_dilated"):
        other = equation.inputs[1 - side]
        if isinstance(other, int) and jnp.issubdtype(program.avals[other].dtype, jnp.complexfloating):
            return "multiplied by complex data"
        if isinstance(other, int) and data[other]:
            return "repeated before it is multiplied by data"
    if equation.name in _READ:
        return _READ[equation.name]
    others = sorted({leaf for v in equation.reads for leaf in leaves[v]})
    return f"goes through {equation.name}" + (" with other parameters" if len(others) > 1 else "")


def _parts(program: Program, leaf: int, own: list[tuple[Layout, Use]]) -> list[Layer] | str:
    """The kernels that a leaf holds, by their elements; or why it cannot be told apart into kernels."""
    shape, path = program.avals[leaf].shape, program.leaves[leaf]
    indices = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    taken = np.zeros(indices.size, bool)
    place_of: dict[Any, Place] = {}
    uses: dict[Place, list[Use]] = {}
    for layout, use in own:
        key = layout, use.view.kernel_form
        if key not in place_of:
            where = use.view.matrix(layout(indices))
            place = Place.of(where)
            if place is None:
                return "multiplied by data in a form that is not a kernel (N, C) of whole rows and columns"
            place_of[key] = place
            if place not in uses:
                if taken[where].any():
                    return "used in two ways: multiplied by data as different kernels that share elements"
                taken[where] = True
        uses.setdefault(place_of[key], []).append(use)
    return [
        Layer(path, path, leaf, place, tuple(sorted(products, key=lambda use: use.position)))
        for place, products in uses.items()
    ]


def _named(program: Program, layers: list[Layer]) -> list[Layer]:
    """The layers under their names: no two share one."""
    count: dict[int, int] = defaultdict(int)
    for layer in layers:
        count[layer.leaf] += 1
    short = {}
    for leaf in count:
        *path, last = program.leaves[leaf].split("/")
        short[leaf] = "/".join(path) if path and last in _KERNEL_NAMES else program.leaves[leaf]
    taken: dict[str, int] = defaultdict(int)
    for name in (*short.values(), *(n for i, n in enumerate(program.leaves) if i not in short)):
        taken[name] += 1
    named = []
    for layer in layers:
        name = short[layer.leaf] if taken[short[layer.leaf]] == 1 else program.leaves[layer.leaf]
        shape = program.avals[layer.leaf].shape
        whole = math.prod(layer.shape) == math.prod(shape)
        part = "" if whole else part_of(layer.place.indices(), shape)
        named.append(dataclasses.replace(layer, name=name + part))
    return named
