"""How a model is quantized: what decides time and memory, and in which arithmetic."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from beacon_jax.streams import STORAGES

FORWARD_DTYPES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How to run the calibration.

    Attributes:
      activations: where calibration data waits between stages: "disk" (constant memory) or "memory".
      forward_dtype: of the calibration's forward passes: "float32" (the arrays' own types, with true float32 products
        on every backend) or "bfloat16"; Gram matrices and solvers are float32 with both. "float64" takes all of it,
        Gram matrices and solvers too, in double precision, so that the codes are the same on any number of devices; it
        needs jax_enable_x64.
      mesh: the devices to use (see `devices.make_mesh`), None for the default one.
      folder: where the temporary folders of "disk" are made, itself made if needed; None for the system's.

    Raises:
      ValueError: unknown activations or forward_dtype; float64 without jax_enable_x64; a mesh or folder that is none.
    """

    activations: str = "disk"
    forward_dtype: str = "float32"
    mesh: Mesh | None = None
    folder: str | os.PathLike | None = None

    def __post_init__(self):
        for what, value, known in (
            ("activations", self.activations, STORAGES),
            ("forward_dtype", self.forward_dtype, FORWARD_DTYPES),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")
        if not isinstance(self.mesh, Mesh | None):
            raise ValueError(f"mesh is a jax.sharding.Mesh, as make_mesh gives, or None, got {self.mesh!r}")
        if not isinstance(self.folder, str | os.PathLike | None):
            raise ValueError(f"folder is a path or None, got {self.folder!r}")
        if self.forward_dtype == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            raise ValueError("forward_dtype='float64' needs double precision in JAX: set JAX_ENABLE_X64=1")

    @property
    def cast(self) -> str | None:
        """The type that floating-point leaves are cast to, None for their own."""
        return None if self.forward_dtype == "float32" else self.forward_dtype


def run_in(dtype: str, run: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
    """run(params, batch) in a dtype of FORWARD_DTYPES.

    "float32" leaves the arrays as they are and makes products true float32 on every backend (TPUs default to bfloat16);
    "bfloat16" and "float64" cast what is floating point.
    """
    if dtype != "float32":
        params, batch = jax.tree.map(
            lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (params, batch)
        )
    with jax.default_matmul_precision("default" if dtype == "bfloat16" else "highest"):
        return run(params, batch)
