"""Parameters whose quantized kernels are held packed, and dequantized where they are used."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped

from beacon_jax.graph.place import Place
from beacon_jax.graph.program import leaf_names
from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.packed import PackedKernel
from beacon_jax.quant.quantized import QuantizedMatrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedLeaf:
    """A parameter leaf with packed kernels in it: of a stack of kernels several, some of which may be float.

    Attributes:
      kernels: in the order of `layers`.
      rest: (count,) the elements of the flat leaf that are in no kernel, in their order; None where there are none.
      layers: the kernels' names. Static, as what follows.
      places: where in the leaf each lies.
      shape, dtype: of the leaf.
    """

    kernels: tuple[PackedKernel, ...]
    rest: Shaped[AnyArray, "*count"] | None
    layers: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))
    places: tuple[Place, ...] = dataclasses.field(metadata=dict(static=True))
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    dtype: str = dataclasses.field(metadata=dict(static=True))

    def dequantize(self) -> Shaped[jax.Array, "*shape"]:
        """The leaf, to the last bit that of the quantized model; under jit too."""
        size = math.prod(self.shape)
        flat = jnp.zeros(size, self.dtype)
        if self.rest is not None:
            # The barrier keeps the compiler from working the positions out as a constant of the leaf's size.
            free = jax.lax.optimization_barrier(jnp.ones(size, bool))
            for place in self.places:
                free = place.put(free, jnp.zeros(place.shape, bool))
            flat = jnp.where(free, jnp.asarray(self.rest)[jnp.maximum(jnp.cumsum(free) - 1, 0)], flat)
        for kernel, place in zip(self.kernels, self.places, strict=True):
            flat = place.put(flat, kernel.dequantize().astype(self.dtype))
        # And here from working kernels into what they are multiplied with, where sums may come out another way.
        return jax.lax.optimization_barrier(flat.reshape(self.shape))

    def check(self) -> None:
        """Raises ValueError where kernels, places, shape and rest do not fit each other."""
        if not len(self.kernels) == len(self.layers) == len(self.places):
            raise ValueError("there are not as many kernels as layers and places")
        for name, kernel, place in zip(self.layers, self.kernels, self.places, strict=True):
            try:
                kernel.check()
                if place.shape != kernel.shape:
                    raise ValueError(f"a kernel {kernel.shape} does not fit its place {place.shape}")
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        free = free_elements(self.places, self.shape)
        dtype = None if self.rest is None else (self.rest.shape, str(self.rest.dtype))
        if dtype != (None if not free.any() else ((int(free.sum()),), self.dtype)):
            raise ValueError(f"the layers {', '.join(self.layers)} leave {free.sum()} of {self.shape}, not {dtype}")


def free_elements(places: tuple[Place, ...], shape: tuple[int, ...]) -> Bool[np.ndarray, " size"]:
    """(size,) bool: which elements of a flat leaf of this shape are in none of these places.

    Raises:
      ValueError: places outside the leaf, or that have an element in common.
    """
    free = np.ones(math.prod(shape), bool)
    for place in places:
        low, high = place.bounds
        if low < 0 or high >= free.size:
            raise ValueError(f"a kernel's place ({low} to {high}) is outside its leaf {shape}")
        free = place.write(free, np.zeros(place.shape, bool))
    if free.sum() != free.size - sum(math.prod(place.shape) for place in places):
        raise ValueError(f"kernels in a leaf {shape} overlap")
    return free


def pack_params(params: Any, layers: Mapping[str, QuantizedMatrix], places: Mapping[str, tuple[str, Place]]) -> Any:
    """The parameters of a quantized model, with every leaf that has quantized kernels as a PackedLeaf.

    Args:
      params: of a QuantizedModel, or these with other leaves changed, as norm tuning does.
      layers: {layer name: quantized kernel}.
      places: {layer name: its leaf's path and its place in the leaf}.

    Returns:
      A pytree of the same structure; `dequantize` gives `params` back, to the last bit.

    Raises:
      ValueError: a layer that has no place, or whose leaf is not in the tree, or whose kernel there is not the one
        quantized: it was changed afterwards, and the change would be lost.
    """
    leaves, structure = jax.tree.flatten(params)
    index = {name: i for i, name in enumerate(leaf_names(params))}
    by_leaf: dict[str, list[str]] = {}
    for name in layers:
        if name not in places:
            raise ValueError(f"layer {name!r} has no place among {len(places)}")
        leaf, _ = places[name]
        if leaf not in index:
            raise ValueError(f"layer {name!r} has no parameter {leaf!r} in the tree")
        by_leaf.setdefault(leaf, []).append(name)
    for leaf, names in by_leaf.items():
        own = np.asarray(leaves[index[leaf]])
        for name in names:
            _check_unchanged(name, places[name][1].read(own), layers[name])
        kernels, own_places = (tuple(PackedKernel.of(layers[n]) for n in names), tuple(places[n][1] for n in names))
        free = free_elements(own_places, own.shape)
        rest = own.reshape(-1)[free] if free.any() else None
        packed = PackedLeaf(kernels, rest, tuple(names), own_places, own.shape, str(own.dtype))
        leaves[index[leaf]] = jax.tree.map(jnp.asarray, packed)
    return jax.tree.unflatten(structure, leaves)


def _check_unchanged(name: str, kernel: Shaped[np.ndarray, "*groups N C"], matrix: QuantizedMatrix) -> None:
    quantized = np.asarray(matrix.dequantize()).astype(kernel.dtype)
    if kernel.shape != quantized.shape or not np.array_equal(kernel, quantized):
        raise ValueError(
            f"the kernel of layer {name!r} among the parameters is not the quantized one: it was changed after "
            "quantization, and a file of its codes would lose the change"
        )


def dequantize(params: Any) -> Any:
    """The parameters with every PackedLeaf as the float array that it stands for; inside jit, where it is used."""
    return jax.tree.map(lambda leaf: leaf.dequantize() if is_packed(leaf) else leaf, params, is_leaf=is_packed)


def is_packed(leaf: Any) -> TypeGuard[PackedLeaf]:
    """Whether it is a PackedLeaf."""
    return isinstance(leaf, PackedLeaf)
