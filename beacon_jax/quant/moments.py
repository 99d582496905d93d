"""Mean and second moments of one stream of rows, as sums about a shift (see gram.py)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.triangular import mirrored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over the rows x of one stream, w their weights: shift s, total Σw(x − s), products Σw(x − s)(x − s)ᵀ.

    (N,), (N,) and (N, N), the last symmetric positive semidefinite, or None while it is not added up.
    """

    shift: Float[AnyArray, "*groups N"]
    total: Float[AnyArray, "*groups N"]
    products: Float[AnyArray, "*groups N N"] | None

    @classmethod
    def zeros(cls, n: int, dtype, *, products: bool = True) -> "Moments":
        """Of no rows at all. The arrays are separate ones, so that they can be donated."""
        return cls(jnp.zeros(n, dtype), jnp.zeros(n, dtype), jnp.zeros((n, n), dtype) if products else None)

    def shifted(self, shift: Float[AnyArray, "*groups N"], count: Float[AnyArray, "*groups"]) -> "Moments":
        """The same sums, of `count` rows, about another shift."""
        step, count = self.shift - shift, count[..., None]
        half = outer(self.total + count / 2 * step, step)
        products = None if self.products is None else self.products + (half + half.mT)
        return Moments(shift, self.total + count * step, products)

    def divided(self, unit: Float[AnyArray, "*groups"]) -> "Moments":
        """Of the same rows over a unit, a scalar or one for each group."""
        unit = unit[..., None]
        products = None if self.products is None else self.products / unit[..., None] / unit[..., None]
        return Moments(self.shift / unit, self.total / unit, products)

    def mirrored(self) -> "Moments":
        """The same, of products of which what is below the diagonal and on it is given."""
        return self if self.products is None else Moments(self.shift, self.total, mirrored(self.products))

    @property
    def diagonal(self) -> Float[AnyArray, "*groups N"]:
        """(N,) of the products, which must be there."""
        assert self.products is not None, "moments without products have no diagonal"
        return jnp.diagonal(self.products, axis1=-2, axis2=-1)

    def correction(self, count: Float[AnyArray, "*groups"]) -> Float[AnyArray, "*groups N"]:
        """(N,) mean − shift; 0 for no rows."""
        return self.total / jnp.where(count > 0, count, 1)[..., None]

    def mean(self, count: Float[AnyArray, "*groups"]) -> Float[AnyArray, "*groups N"]:
        """(N,); 0 for no rows."""
        return self.shift + self.correction(count)

    def variance_sums(self, count: Float[AnyArray, "*groups"]) -> Float[AnyArray, "*groups N"]:
        """(N,) weighted sums of squares about the mean, but for rounding at least 0."""
        return self.diagonal - self.total * self.correction(count)

    def plus(self, other: "Moments") -> "Moments":
        """The sums of both, which must have one shift."""
        products = None if self.products is None or other.products is None else self.products + other.products
        return Moments(self.shift, self.total + other.total, products)


def outer(a: Float[AnyArray, "*groups N"], b: Float[AnyArray, "*groups M"]) -> Float[AnyArray, "*groups N M"]:
    """(…, N, M) products a_i b_j."""
    return a[..., :, None] * b[..., None, :]
