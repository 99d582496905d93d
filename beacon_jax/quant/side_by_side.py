"""Channels solved in parts, side by side on the cores of a CPU.

XLA runs what is elementwise in a solver's loop over the coordinates on one core, and only the products on all of them.
Channels are independent, so parts of them, each solved from a thread of its own, keep all cores at work. A part has the
same size on every machine, and for nearly all layers, which then share compiled code.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from beacon_jax.quant.precision import in_dtype

PART = 384  # channels


def part_size(kernel: Float[Array, "N C"]) -> int | None:
    """How many of the channels of a kernel (N, C) to solve at a time; None for all of them at once.

    Those of kernels of fewer than two parts, and wherever there is not one CPU and a value at hand.
    """
    if jax.default_backend() != "cpu" or isinstance(kernel, jax.core.Tracer) or len(kernel.sharding.device_set) > 1:
        return None
    return PART if kernel.shape[1] >= 2 * PART else None


def side_by_side(solve: Callable[..., Any], size: int | None, *arrays: Shaped[Array, "*_ C"]) -> Any:
    """`solve` of `size` channels of (…, C) arrays at a time, as many parts at once as there are cores; of all for None.

    solve: (…, size) arrays → pytree of (…, size) arrays; the last channel is repeated to fill the last part. Returns
    (…, C) arrays, on the first one's device.
    """
    if size is None:
        return solve(*arrays)
    first = arrays[0]
    channels, device = first.shape[-1], next(iter(first.devices()))
    size = min(size, channels)
    count = -(-channels // size)
    whole = [_filled(np.asarray(a), count * size) for a in arrays]

    def part(i):
        # JAX's settings belong to a thread.
        with jax.default_device(device), in_dtype(first.dtype):
            own = [jnp.asarray(a[..., i * size : (i + 1) * size]) for a in whole]
            return jax.tree.map(np.asarray, solve(*own))

    with ThreadPoolExecutor(min(count, cores())) as pool:
        found = list(pool.map(part, range(count)))
    with jax.default_device(device):
        return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts, axis=-1)[..., :channels]), *found)


def _filled(a, channels):
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, channels - a.shape[-1])], mode="edge")


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
