"""How much a model's outputs depend on each row of a layer's outputs, and the weights of rows that follow from it.

A classifier that reads one token depends on an error at another one only as far as attention carries it there, and an
error in a row that no output reads is none. The influence of a row is the mean of ‖Jᵀu‖² over random directions u of
the model's outputs, J their derivative with respect to that row of the layer's output: a backward pass for each
direction gives it for all rows of all layers at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from beacon_jax.devices import Placement
from beacon_jax.graph.layers import Use
from beacon_jax.graph.model import Signature, Traced
from beacon_jax.graph.stages import piece
from beacon_jax.graph.views import ConvView
from beacon_jax.output_change import about_mean, fitting, squares

DIRECTIONS = 4
UNIFORM = 0.5  # share of the weights that is the same for all rows, so that there always are enough of them


class Influence:
    """The influence of the rows of all layers, for the batches added so far."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._compiled: dict[tuple, Callable] = {}
        self._roots: list[dict[tuple, np.ndarray]] = []
        self._sums: dict[str, tuple[Any, Any]] = {}  # of each layer: Σ w √influence, Σ w

    def add(
        self,
        signature: Signature,
        traced: Traced,
        leaves: Sequence[Any],
        batch: Sequence[np.ndarray],
        weights: np.ndarray | None,
        given: Callable[[Use], np.ndarray | None],
    ) -> None:
        """Takes in a batch.

        Args:
          signature, traced: the batch's signature, and the model for it.
          leaves: the float parameters.
          batch: the batch's leaves.
          weights: its weights (B,) or (B, T, …), None where there are none; they count for outputs as in
            `output_changes`.
          given: use of a layer → (m,) weights of its rows that follow from these, None where there are none.

        Raises:
          ValueError: the model has no floating-point outputs, cannot be differentiated backwards, or its derivatives
            are not finite where weights are positive.
        """
        key = signature, None if weights is None else weights.shape
        if key not in self._compiled:
            self._compiled[key] = _backward(traced, self._placement)
        placed, number = [self._placement.rows(a) for a in batch], len(self._roots)
        try:
            found = self._compiled[key](self._placement.everywhere(leaves), placed, weights, number)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"row_weights='influence' takes a model that JAX can differentiate ({str(error).splitlines()[0]}); "
                "use row_weights='uniform'"
            ) from error
        roots: dict[tuple, Any] = {}
        for position, (name, use) in _products(traced).items():
            own, w = np.asarray(found[position], np.float64), given(use)
            own = own if w is None else np.where(w > 0, own, 0)
            if not np.isfinite(own).all():
                raise ValueError(
                    f"the outputs' derivatives with respect to {name} are not finite for calibration batch {number}; "
                    "use row_weights='uniform'"
                )
            place = use.operand, use.view.rows_form
            roots[place] = roots.get(place, 0.0) + own
        roots = {place: np.sqrt(own) for place, own in roots.items()}
        for layer in traced.found.layers:
            for use in layer.uses:
                own, w = roots[use.operand, use.view.rows_form], given(use)
                w = np.ones(own.shape[-1]) if w is None else w
                total, count = self._sums.get(layer.name, (0.0, 0.0))
                self._sums[layer.name] = total + (w * own).sum(-1), count + w.sum()
        self._roots.append(roots)

    def factor(self, i: int, layer: str, use: Use) -> Float32[np.ndarray, "*groups m"]:
        """(m,), or (E, m) with groups, float32 weights of the rows of a layer's use in batch i, 1 on average.

        Half of each is the same for all rows, half in proportion to the root of the influence. Layers that share
        inputs share weights. All are 1 where no row has influence.
        """
        total, count = self._sums[layer]
        own = self._roots[i][use.operand, use.view.rows_form]
        mean = np.asarray(total / max(count, 1e-300))[..., None]
        relative = np.where(mean > 0, own / np.where(mean > 0, mean, 1), 1.0)
        return (UNIFORM + (1 - UNIFORM) * relative).astype(np.float32)

    def none(self, layer: str) -> bool:
        """Whether no row of a layer has any influence on the outputs, as behind jax.lax.stop_gradient."""
        return not np.any(self._sums[layer][0])


def _products(traced: Traced) -> dict[int, tuple[str, Use]]:
    """{position: a layer of it and its use}; of kernels that are joined for one product the last."""
    return {use.position: (layer.name, use) for layer in traced.found.layers for use in layer.uses}


def _backward(traced: Traced, placement: Placement):
    """Compiled: (leaves, batch, weights, number) → {position of a layer's product: influence of its rows}."""
    program = traced.program
    uses = {position: use for position, (_, use) in _products(traced).items()}
    made = {position: program.equations[position].outputs[0] for position in uses}
    floats = [p for p in uses if jnp.issubdtype(program.avals[made[p]].dtype, jnp.floating)]
    wanted = [v for v in program.outputs if isinstance(v, int) and program.depends[1][v]]
    wanted = [v for v in dict.fromkeys(wanted) if jnp.issubdtype(program.avals[v].dtype, jnp.floating)]
    if not wanted:
        raise ValueError("the model has no floating-point outputs, so rows have no influence on them")
    whole = piece(program, program.inputs, wanted)
    order = {p: use.view.row_axes(program.equations[p].inputs[0] == use.operand) for p, use in uses.items()}
    shapes = {p: tuple(program.avals[made[p]].shape[i] for i in order[p]) for p in uses}

    @jax.jit
    def influence(leaves, constants, batch, weights, number):
        first = len(program.leaves)
        given = [leaves[v] for v in whole.leaves], [batch[v - first] for v in whole.given]

        def outputs(taps):
            through = {made[p]: functools.partial(_tap, order[p], tap) for p, tap in taps.items()}
            return whole(*given, constants, through=through)

        taps = {p: jnp.zeros(shapes[p], _wide(program.avals[made[p]].dtype)) for p in floats}
        ys, back = jax.vjp(outputs, taps)

        def along(key):
            keys = jax.random.split(key, len(ys))
            return back([_direction(k, y, weights, len(ys)) for k, y in zip(keys, ys, strict=True)])[0]

        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), DIRECTIONS)
        found = jax.tree.map(lambda a: a.sum(0), jax.lax.map(along, keys))
        found |= {p: jnp.ones(shapes[p]) for p in uses if p not in floats}
        return placement.constrained({p: _by_rows(a, uses[p].view) for p, a in found.items()}, placement.replicated)

    constants = placement.everywhere([program.constants[v] for v in whole.constants])
    return lambda leaves, *given: influence(leaves, constants, *given)


def _by_rows(a, view):
    """(m,), or (E, m) with groups; those of a convolution share theirs."""
    return a.reshape((-1,) if view.groups == 1 or isinstance(view, ConvView) else (view.groups, -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(kept: tuple[int, ...], tap: jax.Array, y: jax.Array) -> jax.Array:
    """y. The derivative "with respect to tap" is that with respect to y, squared, and summed but for the axes kept."""
    return y


def _tap_backward(kept, _, g):
    others = tuple(i for i in range(g.ndim) if i not in kept)
    left = sorted(kept)
    squared = jnp.square(g.astype(_wide(g.dtype))).sum(others)
    return squared.transpose([left.index(i) for i in kept]), g


_tap.defvjp(lambda kept, tap, y: (y, None), _tap_backward)


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _direction(key, y, weights, count):
    """A random direction of an output; of several each counts as much as its spread allows."""
    wide = y.astype(_wide(y.dtype))
    w = fitting(weights, y.shape)
    u = jax.random.normal(key, y.shape, wide.dtype) * jnp.sqrt(w).astype(wide.dtype)
    if count > 1:
        spread = about_mean(wide, w)
        spread = jnp.where(spread > 0, spread, squares(wide, w))
        u = u / jnp.sqrt(jnp.where(spread > 0, spread, 1)).astype(wide.dtype)
    return u.astype(y.dtype)
