"""Powers of two that bring a layer's numbers near 1: no square or product of them overflows or is lost.

Dividing by a power of two is exact, so results are the same to the last bit wherever they were right without it.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.gram import GramStats


def power_of_two(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The greatest power of two that is not above, for each element of a; 1 where that is 0 or not finite."""
    limits = jnp.finfo(a.dtype)
    some = (a > 0) & jnp.isfinite(a)
    _, exponent = jnp.frexp(jnp.where(some, a, 1))
    exponent = jnp.clip(exponent - 1, limits.minexp + 1, limits.maxexp - 1)
    return jnp.where(some, jnp.ldexp(jnp.ones_like(a), exponent), 1)


def kernel_unit(W: Float[Array, "*groups N C"]) -> Float[Array, "*groups"]:
    """Of the largest weight of a kernel (N, C), a scalar; of each group of (E, N, C), (E,)."""
    return power_of_two(jnp.abs(W).max((-2, -1)))


def input_unit(stats: GramStats) -> Float[Array, "*groups"]:
    """Of the inputs' root mean square, the largest input's in the quantized model, a scalar; of E groups, (E,)."""
    own = stats.x_tilde
    count = jnp.where(stats.count > 0, stats.count, 1)[..., None]
    variance = own.diagonal / count
    # Not as the root of a sum of squares: the mean's would overflow or be lost before the root.
    return power_of_two((jnp.sqrt(jnp.maximum(variance, 0)) + jnp.abs(own.mean(stats.count))).max(-1))


def in_units(
    W: Float[Array, "*groups N C"], stats: GramStats, *, common: bool = False
) -> tuple[Float[Array, "*groups N C"], GramStats, Float[Array, "*groups"], Float[Array, "*groups"]]:
    """Kernel over its unit, statistics over that of the inputs (a residual stream over that of outputs), both units.

    Those are scalars, or (E,) for E groups; with `common` all groups have the largest one's.
    """
    kernel, inputs = kernel_unit(W), input_unit(stats)
    if common:
        kernel, inputs = (jnp.broadcast_to(unit.max(), unit.shape) for unit in (kernel, inputs))
    return W / kernel[..., None, None], stats.divided(inputs, kernel.astype(stats.dtype) * inputs), kernel, inputs
