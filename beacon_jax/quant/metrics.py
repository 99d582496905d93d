"""How well a quantized kernel reproduces its layer's output, from Gram statistics."""

import jax
import jax.numpy as jnp

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.sweep import matmul, quadratic_form


def relative_output_error(kernel: jax.Array, quantized: QuantizedMatrix, stats: GramStats) -> jax.Array:
    """‖XW − X̃Ŵ‖² / ‖XW‖² over all channels, a scalar; 0 where XW = 0 = X̃Ŵ. kernel (N, C)."""
    error, target = output_errors(kernel, quantized, stats)
    return jnp.where(error.sum() > 0, error.sum() / target.sum(), 0)


def cosines(kernel: jax.Array, quantized: QuantizedMatrix, stats: GramStats) -> jax.Array:
    """cos∠(Xw, X̃ŵ) per channel, (C,), offset included; 0 where either output is zero. kernel (N, C)."""
    return _cosines(jnp.asarray(kernel, stats.H.dtype), quantized.dequantize(), stats)


@jax.jit
def output_errors(kernel: jax.Array, quantized: QuantizedMatrix, stats: GramStats) -> tuple[jax.Array, jax.Array]:
    """‖Xw − X̃ŵ‖² and ‖Xw‖² per channel, each (C,). kernel (N, C)."""
    W, W_hat = jnp.asarray(kernel, stats.H.dtype), quantized.dequantize()
    # ‖X̃E + (X − X̃)W‖² with E = W − Ŵ: no cancellation of large terms when Ŵ ≈ W and X̃ ≈ X.
    E = W - W_hat
    error = quadratic_form(stats.H, E)
    if not stats.one_stream:
        change = stats.F - stats.G - stats.G.T + stats.H
        error = error + 2 * (E * matmul(stats.G - stats.H, W)).sum(0) + quadratic_form(change, W)
    return jnp.maximum(error, 0), quadratic_form(stats.F, W)


@jax.jit
def _cosines(W, W_hat, stats):
    cross = (W_hat * matmul(stats.G, W)).sum(0)
    norm = jnp.sqrt(jnp.maximum(quadratic_form(stats.F, W) * quadratic_form(stats.H, W_hat), 0))
    return jnp.where(norm > 0, cross / jnp.where(norm > 0, norm, 1), 0)
