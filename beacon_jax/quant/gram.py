"""Gram statistics of a layer's calibration inputs: all that any method here needs to know of the data.

Letters (Beacon, arXiv 2508.20293): X (m, N) inputs of the layer in the float model, X̃ (m, N) inputs of the same layer
in the model whose earlier layers are quantized. Everything is a sum over rows, so batches are folded in one at a time
at constant memory, and statistics of disjoint batches (other hosts, other devices) add up.
"""

import dataclasses

import jax
import jax.numpy as jnp

from beacon_jax.quant.sweep import matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GramStats:
    """Sums over the calibration rows of one layer.

    H = X̃ᵀX̃ and, where X̃ differs from X, G = X̃ᵀX and F = XᵀX, each (N, N), H and F symmetric positive semidefinite;
    sum_x = Xᵀ1 and sum_xt = X̃ᵀ1, each (N,); count is m, a float scalar. Float32, or float64 where the inputs were.

    Invariants: `cross` is (G, F, sum_x), or None where all rows came from one stream (X̃ = X): then G and F are H
    itself, and a solver can tell so at trace time. F and sum_x are None only while rows are added up for which they
    are known already (`zeros` with float_known), until `with_float` puts them in.
    """

    H: jax.Array
    sum_xt: jax.Array
    count: jax.Array
    cross: tuple[jax.Array, jax.Array | None, jax.Array | None] | None = None

    @classmethod
    def zeros(cls, n: int, dtype=jnp.float32, *, streams: int = 1, float_known: bool = False) -> "GramStats":
        """Statistics of no rows at all, for inputs of width n.

        streams=2 makes room for X̃ ≠ X from the start; float_known leaves out what depends on X alone, a third of the
        arithmetic.
        """

        def empty():  # arrays of their own each, so that the statistics can be donated to a jitted update
            return jnp.zeros((n, n), dtype), jnp.zeros(n, dtype)

        cross = None if streams == 1 else (empty()[0], *((None, None) if float_known else empty()))
        return cls(*empty(), jnp.zeros((), dtype), cross)

    @property
    def G(self) -> jax.Array:
        """X̃ᵀX, (N, N)."""
        return self.H if self.cross is None else self.cross[0]

    @property
    def F(self) -> jax.Array:
        """XᵀX, (N, N)."""
        return self.H if self.cross is None else self.cross[1]

    @property
    def sum_x(self) -> jax.Array:
        """Xᵀ1, (N,)."""
        return self.sum_xt if self.cross is None else self.cross[2]

    @property
    def one_stream(self) -> bool:
        """Whether all rows came from one stream, so that G = F = H."""
        return self.cross is None

    @property
    def width(self) -> int:
        """N."""
        return self.H.shape[0]

    @property
    def dead(self) -> jax.Array:
        """(N,) bool: inputs that are zero in every row of X̃, whose codes change nothing in the output."""
        return jnp.diagonal(self.H) == 0

    def means(self) -> tuple[jax.Array, jax.Array]:
        """Column means of X and of X̃, each (N,)."""
        return self.sum_x / self.count, self.sum_xt / self.count

    def update(self, x: jax.Array, x_tilde: jax.Array | None = None) -> "GramStats":
        """Adds the rows of x (…, N), and of x_tilde where X̃ differs from X. Raises ValueError on another width."""
        for name, rows in (("x", x), ("x_tilde", x_tilde)):
            if rows is not None and rows.shape[-1] != self.width:
                raise ValueError(f"{name} has width {rows.shape[-1]}, but these statistics are for {self.width} inputs")
        x = x.reshape(-1, self.width).astype(self.H.dtype)
        rows = jnp.asarray(x.shape[0], self.H.dtype)
        if x_tilde is None:
            return self.combine(GramStats(matmul(x.T, x), x.sum(0), rows))
        x_tilde = x_tilde.reshape(-1, self.width).astype(self.H.dtype)
        if x_tilde.shape != x.shape:
            raise ValueError(f"x and x_tilde must have the same rows, got {x.shape} and {x_tilde.shape}")
        float_known = self.cross is not None and self.cross[1] is None
        cross = matmul(x_tilde.T, x), *((None, None) if float_known else (matmul(x.T, x), x.sum(0)))
        return self.combine(GramStats(matmul(x_tilde.T, x_tilde), x_tilde.sum(0), rows, cross))

    def combine(self, other: "GramStats") -> "GramStats":
        """Statistics of the rows of both."""
        if self.one_stream != other.one_stream:
            self, other = self._with_cross(), other._with_cross()
        return jax.tree.map(jnp.add, self, other)

    def float_part(self) -> "GramStats":
        """Statistics of X alone, as one stream."""
        return GramStats(self.F, self.sum_x, self.count)

    def with_float(self, stats: "GramStats") -> "GramStats":
        """These statistics of two streams, with what depends on X alone taken from `stats`, of the same rows."""
        return dataclasses.replace(self, cross=(self.G, stats.H, stats.sum_xt))

    def _with_cross(self):
        return dataclasses.replace(self, cross=(self.G, self.F, self.sum_x))
