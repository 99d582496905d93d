"""Checks of a quantization problem, made once before any solver starts."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.gram import GramStats


def check_problem(kernel: jax.Array, stats: GramStats, alphabet) -> np.ndarray:
    """Returns the checked alphabet (K,) as float64; the values of traced arrays are taken on trust.

    Raises:
      ValueError: kernel not (N, C); statistics of another width, of no rows or not finite; kernel not finite; an
        alphabet that is not ascending.
    """
    if jnp.ndim(kernel) != 2:
        raise ValueError(f"expected a 2-D kernel (inputs, outputs), got shape {jnp.shape(kernel)}")
    if stats.width != kernel.shape[0]:
        raise ValueError(
            f"the statistics are for {stats.width} inputs, but the kernel of shape {kernel.shape} has {kernel.shape[0]}"
        )
    facts = _facts(stats, kernel)
    if not isinstance(facts, jax.core.Tracer):
        some_rows, finite_stats, finite_kernel = np.asarray(facts)
        if not some_rows:
            raise ValueError("no calibration rows: the statistics are empty; update them with at least one batch")
        if not finite_stats:
            raise ValueError("NaN or infinity in the calibration statistics: the layer's inputs are not all finite")
        if not finite_kernel:
            raise ValueError(f"NaN or infinity in the kernel of shape {kernel.shape}")
    return make_alphabet(alphabet)


@jax.jit
def _facts(stats, kernel):
    """(3,) bool, in one call: there are rows; the statistics are finite; the kernel is."""
    largest = [jnp.stack([jnp.abs(a).max() for a in jax.tree.leaves(tree)]) for tree in (stats, kernel)]
    return jnp.stack([stats.count > 0, *(jnp.isfinite(a).all() for a in largest)])


def check_count(name: str, value: int, minimum: int) -> None:
    """ValueError unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
