"""JAX's common primitives computed by NumPy, for runs outside of jit: each new shape would be compiled otherwise."""

import contextlib
import functools

import jax
import numpy as np
from jax import lax


@contextlib.contextmanager
def computed(observe):
    """Outside of jit, the primitives of the table below are computed by NumPy.

    observe(primitive, arrays, parameters, output) is called after each one, and after each convolution, with NumPy
    arrays.
    """
    impls = {primitive: primitive.impl for primitive in (*TABLE, lax.conv_general_dilated_p, lax.stage_p)}
    for primitive, impl in impls.items():
        primitive.impl = functools.partial(_run, primitive, impl, observe)
    lax.stage_p.impl = jax.device_put  # what makes an array of a number
    try:
        yield
    finally:
        for primitive, impl in impls.items():
            primitive.impl = impl


def _run(primitive, impl, observe, *operands, **params):
    """A value that takes the type of what it meets (weakly typed, as Python's numbers are) is left to JAX."""
    avals, _ = primitive.abstract_eval(*map(jax.typeof, operands), **params)
    expected = avals if primitive.multiple_results else [avals]
    if primitive not in TABLE or any(aval.weak_type or _is_key(aval) for aval in expected):
        output = impl(*operands, **params)
        observe(primitive, operands, params, output)
        return output
    arrays = [np.asarray(operand) for operand in operands]
    found = TABLE[primitive](*arrays, **params)
    found = found if primitive.multiple_results else [found]
    outputs = [np.asarray(x).astype(aval.dtype, copy=False) for x, aval in zip(found, expected, strict=True)]
    assert [x.shape for x in outputs] == [aval.shape for aval in expected], f"{primitive}: {params}"
    observe(primitive, arrays, params, outputs[0])
    outputs = [jax.device_put(x) for x in outputs]
    return outputs if primitive.multiple_results else outputs[0]


def _is_key(aval):
    return jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)


def _broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    sizes = np.ones(len(shape), int)
    sizes[list(broadcast_dimensions)] = x.shape
    return np.broadcast_to(x.reshape(sizes), shape)


def _slice(x, *, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or [None] * x.ndim))]


def _dot_general(lhs, rhs, *, dimension_numbers, **_):
    """In float64."""
    contracted, batch = dimension_numbers

    def three(array, of):
        """(batch dimensions, the rest as one, contracted dimensions as one); and the sizes of the rest."""
        rest = [d for d in range(array.ndim) if d not in (*batch[of], *contracted[of])]
        array = array.astype(np.float64).transpose(*batch[of], *rest, *contracted[of])
        same, free = array.shape[: len(batch[of])], array.shape[len(batch[of]) : len(batch[of]) + len(rest)]
        return array.reshape(*same, int(np.prod(free)), -1), same, free

    (one, same, rows), (other, _, columns) = three(lhs, 0), three(rhs, 1)
    return (one @ other.swapaxes(-1, -2)).reshape(*same, *rows, *columns)


def _split(x, *, sizes, axis):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _of_arrays(function):
    """A function of arrays alone; what is asked of its accuracy NumPy's precision fulfils."""
    return lambda *arrays, **_: function(*arrays)


TABLE = {
    lax.abs_p: _of_arrays(np.abs),
    lax.add_p: _of_arrays(np.add),
    lax.broadcast_in_dim_p: _broadcast_in_dim,
    lax.concatenate_p: lambda *arrays, dimension: np.concatenate(arrays, dimension),
    lax.convert_element_type_p: _of_arrays(np.asarray),
    lax.copy_p: _of_arrays(np.asarray),
    lax.div_p: lambda x, y: np.trunc(x / y) if np.issubdtype(x.dtype, np.integer) else x / y,
    lax.dot_general_p: _dot_general,
    lax.eq_p: _of_arrays(np.equal),
    lax.exp_p: _of_arrays(np.exp),
    lax.ge_p: _of_arrays(np.greater_equal),
    lax.gt_p: _of_arrays(np.greater),
    lax.integer_pow_p: lambda x, *, y: x**y,
    lax.le_p: _of_arrays(np.less_equal),
    lax.log_p: _of_arrays(np.log),
    lax.logistic_p: _of_arrays(lambda x: (np.tanh(x / 2) + 1) / 2),
    lax.lt_p: _of_arrays(np.less),
    lax.max_p: _of_arrays(np.maximum),
    lax.min_p: _of_arrays(np.minimum),
    lax.mul_p: _of_arrays(np.multiply),
    lax.ne_p: _of_arrays(np.not_equal),
    lax.neg_p: _of_arrays(np.negative),
    lax.reduce_max_p: lambda x, *, axes, **_: x.max(axes),
    lax.reduce_sum_p: lambda x, *, axes, **_: x.sum(axes),
    lax.reshape_p: lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    lax.rev_p: lambda x, *, dimensions: np.flip(x, dimensions),
    lax.rsqrt_p: _of_arrays(lambda x: 1 / np.sqrt(x)),
    lax.select_n_p: lambda which, *cases: np.choose(which, cases),
    lax.slice_p: _slice,
    lax.split_p: _split,
    lax.sqrt_p: _of_arrays(np.sqrt),
    lax.square_p: _of_arrays(np.square),
    lax.squeeze_p: lambda x, *, dimensions: x.squeeze(dimensions),
    lax.stack_p: lambda *arrays, axis, **_: np.stack(arrays, axis),
    lax.sub_p: _of_arrays(np.subtract),
    lax.tanh_p: _of_arrays(np.tanh),
    lax.transpose_p: lambda x, *, permutation: x.transpose(permutation),
    lax.unstack_p: lambda x, *, axis, **_: list(np.moveaxis(x, axis, 0)),
}
