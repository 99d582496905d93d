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

    Invariants: H = X̃ᵀX̃, G = X̃ᵀX, F = XᵀX, each (N, N), H and F symmetric positive semidefinite; sum_x = Xᵀ1 and
    sum_xt = X̃ᵀ1, each (N,); count is m, a float scalar. Float32, or float64 where the inputs were.
    """

    H: jax.Array
    G: jax.Array
    F: jax.Array
    sum_x: jax.Array
    sum_xt: jax.Array
    count: jax.Array

    @classmethod
    def zeros(cls, n: int, dtype=jnp.float32) -> "GramStats":
        """Statistics of no rows at all, for inputs of width n."""
        # Arrays of their own each, so that the statistics can be donated to a jitted update.
        squares, rows = ([jnp.zeros(shape, dtype) for _ in range(k)] for shape, k in (((n, n), 3), ((n,), 2)))
        return cls(*squares, *rows, jnp.zeros((), dtype))

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
        F = matmul(x.T, x)
        if x_tilde is None:
            x_tilde, H, G = x, F, F
        else:
            x_tilde = x_tilde.reshape(-1, self.width).astype(self.H.dtype)
            if x_tilde.shape != x.shape:
                raise ValueError(f"x and x_tilde must have the same rows, got {x.shape} and {x_tilde.shape}")
            H, G = matmul(x_tilde.T, x_tilde), matmul(x_tilde.T, x)
        rows = jnp.asarray(x.shape[0], self.H.dtype)
        return self.combine(GramStats(H, G, F, x.sum(0), x_tilde.sum(0), rows))

    def combine(self, other: "GramStats") -> "GramStats":
        """Statistics of the rows of both."""
        return jax.tree.map(jnp.add, self, other)
