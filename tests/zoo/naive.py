"""What each layer of a model is given, found without tracing: the model runs on real arrays, product by product.

Each product of the run (`dot_general`, `conv_general_dilated`) is written down with its two arrays. The one whose
numbers are those of a parameter is a kernel, the other is data; which parameter it is, the numbers alone tell. Kernel
(E, N, C) and rows (E, m, N) are formed in NumPy, a convolution's patches position by position.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
from jax import lax

from tests.zoo import in_numpy


@dataclasses.dataclass(frozen=True)
class Use:
    """One layer on one batch: kind, kernel (E, N, C) and input rows (E, m, N), both float64; its leaf's path."""

    kind: str
    kernel: np.ndarray
    rows: np.ndarray
    leaf: str


def capture(apply, params, batch) -> dict[str, Use | None]:
    """{layer name: its use} in the order of first use; a kernel used several times has the rows of all its uses.

    None for a leaf that is used in two ways.
    """
    layers = {}
    for name, use in _uses(apply, params, batch):
        known = layers.setdefault(name, use)
        if known is None or not np.array_equal(known.kernel, use.kernel):
            layers[name] = None
        elif known is not use:
            layers[name] = dataclasses.replace(use, rows=np.concatenate([known.rows, use.rows], 1))
    return layers


def run(apply, params, batch, observe=lambda *_: None):
    """The model's outputs, computed by NumPy step by step; see `in_numpy.computed` for `observe`."""
    batch = jax.tree.map(jax.device_put, batch)  # nnx.scan takes no NumPy array as carry without jit
    with jax.disable_jit(), in_numpy.computed(observe):
        return apply(params, batch)


def path_of(path) -> str:
    """A leaf's path joined with "/"; the box around a leaf (nn.Partitioned, nnx.Param) does not count."""
    keys = [key for key in path if key != jax.tree_util.GetAttrKey("value")]
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None)))) for k in keys)


def named_leaves(params) -> dict[str, np.ndarray]:
    """{path: array} of all parameters."""
    return {path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def _uses(apply, params, batch):
    """(layer name, use) for each product of data with a parameter, in the order in which they run."""
    candidates = list(_candidates(named_leaves(params)))
    products, forms = [], {lax.dot_general_p: _dot, lax.conv_general_dilated_p: _conv}

    def observe(primitive, operands, details, output):
        if primitive in forms:
            products.append((forms[primitive], tuple(map(np.asarray, operands)), details, np.asarray(output)))

    run(apply, params, batch, observe)
    for form, operands, details, output in products:
        owned = [_matches(operand, candidates) for operand in operands]
        for side, other in ((0, 1), (1, 0)):
            if owned[other]:
                continue  # the other one is a parameter too, so this is no data
            for kind, kernel, rows in form(*operands, side, **details):
                owners = owned[side] or _side_by_side(kernel, candidates)
                if owners:
                    _check(rows @ kernel, output)
                for name, leaf, columns in owners:
                    yield name, Use(kind, kernel[:, :, columns], rows, leaf)


def _candidates(leaves):
    """(layer name, path, array) of each leaf, and of each slice of a leaf that may be a stack of kernels."""
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        name = "/".join(folders) if folders and last in ("kernel", "weight", "w") else path
        if leaf.ndim >= 2:
            yield name, path, leaf
        if leaf.ndim >= 3:
            yield from ((f"{name}[{i}]", path, part) for i, part in enumerate(leaf))


def _matches(operand, candidates):
    """[(layer name, path, all columns)] of the parameter with the same numbers, in any order and layout."""
    for name, path, leaf in candidates:
        if leaf.size == operand.size and _same_numbers(leaf, operand):
            return [(name, path, slice(None))]
    return []


def _side_by_side(kernel, candidates):
    """The same for parameters joined along their columns, as OptimizedLSTMCell does; empty if that is not so."""
    parts, done = [], 0
    while done < kernel.shape[2]:
        for name, path, leaf in candidates:
            columns = slice(done, done + leaf.size // kernel.shape[1])
            if leaf.size == kernel[:, :, columns].size and _same_numbers(leaf, kernel[0, :, columns]):
                parts.append((name, path, columns))
                done = columns.stop
                break
        else:
            return []
    return parts


def _same_numbers(leaf, operand):
    return np.array_equal(np.sort(leaf.astype(operand.dtype), None), np.sort(operand, None))


def _check(product, output):
    """The rows and the kernel are the right ones only if their product has the numbers that the model computed."""
    tolerance = 0.01 if output.dtype == jax.numpy.bfloat16 else 1e-5
    output = np.sort(output.astype(np.float64), None)
    np.testing.assert_allclose(np.sort(product, None), output, rtol=tolerance, atol=tolerance * np.abs(output).max())


def _dot(lhs, rhs, side, *, dimension_numbers, **_):
    """[(kind, kernel, rows)] of a `dot_general` whose operand `side` is the kernel."""
    contracted, batch = dimension_numbers

    def three(array, of):
        """(batch dimensions, the rest, contracted dimensions), each as one."""
        rest = [d for d in range(array.ndim) if d not in (*batch[of], *contracted[of])]
        dims = [batch[of], rest, contracted[of]]
        shape = [math.prod(array.shape[d] for d in group) for group in dims]
        return array.astype(np.float64).transpose([d for group in dims for d in group]).reshape(shape)

    views = three(lhs, 0), three(rhs, 1)
    return [("grouped" if batch[0] else "dense", views[side].swapaxes(1, 2), views[1 - side])]


def _conv(
    lhs, rhs, side, *, dimension_numbers, window_strides, padding, lhs_dilation, rhs_dilation, feature_group_count, **_
):
    """The same of a convolution: one row for each output position, its patch of each feature group."""
    if side == 0:
        return []
    x = lhs.astype(np.float64).transpose(dimension_numbers.lhs_spec)  # (B, features, *space)
    kernel = rhs.astype(np.float64).transpose(dimension_numbers.rhs_spec)  # (outputs, features of a group, *window)
    x = _spread(x, lhs_dilation, padding)
    groups, window = feature_group_count, kernel.shape[2:]
    reach = [(k - 1) * d for k, d in zip(window, rhs_dilation, strict=True)]
    patches = []
    for position in itertools.product(*map(range, window)):
        starts = [p * d for p, d in zip(position, rhs_dilation, strict=True)]
        cut = [slice(a, n - r + a, s) for a, n, r, s in zip(starts, x.shape[2:], reach, window_strides, strict=True)]
        patches.append(x[(slice(None), slice(None), *cut)])
    patches = np.stack(patches, -1)  # (B, features, *out, positions)
    patches = patches.reshape(x.shape[0], groups, x.shape[1] // groups, -1, patches.shape[-1])
    rows = patches.transpose(1, 0, 3, 2, 4)  # (groups, B, out, features of a group, positions)
    kernel = kernel.reshape(groups, kernel.shape[0] // groups, -1).swapaxes(1, 2)
    return [("conv", kernel, rows.reshape(groups, -1, kernel.shape[1]))]


def _spread(x, dilation, padding):
    """Zeros between the positions of the input (a transposed convolution's stride) and around them."""
    space = [(n - 1) * d + 1 for n, d in zip(x.shape[2:], dilation, strict=True)]
    spread = np.zeros((*x.shape[:2], *space))
    spread[(..., *(slice(None, None, d) for d in dilation))] = x
    spread = np.pad(spread, [(0, 0), (0, 0), *(np.maximum(sides, 0) for sides in padding)])
    cut = [slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(padding, spread.shape[2:], strict=True)]
    return spread[(..., *cut)]
