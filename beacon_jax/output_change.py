"""How far a model's outputs move when its parameters change, by forward passes alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.devices import Placement
from beacon_jax.execution import Execution, run_in


def output_changes(
    apply: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    variants: Mapping[str, Callable[[], Any]],
    *,
    execution: Execution,
    weights: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    """The relative squared change of a model's outputs, for several other parameters.

    Of a floating-point output leaf y it is Σ‖ŷ − y‖² / Σ‖y − ȳ‖² over all batches, where ȳ is the mean over the
    examples (the first axis) of a batch; where nothing varies over the examples, as in batches of one, Σ‖ŷ − y‖² /
    Σ‖y‖². Of several leaves it is the mean; those that are zero for all batches do not count.

    Args:
      apply, params: the model.
      batches: pytrees of arrays, read once.
      variants: {name: function that gives the other parameters}, called once for each batch.
      execution: devices and arithmetic.
      weights: batch → (B,) or (B, T, …), as in `quantize`. They count for outputs whose first axes have that shape,
        their maximum over T, … for outputs with a first axis of B alone, and not at all for others.

    Raises:
      ValueError: no floating-point outputs, outputs that are not finite where weights are positive, or all zero.
    """
    placement = Placement(execution.mesh)
    forward, change = _compiled(apply, execution, placement)
    params = placement.everywhere(params)
    changes: dict[str, Any] = dict.fromkeys(variants, 0.0)
    spread: np.ndarray | float = 0.0
    size: np.ndarray | float = 0.0
    for i, batch in enumerate(batches):
        own = None if weights is None else np.asarray(weights(batch), np.float32)
        placed = jax.tree.map(placement.rows, batch)
        outputs, *sums = forward(params, placed, own)
        if not outputs:
            raise ValueError("the model has no floating-point outputs of which a change could be measured")
        now = [np.asarray(a, np.float64) for a in sums]
        if not np.isfinite(now).all():
            raise ValueError(f"the outputs for calibration batch {i} are not all finite")
        spread, size = spread + now[0], size + now[1]
        for name, make in variants.items():
            changes[name] += np.asarray(change(placement.everywhere(make()), placed, own, outputs), np.float64)
    scale = np.where(spread > 0, spread, size)
    if not np.any(scale > 0):
        raise ValueError("the outputs are zero for all calibration batches, so no relative change can be measured")
    return {name: float((own[scale > 0] / scale[scale > 0]).mean()) for name, own in changes.items()}


def _compiled(apply, execution, placement):
    """Compiled: the outputs with the sums of squares about their mean and about 0; those of the change against them."""

    def outputs_of(params, batch):
        leaves = jax.tree.leaves(run_in(execution.forward_dtype, apply, params, batch))
        floats = [a for a in map(jnp.asarray, leaves) if jnp.issubdtype(a.dtype, jnp.floating)]
        return [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in floats]

    @jax.jit
    def forward(params, batch, weights):
        outputs = outputs_of(params, batch)
        by_leaf = [(about_mean(y, w), squares(y, w)) for y in outputs for w in [fitting(weights, y.shape)]]
        sums = (jnp.stack(own) for own in zip(*by_leaf, strict=True)) if by_leaf else ()
        return placement.constrained((outputs, *sums), placement.replicated)

    @jax.jit
    def change(params, batch, weights, reference):
        pairs = zip(outputs_of(params, batch), reference, strict=True)
        sums = jnp.stack([squares(y - float_y, fitting(weights, y.shape)) for y, float_y in pairs])
        return placement.constrained(sums, placement.replicated)

    return forward, change


def fitting(weights: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Weights for an output of this shape, with as many axes."""
    if weights is None or shape[:1] != weights.shape[:1]:
        return jnp.ones((1,) * len(shape))
    if shape[: weights.ndim] != weights.shape:
        weights = weights.max(tuple(range(1, weights.ndim)))
    return weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))


def squares(y: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of squares of y; where weights are 0, as for padding, y may hold anything."""
    return (weights * jnp.square(jnp.where(weights > 0, y, 0))).sum()


def about_mean(y: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted squares of y minus its weighted mean over the first axis."""
    if y.ndim == 0:
        return jnp.zeros((), y.dtype)
    weights = jnp.broadcast_to(weights, (len(y), *weights.shape[1:]))
    total = weights.sum(0, keepdims=True)
    mean = (weights * jnp.where(weights > 0, y, 0)).sum(0, keepdims=True) / jnp.where(total > 0, total, 1)
    return squares(y - mean, weights)
