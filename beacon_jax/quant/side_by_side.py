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

from beacon_jax.quant.precision import in_dtype

PART = 384  # channels


def part_size(kernel: jax.Array) -> int | None:
    """How many of the channels of a kernel (N, C) to solve at a time; None for all of them at once.

    Those of kernels of fewer than two parts, and wherever there is not one CPU and a value at hand.
    """
    if jax.default_backend() != "cpu" or isinstance(kernel, jax.core.Tracer) or len(kernel.sharding.device_set) > 1:
        return None
    return PART if kernel.shape[1] >= 2 * PART else None


def side_by_side(solve: Callable[[jax.Array], Any], kernel: jax.Array, size: int) -> Any:
    """`solve` of `size` channels of a kernel (N, C) at a time, as many parts at once as there are cores.

    solve: (N, size) → pytree of (…, size) arrays; zero channels are appended to the last part. Returns (…, C) arrays,
    on the kernel's device.
    """
    channels, whole = kernel.shape[1], np.asarray(kernel)
    size = min(size, channels)
    count = -(-channels // size)
    whole = np.pad(whole, [(0, 0), (0, count * size - channels)])
    device = next(iter(kernel.devices()))

    def part(i):
        # JAX's settings belong to a thread.
        with jax.default_device(device), in_dtype(kernel.dtype):
            return jax.tree.map(np.asarray, solve(jnp.asarray(whole[:, i * size : (i + 1) * size])))

    with ThreadPoolExecutor(min(count, _cores())) as pool:
        found = list(pool.map(part, range(count)))
    with jax.default_device(device):
        return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts, axis=-1)[..., :channels]), *found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
