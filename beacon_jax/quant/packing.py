"""Codes of K levels packed into bytes, within 2 % of log₂ K bits each.

g codes are the digits of one number below K^g, which takes b bits: `grouping` finds the smallest group that is dense
enough (5 ternary codes in 8 bits, 3 of five levels in 7, 5 of six in 13; one code where K is a power of two). With n
groups, code j is digit j // n, the first the lowest, of number j % n; codes are taken row-major and filled up with 0.
The numbers are stored as planes: first the lowest byte of all n, then the next, ⌊b / 8⌋ planes of n bytes; then the
bits that are left, the lowest of all n first, packed into bytes, low bits first.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, UInt8

from beacon_jax.quant.array_types import AnyArray

DENSE_ENOUGH = 1.02  # of log₂ K bits
LIMB = 16  # bits; a remainder below 256 and a limb fit into uint32, the widest integer under jit without 64 bits


@functools.cache
def grouping(levels: int) -> tuple[int, int]:
    """(codes in a group g, bits of a group b): the smallest with K^g ≤ 2^b, b ≤ 64, and b / g ≤ 1.02 log₂ K."""
    for g in range(1, 65):
        b = (levels**g - 1).bit_length()
        if b <= DENSE_ENOUGH * g * math.log2(levels):
            return g, b
    raise ValueError(f"no group of codes of {levels} levels is dense enough; expected 2 to 256 levels")


def packed_bytes(levels: int, count: int) -> int:
    """The number of bytes that so many codes take."""
    g, b = grouping(levels)
    n = -(-count // g)
    return n * (b // 8) + -(-n * (b % 8) // 8)


def pack_codes(codes: Integer[np.ndarray, "*shape"], levels: int) -> UInt8[np.ndarray, " bytes"]:
    """Packs uint8 codes of any shape, row-major, into (packed_bytes,) uint8. ValueError on a code ≥ levels."""
    codes = np.asarray(codes)
    if codes.size and codes.max() >= levels:
        raise ValueError(f"code {codes.max()} is outside an alphabet of {levels} levels")
    g, b = grouping(levels)
    n = -(-codes.size // g)
    digits = np.pad(codes.reshape(-1), (0, g * n - codes.size)).reshape(g, n)
    numbers = np.zeros(n, np.uint64)
    for digit in digits[::-1]:
        numbers = numbers * np.uint64(levels) + digit
    planes = [(numbers >> np.uint64(8 * i)).astype(np.uint8) for i in range(b // 8)]
    rest = (numbers >> np.uint64(b - b % 8)).astype(np.uint8)
    bits = (rest[None, :] >> np.arange(b % 8, dtype=np.uint8)[:, None]) & 1
    return np.concatenate([*planes, np.packbits(bits, bitorder="little")])


def unpack_codes(packed: UInt8[AnyArray, "*bytes"], levels: int, shape: tuple[int, ...]) -> UInt8[AnyArray, "*shape"]:
    """The uint8 codes of this shape that `pack_codes` packed; of a JAX array as one, under jit too.

    Raises:
      ValueError: the number of bytes does not fit the shape.
    """
    count = math.prod(shape)
    if packed.shape != (packed_bytes(levels, count),):
        raise ValueError(f"an array {packed.shape} of bytes does not hold {shape} codes of {levels} levels")
    xp = jnp if isinstance(packed, jax.Array) else np
    g, b = grouping(levels)
    limbs = _limbs(packed, -(-count // g), b, xp)
    digits = []
    for _ in range(g - 1):
        limbs, digit = _divide(limbs, levels)
        digits.append(digit.astype(np.uint8))
    digits.append(limbs[0].astype(np.uint8))  # what is left is one digit
    return xp.concatenate(digits)[:count].reshape(shape)


def check_packed(
    packed: UInt8[np.ndarray, "*bytes"], levels: int, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "*shape"]:
    """The codes, as `unpack_codes`. ValueError also where the bytes are not what packing these codes would give."""
    codes = np.asarray(unpack_codes(packed, levels, shape))
    if (codes >= levels).any() or not np.array_equal(pack_codes(codes, levels), packed):
        raise ValueError(f"packed codes are outside their alphabet of {levels} levels")
    return codes


def _limbs(packed, n: int, b: int, xp) -> list:
    """The n numbers of b bits as uint32 arrays of 16 bits each, the lowest first."""
    parts = [packed[i * n : (i + 1) * n].astype(np.uint32) for i in range(b // 8)]
    if b % 8:
        bits = (packed[n * (b // 8) :][:, None] >> xp.arange(8, dtype=np.uint8)[None, :]) & 1
        bits = bits.reshape(-1)[: b % 8 * n].reshape(b % 8, n).astype(np.uint32)
        parts.append(functools.reduce(lambda a, c: a | c, (bits[i] << i for i in range(b % 8))))
    return [low | (high << 8) for low, high in zip(parts[::2], [*parts[1::2], 0], strict=False)]


def _divide(limbs: list, divisor: int) -> tuple[list, Any]:
    """Quotient and remainder of the numbers, by long division."""
    quotient: list[Any] = []
    remainder: Any = 0
    for limb in reversed(limbs):
        value = (remainder << LIMB) | limb
        quotient.append(value // divisor)
        remainder = value - quotient[-1] * divisor
    return quotient[::-1], remainder
