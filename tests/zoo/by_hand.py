"""Quantized kernels put into a model by hand, in NumPy: each number's place in its leaf is known by its value."""

import re

import jax
import numpy as np

from tests.zoo import naive


def dequantized(matrix, groups):
    """(E, N, C) float64 of a QuantizedMatrix, from its fields alone."""
    codes, scale, levels = (np.asarray(a) for a in (matrix.codes, matrix.scale, matrix.alphabet))
    kernel = scale[..., None, :] * levels[codes]
    kernel = kernel if matrix.offset is None else kernel + np.asarray(matrix.offset)[..., None, :]
    return kernel.reshape(groups, *codes.shape[-2:])


def alignment(kernel, other):
    """(rows, columns) of `other` (N, C), so that other[rows][:, columns] is `kernel`; None if it has other numbers.

    The order of contracted positions and of channels is free, so it is not compared.
    """
    kernel, other = np.asarray(kernel, np.float64), np.asarray(other, np.float64)
    if kernel.shape != other.shape or not np.array_equal(np.sort(kernel, None), np.sort(other, None)):
        return None
    place = {value: divmod(i, other.shape[1]) for i, value in enumerate(other.ravel().tolist())}
    rows = [place[value][0] for value in kernel[:, 0].tolist()]
    columns = [place[value][1] for value in kernel[0].tolist()]
    assert np.array_equal(other[rows][:, columns], kernel), "rows and columns of a kernel are mixed up"
    return rows, columns


def insert(params, kernels):
    """`params` with {layer name: (its use, new kernel (E, N, C) in that use's order)} in place of the old kernels."""
    leaves = {path: leaf.copy() for path, leaf in naive.named_leaves(params).items()}
    for name, (use, new) in kernels.items():
        leaf = leaves[use.leaf]
        part = re.search(r"\[(\d+)\]$", name)
        target = leaf[int(part[1])] if part else leaf
        flat = target.ravel()
        flat[np.argsort(flat)] = new.ravel()[np.argsort(use.kernel, None)].astype(leaf.dtype)
        target[...] = flat.reshape(target.shape)
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    return structure.unflatten([jax.device_put(leaves[naive.path_of(path)]) for path, _ in paths])
