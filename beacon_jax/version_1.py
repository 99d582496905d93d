"""Quantized kernels as version 1 wrote them: codes of ⌈log₂ K⌉ bits, low bits first, without checksums."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from beacon_jax.graph.place import Place
from beacon_jax.packed import PackedLeaf, free_elements
from beacon_jax.quant.packed import PackedKernel
from beacon_jax.quant.packing import pack_codes


def kernel_of(parts: Mapping[str, Any], shape: tuple[int, ...]) -> PackedKernel:
    """A kernel from its tensors. ValueError where there are not as many codes as the shape has, or one is too large."""
    levels = tuple(float(level) for level in parts["alphabet"])
    width, count = max(1, (len(levels) - 1).bit_length()), math.prod(shape)
    packed = parts["codes"]
    if packed.shape != (-(-count * width // 8),) or packed.dtype != np.uint8:
        raise ValueError(f"{packed.dtype} {packed.shape} does not hold {shape} codes of {width} bits")
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    codes = (bits << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8)
    return PackedKernel(pack_codes(codes, len(levels)), parts["scale"], parts.get("offset"), levels, tuple(shape))


def leaves_of(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, np.ndarray | PackedLeaf]:
    """{name: leaf} of a quantized model. ValueError where what is said does not fit the tensors."""
    leaves: dict[str, Any] = dict(tensors)
    by_leaf: dict[str, tuple[tuple[int, ...], str, list]] = {}
    for name, own in about.items():
        first = "leaf" not in own  # written before kernels had places: one two-dimensional leaf each
        leaf, mark = (f"{name}/kernel", f"{name}/kernel.") if first else (own["leaf"], f"{name}:")
        parts = {field: leaves.pop(f"{mark}{field}", None) for field in ("codes", "alphabet", "scale", "offset")}
        kernel = kernel_of(parts, tuple(own["shape"]))
        shape = tuple(own["shape" if first else "leaf_shape"])
        place = Place.of(np.arange(math.prod(shape)).reshape(shape)) if first else Place.from_dict(own["place"])
        by_leaf.setdefault(leaf, (shape, own["dtype"], []))[2].append((name, kernel, place))
    for leaf, (shape, dtype, members) in by_leaf.items():
        names, kernels, places = zip(*members, strict=True)
        free = free_elements(places, shape)
        rest = leaves[leaf].reshape(-1)[free] if free.any() else None
        leaves[leaf] = PackedLeaf(kernels, rest, names, places, shape, dtype)
    return leaves
