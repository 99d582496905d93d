"""Gram statistics of a layer's calibration inputs: all that any method here needs to know of the data.

Letters (Beacon, arXiv 2508.20293): X (m, N) inputs of the layer in the float model, X̃ (m, N) inputs of the same layer
in the model whose earlier layers are quantized. Everything is a sum over rows, so batches are folded in one at a time
at constant memory, and statistics of disjoint batches (other hosts, other devices) add up.

The sums are of x − s in place of x, with a shift s near the mean: what the inputs vary by keeps its precision however
large their mean is, where X̃ᵀX̃ alone loses it in float32 from a mean of some hundred times the spread on. The mean is s
plus a small correction, so it is known to more digits than one number of the dtype holds.

Arrays may have leading axes (groups: the statistics of E layers of one shape are (E, N, N) and so on); rows are added
to all of them under jax.vmap.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.moments import Moments, outer
from beacon_jax.quant.products import matmul
from beacon_jax.quant.residual import ResidualChange
from beacon_jax.quant.rows import checked_rows
from beacon_jax.quant.triangular import add_gram


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GramStats:
    """Sums over the calibration rows of one layer.

    Fields:
      x_tilde: moments of X̃, the inputs that the quantized layer will have.
      count: sum of the rows' weights, which is m where none are given; a float scalar.
      rows: number of rows of weight above 0, an int32 scalar.
      x: moments of X, None where all rows came from one stream (X̃ = X).
      cross: Σw(x̃ − s̃)(x − s)ᵀ, (N, N), None where all rows came from one stream.
      residual: of the residual stream that the layer's output is added to; None where it is not added up.

    Float32, or float64 where asked for. H = X̃ᵀX̃, G = X̃ᵀX and F = XᵀX, each (N, N) and weighted, are put together on
    demand; `centred` gives them without the means' part. With one stream G and F are H itself, and a solver can tell so
    at trace time. `x` lacks its products only while rows are added up for which they are known already (`zeros` with
    float_known), until `with_float` puts them in.
    """

    x_tilde: Moments
    count: Float[AnyArray, "*groups"]
    rows: Int[AnyArray, "*groups"]
    x: Moments | None = None
    cross: Float[AnyArray, "*groups N N"] | None = None
    residual: ResidualChange | None = None

    @classmethod
    def zeros(
        cls,
        n: int,
        dtype=jnp.float32,
        *,
        streams: int = 1,
        float_known: bool = False,
        groups: int | None = None,
        residual: int | None = None,
    ) -> "GramStats":
        """Statistics of no rows at all, for inputs of width n.

        streams=2 makes room for X̃ ≠ X from the start; float_known leaves out what depends on X alone, a third of the
        arithmetic; groups=E gives every array a leading axis of E layers; residual=C makes room for the change of a
        residual stream of width C.
        """
        x, cross = None, None
        if streams == 2:
            x, cross = Moments.zeros(n, dtype, products=not float_known), jnp.zeros((n, n), dtype)
        change = None if residual is None else ResidualChange.zeros(n, residual, dtype)
        stats = cls(Moments.zeros(n, dtype), jnp.zeros((), dtype), jnp.zeros((), jnp.int32), x, cross, change)
        return stats if groups is None else jax.tree.map(lambda a: jnp.zeros((groups, *a.shape), a.dtype), stats)

    @property
    def H(self) -> Float[AnyArray, "*groups N N"]:
        """X̃ᵀX̃, (N, N)."""
        return self._whole(self.x_tilde.products, self.x_tilde, self.x_tilde)

    @property
    def G(self) -> Float[AnyArray, "*groups N N"]:
        """X̃ᵀX, (N, N)."""
        return self.H if self.x is None else self._whole(self.cross, self.x_tilde, self.x)

    @property
    def F(self) -> Float[AnyArray, "*groups N N"]:
        """XᵀX, (N, N)."""
        return self.H if self.x is None else self._whole(self.x.products, self.x, self.x)

    @property
    def centred(
        self,
    ) -> tuple[Float[AnyArray, "*groups N N"], Float[AnyArray, "*groups N N"], Float[AnyArray, "*groups N N"]]:
        """H, G, F of the inputs minus their means, H − m μ̃μ̃ᵀ, G − m μ̃μᵀ, F − m μμᵀ. With one stream all the same."""
        S = self._centred(self.x_tilde.products, self.x_tilde, self.x_tilde)
        if self.x is None:
            return S, S, S
        return S, self._centred(self.cross, self.x_tilde, self.x), self._centred(self.x.products, self.x, self.x)

    def _centred(self, products, a, b):
        return products - outer(a.total, b.correction(self.count))

    def _whole(self, products, a, b):
        means = outer(a.mean(self.count), b.mean(self.count))
        return self._centred(products, a, b) + self.count[..., None, None] * means

    @property
    def sum_x(self) -> Float[AnyArray, "*groups N"]:
        """Xᵀ1, (N,)."""
        return self.means()[0] * self.count[..., None]

    @property
    def sum_xt(self) -> Float[AnyArray, "*groups N"]:
        """X̃ᵀ1, (N,)."""
        return self.means()[1] * self.count[..., None]

    def residual_cross(self, *, centred: bool) -> Float[AnyArray, "*groups N C"]:
        """(N, C) X̃ᵀ(R − R̃); with `centred`, of X̃ and R − R̃ minus their means."""
        own = self.residual
        assert own is not None, "these statistics have no room for the change of a residual stream"
        if centred:
            return own.products - outer(self.x_tilde.correction(self.count), own.total)
        return own.shifted(self.x_tilde.shift).products

    @property
    def one_stream(self) -> bool:
        """Whether all rows came from one stream, so that G = F = H."""
        return self.x is None

    @property
    def width(self) -> int:
        """N."""
        return self.x_tilde.shift.shape[-1]

    @property
    def groups(self) -> tuple[int, ...]:
        """The leading axes: () for one layer."""
        return self.count.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the sums."""
        return self.x_tilde.shift.dtype

    @property
    def squares(self) -> Float[AnyArray, "*groups N"]:
        """(N,) diagonal of X̃ᵀX̃."""
        own = self.x_tilde
        return own.variance_sums(self.count) + self.count[..., None] * jnp.square(own.mean(self.count))

    @property
    def dead(self) -> Bool[AnyArray, "*groups N"]:
        """(N,) bool: inputs that are zero in every row of X̃, whose codes change nothing in the output."""
        own = self.x_tilde
        return (own.shift == 0) & (own.diagonal == 0)

    def means(self) -> tuple[Float[AnyArray, "*groups N"], Float[AnyArray, "*groups N"]]:
        """Column means of X and of X̃, each (N,); 0 for no rows."""
        return (self.x_tilde if self.x is None else self.x).mean(self.count), self.x_tilde.mean(self.count)

    @property
    def mean_change(self) -> Float[AnyArray, "*groups N"]:
        """(N,) mean of X minus mean of X̃, with the digits that their difference has and they themselves have not."""
        if self.x is None:
            return jnp.zeros_like(self.x_tilde.shift)
        a, b = self.x, self.x_tilde
        return (a.shift - b.shift) + (a.correction(self.count) - b.correction(self.count))

    def astype(self, dtype) -> "GramStats":
        """The same sums in another dtype."""
        return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, self)

    def update(
        self,
        x: Shaped[AnyArray, "*rows N"],
        x_tilde: Shaped[AnyArray, "*rows_tilde N_tilde"] | None = None,
        weights: ArrayLike | Sequence | None = None,
        residual: Shaped[AnyArray, "*rows_residual C"] | None = None,
        *,
        finish: bool = True,
    ) -> "GramStats":
        """Adds the rows of x (…, N), and of x_tilde where X̃ differs from X.

        Args:
          x: the inputs in the float model, float.
          x_tilde: those in the quantized model, None for the same.
          weights: (m,), one for each of the m rows, or an array that broadcasts to x.shape[:-1]; finite, at least 0.
            A row of weight 0 counts nowhere, whatever it holds.
          residual: (…, C), R − R̃ of the same rows, for statistics that have room for it.
          finish: False leaves what is above the diagonal of the symmetric products as it may be, for many batches in a
            row; call `finished` after the last.

        Raises:
          ValueError: another width; complex numbers; other rows in x_tilde or residual than in x; a residual where
            there is no room for it, or none where there is; weights that fit neither form or (where their values are
            known, outside of jit) are below 0 or not finite.
        """
        if (residual is None) != (self.residual is None):
            raise ValueError("the change of the residual stream is added up for all rows of a layer, or for none")
        change = None if self.residual is None else self.residual.total.shape[-1]
        rows = checked_rows(x, x_tilde, weights, residual, self.width, change)
        stats = self if x_tilde is None else self._with_cross()
        stats = _add_rows(stats, *rows)
        return stats.finished() if finish else stats

    def finished(self) -> "GramStats":
        """The same with all of the symmetric products in place, after updates that did not `finish`."""
        return _finished(self)

    def combine(self, other: "GramStats") -> "GramStats":
        """Statistics of the rows of both. ValueError where only one has the change of the residual stream."""
        a, b = self, other
        if (a.residual is None) != (b.residual is None):
            raise ValueError("one of the statistics has the change of the residual stream, the other has not")
        if a.one_stream != b.one_stream:
            a, b = a._with_cross(), b._with_cross()
        some = (a.count > 0)[..., None]  # else a's shift is that of no rows
        shift = jnp.where(some, a.x_tilde.shift, b.x_tilde.shift)
        float_shift = None if a.x is None or b.x is None else jnp.where(some, a.x.shift, b.x.shift)
        a, b = a._shifted(shift, float_shift), b._shifted(shift, float_shift)
        return GramStats(
            a.x_tilde.plus(b.x_tilde),
            a.count + b.count,
            a.rows + b.rows,
            None if a.one_stream else a.x.plus(b.x),
            None if a.one_stream else a.cross + b.cross,
            None if a.residual is None else a.residual.plus(b.residual),
        )

    def divided(self, inputs: Float[AnyArray, "*groups"], outputs: Float[AnyArray, "*groups"]) -> "GramStats":
        """Of the same rows over a unit of the inputs, and one of outputs; each a scalar, or one for each group."""
        unit = inputs[..., None, None]
        return dataclasses.replace(
            self,
            x_tilde=self.x_tilde.divided(inputs),
            x=None if self.x is None else self.x.divided(inputs),
            cross=None if self.cross is None else self.cross / unit / unit,
            residual=None if self.residual is None else self.residual.divided(inputs, outputs),
        )

    def float_part(self) -> "GramStats":
        """Statistics of X alone, as one stream."""
        return GramStats(self.x_tilde if self.x is None else self.x, self.count, self.rows)

    def with_float(self, stats: "GramStats") -> "GramStats":
        """These statistics of two streams, with what depends on X alone taken from `stats`, of the same rows."""
        return _with_float(self, stats.x_tilde)

    def _shifted(self, shift, float_shift):
        """The same sums about these shifts of X̃ and of X."""
        x_tilde = self.x_tilde.shifted(shift, self.count)
        residual = None if self.residual is None else self.residual.shifted(self.x_tilde.shift - shift)
        if self.x is None or self.cross is None:
            return dataclasses.replace(self, x_tilde=x_tilde, residual=residual)
        # One shift after the other.
        cross = self.cross + outer(self.x_tilde.shift - shift, self.x.total)
        cross = cross + outer(x_tilde.total, self.x.shift - float_shift)
        x = self.x.shifted(float_shift, self.count)
        return dataclasses.replace(self, x_tilde=x_tilde, x=x, cross=cross, residual=residual)

    def _with_cross(self):
        if not self.one_stream:
            return self
        return dataclasses.replace(self, x=self.x_tilde, cross=self.x_tilde.mirrored().products)


@jax.jit
def _finished(stats: GramStats) -> GramStats:
    return dataclasses.replace(
        stats, x_tilde=stats.x_tilde.mirrored(), x=None if stats.x is None else stats.x.mirrored()
    )


@jax.jit
def _with_float(stats: GramStats, x: Moments) -> GramStats:
    return dataclasses.replace(stats._shifted(stats.x_tilde.shift, x.shift), x=x)


@jax.jit
def _add_rows(
    stats: GramStats,
    x: Shaped[Array, "m N"],
    x_tilde: Shaped[Array, "m N"] | None,
    weights: Shaped[Array, " m"] | None,
    residual: Shaped[Array, "m C"] | None,
) -> GramStats:
    """The statistics with the rows of x (m, N); x_tilde the same, weights (m,) and residual (m, C), or None."""
    dtype = stats.dtype
    if weights is None:
        count, rows = jnp.asarray(x.shape[0], dtype), jnp.asarray(x.shape[0], jnp.int32)
        root = counted = None
    else:
        weights = weights.astype(dtype)
        count, rows = weights.sum(), (weights != 0).sum(dtype=jnp.int32)
        # Roots, so that the products are those of a matrix with itself.
        root, counted = jnp.sqrt(weights)[:, None], (weights != 0)[:, None]

    def weighted(x):
        return x if root is None else x * root

    def mean(x):
        return weighted(weighted(x)).sum(0) / jnp.where(count > 0, count, 1)

    def add(moments, x):
        """The moments with the rows x, and the rows as they are multiplied."""
        x = x.astype(dtype) if counted is None else jnp.where(counted, x.astype(dtype), 0)
        shift = lax.cond(stats.count > 0, lambda x: moments.shift, mean, x)
        x = weighted(x - shift[None, :])
        products = None if moments.products is None else add_gram(moments.products, x)
        return Moments(shift, moments.total + weighted(x).sum(0), products), x

    new, rows_tilde = add(stats.x_tilde, x if x_tilde is None else x_tilde)
    change = stats.residual
    if residual is not None and change is not None:
        own = residual.astype(dtype) if counted is None else jnp.where(counted, residual.astype(dtype), 0)
        own = weighted(own)
        change = change.plus(ResidualChange(matmul(rows_tilde.T, own), weighted(own).sum(0)))
    if stats.x is None or stats.cross is None:
        return GramStats(new, stats.count + count, stats.rows + rows, residual=change)
    new_float, rows_x = add(stats.x, x)
    cross = stats.cross + matmul(rows_tilde.T, rows_x)
    return GramStats(new, stats.count + count, stats.rows + rows, new_float, cross, change)
