"""How far the residual stream of the quantized model has gone from the float model's, beside a layer's inputs.

A layer that is added to a residual stream R gives R + XW. Behind quantized layers there is R̃ in place of R, and a layer
that aims at XW + (R − R̃) instead of XW repairs what went wrong before it. All that a solver needs to know of it are
the sums here, over the same rows as those of gram.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.moments import outer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResidualChange:
    """Sums over the rows of one layer, w their weights, x̃ − s̃ its inputs about their shift, d = r − r̃ of its C outputs.

    Fields:
      products: Σw(x̃ − s̃)dᵀ, (N, C).
      total: Σw d, (C,).
    """

    products: Float[AnyArray, "*groups N C"]
    total: Float[AnyArray, "*groups C"]

    @classmethod
    def zeros(cls, n: int, outputs: int, dtype) -> "ResidualChange":
        """Of no rows at all."""
        return cls(jnp.zeros((n, outputs), dtype), jnp.zeros(outputs, dtype))

    def shifted(self, step: Float[AnyArray, "*groups N"]) -> "ResidualChange":
        """The same sums with inputs about a shift that is smaller by `step` (N,)."""
        return dataclasses.replace(self, products=self.products + outer(step, self.total))

    def plus(self, other: "ResidualChange") -> "ResidualChange":
        """The sums of both, whose inputs must have one shift."""
        return jax.tree.map(jnp.add, self, other)

    def divided(self, inputs: Float[AnyArray, "*groups"], outputs: Float[AnyArray, "*groups"]) -> "ResidualChange":
        """Of the same rows, inputs and outputs over units of their own, a scalar each or one for each group."""
        over = outputs[..., None]
        return ResidualChange(self.products / inputs[..., None, None] / over[..., None], self.total / over)

    def padded(self, outputs: int) -> "ResidualChange":
        """For a kernel with columns of zeros appended until it has so many."""
        more = outputs - self.total.shape[-1]
        return jax.tree.map(lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)]), self)
