"""The result of every method: codes, alphabet, scale and offset of one kernel."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from beacon_jax.quant.alphabets import MAX_LEVELS
from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.precision import in_dtype

FEW_LEVELS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """A kernel quantized per output channel: Ŵ = scale · alphabet[codes] + offset.

    Invariants: codes (N, C) uint8, every entry < K; alphabet (K,) ascending, float; scale (C,) float, finite, of
    either sign; offset (C,) float, or None for no offset. alphabet, scale and offset share one dtype, which is the
    dtype of the dequantized kernel. For E groups codes are (E, N, C), scale and offset (E, C); alphabet stays (K,).

    `bias_change` (C,), or (E, C), is what is to be added to the layer's bias too, None for nothing; it is no part
    of the kernel. `info` holds (…, C) arrays that the method reports about its solve (Beacon: cosine, sweeps,
    fixed_point and cosine_history). It is no part of the quantized weights and is not saved.
    """

    codes: UInt8[AnyArray, "*groups N C"]
    alphabet: Float[AnyArray, " K"]
    scale: Float[AnyArray, "*groups C"]
    offset: Float[AnyArray, "*groups C"] | None = None
    info: Mapping[str, AnyArray] = dataclasses.field(default_factory=dict)
    bias_change: Float[AnyArray, "*groups C"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C) or (E, N, C) of the kernel."""
        return self.codes.shape

    def dequantize(self) -> Float[Array, "*groups N C"]:
        """The kernel Ŵ, of the shape of the codes; inside another jit the same to the last bit."""
        alphabet = self.alphabet
        with in_dtype(alphabet.dtype):
            # As long as others, so that one program serves them all.
            missing = (FEW_LEVELS if len(alphabet) <= FEW_LEVELS else MAX_LEVELS) - len(alphabet)
            traced = isinstance(alphabet, jax.core.Tracer)
            alphabet = jnp.pad(alphabet, (0, missing)) if traced else np.pad(np.asarray(alphabet), (0, missing))
            return _dequantized(self.codes, alphabet, self.scale, self.offset)

    def astype(self, dtype) -> "QuantizedMatrix":
        """The same with alphabet, scale and offset in this dtype, and so the dequantized kernel."""

        def cast(a):
            return None if a is None else a.astype(dtype)

        return dataclasses.replace(
            self,
            alphabet=cast(self.alphabet),
            scale=cast(self.scale),
            offset=cast(self.offset),
            bias_change=cast(self.bias_change),
        )

    def first_channels(self, count: int) -> "QuantizedMatrix":
        """The same of the first `count` output channels alone."""
        if count == self.shape[-1]:
            return self
        codes, scale, offset, info, bias_change = jax.tree.map(
            lambda a: a[..., :count], (self.codes, self.scale, self.offset, self.info, self.bias_change)
        )
        return QuantizedMatrix(codes, self.alphabet, scale, offset, info, bias_change)


@jax.jit  # for each shape one small program, of what would be seven
def _dequantized(codes, alphabet, scale, offset):
    kernel = scale[..., None, :] * alphabet[codes.astype(jnp.int32)]
    # Changes no number, but keeps compilers from multiplying and adding in one step, which rounds only once.
    # (XLA takes barriers and reduce_precision out before it makes such steps.)
    largest = jnp.finfo(kernel.dtype).max
    kernel = jax.lax.clamp(-largest, kernel, largest)
    return kernel if offset is None else kernel + offset[..., None, :]
