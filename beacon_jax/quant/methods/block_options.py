"""Options of the methods that visit the coordinates in blocks (see sweep.py)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.pallas_block import power_of_two_block
from beacon_jax.quant.sweep import even_block

FORMS = ("auto", "xla", "pallas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions(Options):
    """How the coordinates are cut into blocks, and what visits one."""

    block_size: int = option(64, "coordinates per block, at most", unit="inputs", at_least=1, decides_result=False)
    block: str = option(
        "auto",
        "xla; pallas: a kernel for GPU or TPU, interpreted (slowly) on a CPU; auto: what was measured to be faster "
        "on this kind of chip, so xla on all so far",
        choices=FORMS,
        decides_result=False,
    )

    def blocks(self, kernel: Float[Array, "N C"]) -> dict[str, int | str]:
        """block_size, twice as many for kernels, and block ("xla" or "pallas") for a kernel (N, C).

        A TPU's kernels have no double precision; there, float64 is visited by XLA's form.

        Raises:
          ValueError: "pallas" for a kernel on several devices.
        """
        N = kernel.shape[0]
        no_kernel = kernel.dtype == jnp.float64 and jax.default_backend() == "tpu"
        if self.block != "pallas" or no_kernel:
            return {"block_size": even_block(N, self.block_size), "block": "xla"}
        if not isinstance(kernel, jax.core.Tracer) and len(kernel.sharding.device_set) > 1:
            raise ValueError("block='pallas' is for one device, and the kernel lies on several; use block='xla'")
        return {"block_size": power_of_two_block(N, 2 * self.block_size), "block": "pallas"}
