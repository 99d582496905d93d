"""What calibration does with one batch, compiled: the streams' pieces, and the rows that they add to the statistics."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from beacon_jax.devices import Placement
from beacon_jax.graph.row_weights import RowWeights
from beacon_jax.graph.stages import Piece
from beacon_jax.quant.gram import GramStats
from beacon_jax.row_sample import RowSample, taken


@dataclasses.dataclass(frozen=True)
class Step:
    """What is done with a batch: a piece for each stream, and how its first values become rows of each group."""

    pieces: tuple[Piece, ...]
    uses: tuple[tuple[tuple[Any, RowWeights | None], ...], ...]
    placement: Placement
    sample: RowSample | None
    examples: int
    stage: int = dataclasses.field(compare=False)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def add_batch(
    step: Step, stats: Sequence[GramStats], arrays: Any, weights: Any, factors: Any, number: jax.Array | np.int32
) -> tuple[list[GramStats], list[jax.Array]]:
    """The statistics with batch `number` in them, and what the first stream's piece gives beyond the layers' inputs."""
    values = [iter(own(*given)) for own, given in zip(step.pieces, arrays, strict=True)]
    added = []
    for own, uses, multiplied in zip(stats, step.uses, factors, strict=True):
        operands = [[next(stream) for stream in values] for _ in uses]
        change = None if own.residual is None else _difference(*(next(stream) for stream in values))
        for (view, rule), factor, operand in zip(uses, multiplied, operands, strict=True):
            rows = [view.rows(a) for a in operand]
            given = None if rule is None else rule(weights)
            rows, given, factor, change = _thinned(step, number, rows, given, factor, change)
            given = given if factor is None else factor if given is None else given * factor
            own = _updated(own, rows, given, change)
        added.append(own)
    placed = step.placement
    output = [placed.constrained(a, placed.by_rows(a.shape)) for a in values[0]]
    return placed.constrained(added, placed.replicated), output


def _thinned(step, number, rows, weights, factor, change):
    """What belongs to the rows of one use: of all of them, or of those that are taken."""
    m = rows[0].shape[-2]
    if step.sample is None or not step.sample.thins(m, step.examples):
        return rows, weights, factor, change
    chosen = step.sample.chosen(m, step.examples, number, weights)

    def part(a, axis):
        return None if a is None else taken(a, chosen, axis)

    change = None if change is None else part(change.reshape(m, -1), 0)
    return [part(a, -2) for a in rows], part(weights, -1), part(factor, -1), change


def _difference(
    residual: Float[jax.Array, "*positions C"], quantized: Float[jax.Array, "*positions C"]
) -> Float[jax.Array, "*positions C"]:
    """R − R̃ in at least float32."""
    dtype = jnp.promote_types(residual.dtype, jnp.float32)
    return residual.astype(dtype) - quantized.astype(dtype)


def _updated(
    stats: GramStats,
    rows: list[Shaped[jax.Array, "*groups m N"]],
    weights: Shaped[jax.Array, "*_ m"] | None,
    change: Float[jax.Array, "*positions C"] | None,
) -> GramStats:
    """The statistics, of each group where there are several, with these rows of each stream."""
    x, x_tilde = rows if len(rows) == 2 else (rows[0], None)
    if not stats.groups:
        return stats.update(x, x_tilde, weights, change, finish=False)
    if weights is None:
        return jax.vmap(lambda own, *rows: own.update(*rows, finish=False))(stats, *rows)
    weights = jnp.broadcast_to(weights, (*stats.groups, weights.shape[-1]))

    def add(own, weights, *rows):
        return own.update(*rows, weights=weights, finish=False)

    return jax.vmap(add)(stats, weights, *rows)
