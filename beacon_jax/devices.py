"""Several devices, of one host or of many: a mesh with an axis for rows of data and one for output channels.

Calibration and test images are sharded over the axis "data"; XLA adds the devices' Gram matrices up. A layer's channels
are independent, so the solver shards them over all devices, and they exchange nothing but whether all are done. Every
process reads the same images and keeps the rows of its own devices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from beacon_jax.leaves import as_key, is_key, key_name, key_numbers

DATA, MODEL = "data", "model"


def make_mesh(data: int = 0, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """A mesh of these devices, or of all of all processes: `data` × `model`, data = 0 for as many as model leaves.

    None where there is one device.

    Raises:
      ValueError: data × model is not the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if data < 0 or model < 1 or (data or count // model) * model != count:
        raise ValueError(
            f"a mesh of data={data} × model={model} does not fit {count} devices; data=0 takes what is left"
        )
    if count == 1:
        return None
    return jax.make_mesh((count // model, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays lie on a mesh; with mesh None, on the default device, and every method leaves them as they are."""

    mesh: Mesh | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args). Whatever a run computes on the devices goes through here, so that it can be listed."""
        return function(*args)

    def by_rows(self, shape: Sequence[int]) -> NamedSharding | None:
        """Of arrays of that shape: the first axis over "data", or whole on every device where it cannot be divided."""
        if self.mesh is None:
            return None
        even = len(shape) > 0 and shape[0] % self.mesh.shape[DATA] == 0
        return NamedSharding(self.mesh, PartitionSpec(DATA) if even else PartitionSpec())

    @property
    def replicated(self) -> NamedSharding | None:
        """Whole on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def rows(self, batch: np.ndarray) -> jax.Array | np.ndarray:
        """A batch (B, …), the same in every process, as a global array by rows."""
        return self.restored(self.own_rows(batch), np.shape(batch))

    def own_rows(self, batch: jax.Array | np.ndarray) -> np.ndarray:
        """The rows of a batch that this process's devices hold, in order; what it keeps of the batch."""
        sharding = self.by_rows(np.shape(batch))
        if sharding is None or batch.ndim == 0:
            return np.asarray(batch)
        if isinstance(batch, jax.Array):
            parts = {shard.index[0].start or 0: shard.data for shard in batch.addressable_shards}
        else:
            parts = {start: batch[start:stop] for start, stop in _own_ranges(sharding, batch.shape)}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    def restored(self, own: np.ndarray, shape: Sequence[int]) -> jax.Array | np.ndarray:
        """The global array of that shape by rows, from what `own_rows` gave in each process."""
        sharding = self.by_rows(shape)
        if sharding is None:
            return own
        if not shape:
            return self.everywhere(own)
        ranges = _own_ranges(sharding, shape)
        ends = np.cumsum([stop - start for start, stop in ranges])
        held = {start: own[end - (stop - start) : end] for (start, stop), end in zip(ranges, ends, strict=True)}

        def part(index: Any) -> np.ndarray:
            return held[index[0].start or 0]

        return jax.make_array_from_callback(tuple(shape), sharding, part)

    def everywhere(self, tree: Any) -> Any:
        """A pytree whole on every device; what each process passes must be the same, or be global arrays."""
        whole = self.replicated
        if whole is None:
            return tree

        def place(a):
            if isinstance(a, jax.Array) and not a.is_fully_addressable:
                return a if a.sharding.is_fully_replicated else jax.device_put(a, whole)
            if is_key(a):
                return as_key(place(key_numbers(a)), key_name(a))
            host = np.asarray(a)
            return jax.make_array_from_callback(host.shape, whole, lambda index: host[index])

        return jax.tree.map(place, tree)

    def by_channels(self, kernel: jax.Array) -> jax.Array:
        """A kernel (N, C) with its channels over all devices, zero ones appended until they can be divided evenly."""
        shape, sharding = self.channel_layout(kernel.shape)
        if sharding is None:
            return kernel
        padded = np.pad(np.asarray(kernel), [(0, 0), (0, shape[1] - kernel.shape[1])])
        return jax.make_array_from_callback(shape, sharding, lambda index: padded[index])

    def channel_layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], NamedSharding | None]:
        """The shape that a kernel (N, C) of that shape has with zero channels appended, and how it then lies."""
        if self.mesh is None:
            return shape, None
        rows, channels = shape
        sharding = NamedSharding(self.mesh, PartitionSpec(None, (DATA, MODEL)))
        return (rows, channels + -channels % math.prod(self.mesh.shape.values())), sharding

    def constrained(self, tree: Any, sharding: NamedSharding | None) -> Any:
        """Inside jit: the tree, to be laid out so."""
        return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def _own_ranges(sharding: NamedSharding, shape: Sequence[int]) -> list[tuple[int, int]]:
    indices: Mapping[Any, Any] = sharding.addressable_devices_indices_map(tuple(shape))
    return sorted({index[0].indices(shape[0])[:2] for index in indices.values()})
