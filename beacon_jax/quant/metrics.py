"""How well a quantized kernel, and its change of the bias, reproduce a layer's output, from Gram statistics.

The part of an error that is the same in every row, n·(μᵀw − μ̃ᵀŵ − b)², is computed apart from what varies, and all of
it in float64 where the inputs' mean is many times their spread (see precision.py; not inside jit or vmap).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.precision import in_dtype, mean_over_spread, working_dtype
from beacon_jax.quant.products import matmul
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.triangular import quadratic_form
from beacon_jax.quant.units import in_units


def relative_output_error(
    kernel: Float[AnyArray, "*groups N C"], quantized: QuantizedMatrix, stats: GramStats
) -> Float[Array, ""]:
    """‖XW − X̃Ŵ − 1bᵀ‖² / ‖XW‖² over all channels (and groups), a scalar; 0 where XW = 0 = X̃Ŵ. b: `bias_change`, or 0.

    kernel (N, C), or (E, N, C) with statistics of E groups. The dtype is that of the statistics.
    """
    return _measure(_relative_error, kernel, quantized, stats)


def cosines(
    kernel: Float[AnyArray, "*groups N C"], quantized: QuantizedMatrix, stats: GramStats
) -> Float[Array, "*groups C"]:
    """cos∠(Xw, X̃ŵ + b 1) per channel, offset included; 0 where either output is zero. b: `bias_change`, or 0.

    (C,) for a kernel (N, C), (E, C) for one of E groups (E, N, C). The dtype is that of the statistics.
    """
    return _measure(_cosines, kernel, quantized, stats)


def output_error_and_cosines(
    kernel: Float[AnyArray, "*groups N C"], quantized: QuantizedMatrix, stats: GramStats
) -> tuple[Float[Array, ""], Float[Array, "*groups C"]]:
    """`relative_output_error` and `cosines`, from one compiled program that shares their products."""
    return _measure(_error_and_cosines, kernel, quantized, stats)


_mean_over_spread = jax.jit(mean_over_spread)


def _measure(measure, kernel, quantized, stats):
    dtype = working_dtype(stats.dtype, _mean_over_spread(stats))
    with in_dtype(dtype):
        W, W_hat = jnp.asarray(kernel, dtype), jnp.asarray(quantized.dequantize(), dtype)
        b = quantized.bias_change
        b = jnp.asarray(np.zeros((*W.shape[:-2], W.shape[-1]), dtype) if b is None else b, dtype)
        return jax.tree.map(lambda a: a.astype(stats.dtype), measure(W, W_hat, b, stats.astype(dtype)))


def _in_units(function):
    """`function` of kernel, quantized kernel, change of the bias and statistics, all of them over their units."""

    @functools.wraps(function)
    def run(W, W_hat, b, stats):
        W, stats, kernel, inputs = in_units(W, stats, common=True)
        return function(W, W_hat / kernel[..., None, None], b / kernel[..., None] / inputs[..., None], stats)

    return run


def _each_group(function):
    """`function` of (N, C) kernels and statistics of one layer, for those with leading axes too."""

    @functools.wraps(function)
    def run(W, W_hat, b, stats):
        return (function if W.ndim == 2 else jax.vmap(run))(W, W_hat, b, stats)

    return run


@_each_group
def _sums(W, W_hat, b, stats):
    """‖XW − X̃Ŵ − 1bᵀ‖², ‖XW‖², ⟨XW, X̃Ŵ + 1bᵀ⟩ and ‖X̃Ŵ + 1bᵀ‖² of every channel, each (C,)."""
    # ‖X̃E + (X − X̃)W‖² with E = W − Ŵ: no cancellation of large terms when Ŵ ≈ W and X̃ ≈ X.
    E = W - W_hat
    S, C, F = stats.centred
    mean_x, mean_xt = stats.means()
    count, of_W = stats.count, matmul(S, W)
    own, error, shift = (W * of_W).sum(0), quadratic_form(S, E), matmul(mean_xt, E) - b
    target, cross = own, of_W
    if not stats.one_stream:
        change, of_change = quadratic_form(F - C - C.T + S, W), matmul(C - S, W)
        error, shift = error + 2 * (E * of_change).sum(0) + change, shift + matmul(stats.mean_change, W)
        target, cross = own + 2 * (W * of_change).sum(0) + change, of_W + of_change
    y, v = matmul(mean_x, W), matmul(mean_xt, W_hat) + b
    return (
        jnp.maximum(error, 0) + count * jnp.square(shift),
        jnp.maximum(target, 0) + count * jnp.square(y),
        (W_hat * cross).sum(0) + count * y * v,
        jnp.maximum(quadratic_form(S, W_hat), 0) + count * jnp.square(v),
    )


def _error_of(sums):
    error, target = (own.sum() for own in sums[:2])
    return jnp.where(error > 0, error / target, 0)


def _cosine_of(sums):
    _, target, cross, output = sums
    norm = jnp.sqrt(target) * jnp.sqrt(output)
    return jnp.where(norm > 0, cross / jnp.where(norm > 0, norm, 1), 0)


def _error(*args):
    return _error_of(_sums(*args))


def _cosine(*args):
    return _cosine_of(_sums(*args))


def _both(*args):
    sums = _sums(*args)
    return _error_of(sums), _cosine_of(sums)


_relative_error, _cosines, _error_and_cosines = (jax.jit(_in_units(f)) for f in (_error, _cosine, _both))
