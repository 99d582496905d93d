import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.packed import PackedKernel
from beacon_jax.quant.quantized import QuantizedMatrix


def make_matrix(levels, shape, dtype=jnp.float32, offset=True, seed=0):
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(levels, size=shape), jnp.uint8)
    channels = (*shape[:-2], shape[-1])
    alphabet = jnp.asarray(np.arange(levels) - levels // 2 + 0.5 * (levels < 128), dtype)
    scale = jnp.asarray(rng.normal(size=channels), dtype)
    return QuantizedMatrix(codes, alphabet, scale, jnp.asarray(rng.normal(size=channels), dtype) if offset else None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("levels", "shape"), [(3, (1, 1)), (5, (17, 9)), (15, (3, 8, 5)), (256, (300, 2))])
def test_round_trip_to_the_last_bit(levels, shape, dtype):
    for offset in (False, True):
        matrix = make_matrix(levels, shape, dtype, offset)
        packed = PackedKernel.of(matrix)
        packed.check()
        assert len(jax.tree.leaves(packed)) == 2 + offset
        on_device = jax.tree.map(jnp.asarray, packed)
        for kernel in (packed.dequantize(), jax.jit(PackedKernel.dequantize)(on_device)):
            assert kernel.dtype == dtype
            np.testing.assert_array_equal(kernel, matrix.dequantize())
        np.testing.assert_array_equal(packed.unpack().alphabet, matrix.alphabet)


def test_double_precision(x64):
    matrix = make_matrix(5, (17, 9), jnp.float64)
    on_device = jax.tree.map(jnp.asarray, PackedKernel.of(matrix))
    np.testing.assert_array_equal(jax.jit(PackedKernel.dequantize)(on_device), matrix.dequantize())


@pytest.mark.parametrize("shape", [(17, 9), (512, 257)])
def test_compiled_code_does_not_round_once_where_the_matrix_rounds_twice(shape):
    matrix = make_matrix(6, shape, seed=3)
    on_device = jax.tree.map(jnp.asarray, PackedKernel.of(matrix))
    expected = np.asarray(matrix.scale)[None] * np.asarray(matrix.alphabet)[np.asarray(matrix.codes)]
    expected = expected + np.asarray(matrix.offset)[None]
    np.testing.assert_array_equal(jax.jit(PackedKernel.dequantize)(on_device), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scale=np.ones(3, np.int32)), "scales are floating point, got int32"),
        (dict(scale=np.ones(4, np.float32)), r"expected float32 scales \(3,\), got float32 \(4,\)"),
        (dict(scale=np.array([1, np.inf, 1], np.float32)), "scales are not finite"),
        (dict(offset=np.ones(3)), r"expected float32 offsets \(3,\), got float64"),
        (dict(offset=np.full(3, np.nan, np.float32)), "offsets are not finite"),
        (dict(levels=(1.0,)), "levels are 2 to 256 finite numbers, ascending"),
        (dict(levels=(1.0, 0.0)), "levels are 2 to 256 finite numbers, ascending"),
        (dict(levels=(1.0, 1.0 + 1e-12)), "levels are 2 to 256 finite numbers, ascending"),
        (dict(levels=(0.0, np.nan)), "levels are 2 to 256 finite numbers, ascending"),
        (dict(shape=(6,)), r"a kernel is \(N, C\) or \(E, N, C\), got \(6,\)"),
        (dict(shape=(0, 3)), "a kernel is"),
        (dict(words=np.zeros(5, np.uint8)), r"an array \(5,\) of bytes does not hold \(2, 3\) codes"),
        (dict(words=np.zeros(2, np.int8)), "packed codes are uint8, got int8"),
        (dict(words=np.array([255, 0], np.uint8)), "outside their alphabet of 3 levels"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    packed = PackedKernel.of(make_matrix(3, (2, 3)))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(packed, **change).check()
