"""A quantized kernel as it is stored: packed codes, scale, offset."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.alphabets import MAX_LEVELS
from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.packing import check_packed, pack_codes, unpack_codes
from beacon_jax.quant.quantized import QuantizedMatrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedKernel:
    """A QuantizedMatrix with its codes packed, without bias_change and info.

    Invariants: words (packed_bytes(K, size),) uint8, see packing.py; scale (C,), or (E, C), float, finite; offset
    likewise of the same dtype, or None. Static: levels, the alphabet, ascending in scale's dtype; shape (N, C), or
    (E, N, C).
    """

    words: AnyArray
    scale: AnyArray
    offset: AnyArray | None
    levels: tuple[float, ...] = dataclasses.field(metadata=dict(static=True))
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(cls, matrix: QuantizedMatrix) -> "PackedKernel":
        """Packs on the host; arrays of NumPy. ValueError where a code is outside the alphabet."""
        levels = tuple(float(level) for level in np.asarray(matrix.alphabet))
        words = pack_codes(np.asarray(matrix.codes), len(levels))
        offset = None if matrix.offset is None else np.asarray(matrix.offset)
        return cls(words, np.asarray(matrix.scale), offset, levels, tuple(matrix.shape))

    def unpack(self) -> QuantizedMatrix:
        """The kernel with its codes as they are; under jit too."""
        codes = unpack_codes(self.words, len(self.levels), self.shape)
        alphabet = jnp.asarray(self.levels, self.scale.dtype)
        scale, offset = jnp.asarray(self.scale), None if self.offset is None else jnp.asarray(self.offset)
        return QuantizedMatrix(jnp.asarray(codes), alphabet, scale, offset)

    def dequantize(self) -> Float[Array, "*groups N C"]:
        """The float kernel, of this shape, to the last bit that of the matrix packed; under jit too."""
        return self.unpack().dequantize()

    def check(self) -> None:
        """Raises ValueError where the invariants do not hold, of arrays of any origin; reads all codes."""
        dtype = self.scale.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"scales are floating point, got {dtype}")
        levels = np.asarray(self.levels, dtype).astype(np.float64)
        if not 2 <= levels.size <= MAX_LEVELS or not np.isfinite(levels).all() or not (np.diff(levels) > 0).all():
            raise ValueError(f"levels are 2 to {MAX_LEVELS} finite numbers, ascending, got {self.levels[:6]}")
        if len(self.shape) not in (2, 3) or min(self.shape) < 1:
            raise ValueError(f"a kernel is (N, C) or (E, N, C), got {self.shape}")
        for what, array in (("scales", self.scale), ("offsets", self.offset)):
            if array is None:
                continue
            expected = (*self.shape[:-2], self.shape[-1])
            if array.shape != expected or array.dtype != dtype:
                raise ValueError(f"expected {dtype} {what} {expected}, got {array.dtype} {array.shape}")
            if not np.isfinite(np.asarray(array).astype(np.float64)).all():
                raise ValueError(f"{what} are not finite")
        if self.words.dtype != np.uint8:
            raise ValueError(f"packed codes are uint8, got {self.words.dtype}")
        check_packed(np.asarray(self.words), len(self.levels), self.shape)
