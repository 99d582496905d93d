"""Rows of a layer's inputs, checked and put into the form in which they are added to Gram statistics."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Shaped

from beacon_jax.quant.array_types import AnyArray


class Rows(NamedTuple):
    """Of x (m, N); x_tilde (m, N), weights (m,) and residual (m, C) may be None, as `GramStats.update` says."""

    x: AnyArray
    x_tilde: AnyArray | None
    weights: Array | None
    residual: AnyArray | None


def checked_rows(
    x: Shaped[AnyArray, "*rows N"],
    x_tilde: Shaped[AnyArray, "*rows_tilde N_tilde"] | None,
    weights: ArrayLike | Sequence | None,
    residual: Shaped[AnyArray, "*rows_residual C"] | None,
    width: int,
    residual_width: int | None,
) -> Rows:
    """The rows of these arrays, of statistics for inputs of that width and a residual stream of the other.

    Raises ValueError as `GramStats.update` does.
    """
    m = math.prod(x.shape[:-1])
    for name, rows in (("x", x), ("x_tilde", x_tilde)):
        if rows is not None and jnp.issubdtype(rows.dtype, jnp.complexfloating):
            raise ValueError(f"{name} must be real, got {rows.dtype}")
        if rows is not None and rows.shape[-1] != width:
            raise ValueError(f"{name} has width {rows.shape[-1]}, but these statistics are for {width} inputs")
    if x_tilde is not None:
        if math.prod(x_tilde.shape[:-1]) != m:
            raise ValueError(
                f"x and x_tilde must have the same rows, got {x.shape} and {x_tilde.reshape(-1, width).shape}"
            )
        x_tilde = x_tilde.reshape(m, width)
    if residual is not None and residual_width is not None:
        if (math.prod(residual.shape[:-1]), residual.shape[-1]) != (m, residual_width):
            raise ValueError(f"the residual stream's rows must be of shape {m, residual_width}, got {residual.shape}")
        residual = residual.reshape(m, residual_width)
    own = None if weights is None else row_weights(weights, x.shape[:-1])
    return Rows(x.reshape(m, width), x_tilde, own, residual)


def row_weights(weights: ArrayLike | Sequence, shape: tuple[int, ...]) -> Shaped[Array, " m"]:
    """(m,) weights of the rows of an array (*shape, N), given one for each or so that they broadcast to `shape`.

    Raises ValueError as `GramStats.update` does.
    """
    own, m = jnp.asarray(weights), math.prod(shape)
    if own.shape != (m,):
        try:
            own = jnp.broadcast_to(own, shape).reshape(m)
        except ValueError as error:
            raise ValueError(
                f"weights of shape {own.shape} neither are one for each of {m} rows nor broadcast to {shape}"
            ) from error
    if not isinstance(own, jax.core.Tracer):
        values = np.asarray(own)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError("row weights must be finite and at least 0")
    return own
