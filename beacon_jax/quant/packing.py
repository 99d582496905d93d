"""Codes of ⌈log₂ K⌉ bits each, packed into bytes, low bits first."""

import math

import numpy as np


def bits_per_code(levels: int) -> int:
    """⌈log₂ K⌉ for an alphabet of K levels."""
    return max(1, (levels - 1).bit_length())


def pack_codes(codes: np.ndarray, levels: int) -> np.ndarray:
    """Packs uint8 codes of any shape, row-major, into ⌈size · bits / 8⌉ uint8. ValueError on a code ≥ levels."""
    if codes.size and codes.max() >= levels:
        raise ValueError(f"code {codes.max()} is outside an alphabet of {levels} levels")
    bits = np.arange(bits_per_code(levels), dtype=np.uint8)
    return np.packbits((codes.reshape(-1, 1) >> bits) & 1, bitorder="little")


def unpack_codes(packed: np.ndarray, levels: int, shape: tuple[int, ...]) -> np.ndarray:
    """The codes of this shape that `pack_codes` packed. ValueError where the number of bytes does not fit the shape."""
    width, count = bits_per_code(levels), math.prod(shape)
    if packed.size != -(-count * width // 8):
        raise ValueError(f"{packed.size} bytes do not hold {shape} codes of {width} bits")
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    return (bits << np.arange(width, dtype=np.uint8)).sum(1, dtype=np.uint8).reshape(shape)
