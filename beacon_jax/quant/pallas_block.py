"""A pass over the coordinates with every block of it in one Pallas kernel, for GPUs and TPUs.

The same loop as `sweep.blocked_pass`, where a kernel visits the block's rows for a tile of channels that stays on chip,
so that a block is one launch instead of several for each of its rows. The products start as those with all of Q as it
stands when the block is entered; within the block only the changes of its own rows are added.

Two kernels, which differ in what the hardware can do: a TPU's gets the block's rows staged in by the pipeline, and adds
the changes to 8 rows at a time by a small product; a GPU's keeps all products of the block in registers, takes a row
out of them by a masked sum, and adds each change at once. On other backends the GPU's kernel is interpreted, which is
for tests alone. Compiled for TPU v5e and H100; neither was ever run.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jaxtyping import Float

from beacon_jax.quant.products import matmul

LANES = 128  # of a TPU's vector; channels are padded to a multiple of it
TPU_TILE = 512  # channels of one kernel instance, at most
GPU_TILE = 32
ROWS = 8  # of a TPU's vector
SMALLEST, LARGEST = 16, 256  # coordinates per block


def power_of_two_block(n: int, most: int) -> int:
    """Coordinates per block for n of them: a power of two of about `most` or less, within 16 … 256."""
    size = SMALLEST
    while size < min(n, LARGEST) and 2 * size <= most:
        size *= 2
    return size


def pallas_pass(
    rule: Any,
    matrices: Sequence[Float[Array, "N N"]],
    constants: Any,
    shared: Any,
    rows: Any,
    Q: Float[Array, "N C"],
    state: Any,
    *,
    block_size: int,
    outside: Callable[[jax.Array, jax.Array], Sequence[jax.Array]],
    kernel: str | None = None,
) -> tuple[Float[Array, "N C"], Any]:
    """`sweep.blocked_pass`, with its arguments, by kernels.

    Args:
      rule, matrices, constants, shared, rows, Q, state: as there; `constants` holds scalars and (K,) arrays, which the
        rule gets as tuples of K scalars, and the other arrays as (1, 1) and (1, channels).
      block_size: B, a power of two from 16 to 256 that divides N.
      outside: outside(b, Q) gives (B, C), the rows of block b of each matrix times Q.
      kernel: "tpu" or "gpu" to interpret that one, whatever the backend; None for the backend's own.

    Raises:
      ValueError: another block_size.
    """
    if block_size & (block_size - 1) or not SMALLEST <= block_size <= LARGEST:
        raise ValueError(f"a kernel's block is a power of two from {SMALLEST} to {LARGEST}, got {block_size}")
    channels = Q.shape[1]
    rows, Q, state = jax.tree.map(_pad_channels, (rows, Q, jax.tree.map(lambda a: a[None], state)))
    shared = jax.tree.map(lambda a: a[:, None], shared)
    lengths = tuple(a.size if a.ndim else None for a in jax.tree.leaves(constants))
    outer, structure = jax.tree.structure(state), jax.tree.structure
    body = _Body(rule, structure(constants), structure(shared), structure(rows), outer, lengths)
    fixed = (_packed(constants, Q.dtype), jax.tree.leaves(shared), list(matrices), jax.tree.leaves(rows))
    visit = functools.partial(_visit, body, block_size, kernel)

    def enter_block(b, carry):
        Q, state = carry
        return visit(b.astype(jnp.int32)[None], *fixed, list(outside(b, Q)), Q, state)

    start = Q, jax.tree.leaves(state)
    Q, state = lax.fori_loop(0, Q.shape[0] // block_size, enter_block, start)
    return Q[:, :channels], jax.tree.unflatten(outer, [a[0, :channels] for a in state])


def _pad_channels(a):
    """Copies of the last channel, until there is a multiple of LANES: numbers that the rule is made for."""
    return jnp.pad(a, [(0, 0), (0, -a.shape[1] % LANES)], mode="edge")


def _packed(constants, dtype):
    """All constants in one array."""
    leaves = [jnp.ravel(a).astype(dtype) for a in jax.tree.leaves(constants)]
    return jnp.concatenate([*leaves, jnp.zeros(1, dtype)])


@dataclasses.dataclass(frozen=True)
class _Body:
    """What the kernels do at a row, and how their arguments hang together."""

    rule: Any
    constants: Any
    shared: Any
    rows: Any
    state: Any
    lengths: tuple[int | None, ...]  # of the constants that are arrays

    def unpacked(self, ref):
        leaves, at = [], 0
        for length in self.lengths:
            leaves.append(ref[at] if length is None else tuple(ref[at + k] for k in range(length)))
            at += length or 1
        return jax.tree.unflatten(self.constants, leaves)

    def choose(self, constants, shared, rows, products, old, state):
        arguments = self.shared.unflatten(shared), self.rows.unflatten(rows)
        return self.rule.choose(constants, *arguments, products, old, self.state.unflatten(state))

    def update(self, constants, shared, rows, products, old, new, state):
        if self.rule.update is None:
            return state
        arguments = self.shared.unflatten(shared), self.rows.unflatten(rows)
        state = self.rule.update(constants, *arguments, products, old, new, self.state.unflatten(state))
        return jax.tree.leaves(state)


def _visit(body, size, kernel, block, *arrays):
    """(Q, state) after a block, from its number (1,) and the arrays of `pallas_pass`."""
    tpu = functools.partial(_tpu_call, body, size)
    gpu = functools.partial(_gpu_call, body, size)
    if kernel is not None:
        return {"tpu": tpu, "gpu": gpu}[kernel](True, block, *arrays)
    tpu, gpu, interpreted = (functools.partial(f, i) for f, i in ((tpu, False), (gpu, False), (gpu, True)))
    return lax.platform_dependent(block, *arrays, tpu=tpu, cuda=gpu, rocm=gpu, default=interpreted)


def _tpu_call(body, size, interpret, block, constants, shared, matrices, rows, outside, Q, state):
    from jax.experimental.pallas import tpu as pltpu

    tile = max(t for t in range(LANES, TPU_TILE + 1, LANES) if Q.shape[1] % t == 0)
    mine = pl.BlockSpec((size, tile), lambda c, b: (b[0], c))
    per_channel = pl.BlockSpec((1, tile), lambda c, b: (0, c))
    specs = (
        pl.BlockSpec(memory_space=pltpu.SMEM),
        [pl.BlockSpec((size, 1), lambda c, b: (b[0], 0)) for _ in shared],
        [pl.BlockSpec((size, size), lambda c, b: (0, 0)) for _ in matrices],
        [mine for _ in rows],
        [pl.BlockSpec((size, tile), lambda c, b: (0, c)) for _ in outside],
        mine,
        [per_channel for _ in state],
    )
    start = block[0] * size  # the pipeline would take no corner whose size is not a multiple of LANES
    corners = [lax.dynamic_slice(M, (start, start), (size, size)) for M in matrices]
    arguments = (constants, shared, corners, rows, outside, Q, state)
    changed = len(jax.tree.leaves((block, *arguments[:5])))
    return pl.pallas_call(
        functools.partial(_tpu_kernel, body),
        out_shape=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (Q, state)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(Q.shape[1] // tile,),
            in_specs=specs,
            out_specs=specs[-2:],
            scratch_shapes=[pltpu.VMEM((size, tile), Q.dtype)],
        ),
        input_output_aliases={changed + i: i for i in range(1 + len(state))},
        interpret=interpret,
        name="visit_block",
    )(block, *arguments)


def _tpu_kernel(body, _block, constants, shared, corners, rows, outside, Q, state, Q_out, state_out, change):
    constants, size = body.unpacked(constants), Q.shape[0]
    change[...] = jnp.zeros(change.shape, change.dtype)

    def visit_rows(i, state):
        first = pl.multiple_of(i * ROWS, ROWS)
        at = pl.ds(first, ROWS)
        lines = [corner[at, :] for corner in corners]
        products = [o[at, :] + matmul(line, change[...]) for o, line in zip(outside, lines, strict=True)]
        shared_8, rows_8, before = [a[at, :] for a in shared], [a[at, :] for a in rows], Q[at, :]
        lane = lax.broadcasted_iota(jnp.int32, (ROWS, size), 1)
        after = []
        for t in range(ROWS):
            columns = [jnp.sum(jnp.where(lane == first + t, line, 0), axis=1, keepdims=True) for line in lines]
            here = [[a[t : t + 1] for a in arrays] for arrays in (shared_8, rows_8)]
            old = before[t : t + 1]
            new = body.choose(constants, *here, [p[t : t + 1] for p in products], old, state)
            products = [p + column * (new - old) for p, column in zip(products, columns, strict=True)]
            state = body.update(constants, *here, [p[t : t + 1] for p in products], old, new, state)
            after.append(new)
        now = jnp.concatenate(after, axis=0)
        Q_out[at, :] = now
        change[at, :] = now - before
        return state

    state = lax.fori_loop(0, size // ROWS, visit_rows, [a[...] for a in state])
    for ref, a in zip(state_out, state, strict=True):
        ref[...] = a


def _gpu_call(body, size, interpret, block, constants, shared, matrices, rows, outside, Q, state):
    from jax.experimental.pallas import triton as pltriton

    def whole(a):
        return pl.BlockSpec(a.shape, lambda c: (0,) * a.ndim)

    def tiles(a):
        return pl.BlockSpec((a.shape[0], GPU_TILE), lambda c: (0, c))

    arguments = (block, constants, shared, matrices, rows, outside, Q, state)
    specs = tuple(jax.tree.map(tiles if i >= 4 else whole, a) for i, a in enumerate(arguments))
    changed = len(jax.tree.leaves(arguments[:6]))
    return pl.pallas_call(
        functools.partial(_gpu_kernel, body, size),
        out_shape=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (Q, state)),
        grid=(Q.shape[1] // GPU_TILE,),
        in_specs=specs,
        out_specs=specs[-2:],
        input_output_aliases={changed + i: i for i in range(1 + len(state))},
        compiler_params=pltriton.CompilerParams(num_warps=max(size // 32, 1), num_stages=1),
        interpret=interpret,
        name="visit_block",
    )(*arguments)


def _gpu_kernel(body, size, block, constants, shared, matrices, rows, outside, Q, state, Q_out, state_out):
    constants, start = body.unpacked(constants), block[0] * size
    line = lax.broadcasted_iota(jnp.int32, (size, 1), 0)

    def visit_row(t, carry):
        products, state = carry
        at = pl.ds(start + t, 1)
        here = [a[at, :] for a in shared], [a[at, :] for a in rows]
        old = Q[at, :]
        own = [jnp.sum(jnp.where(line == t, p, 0), axis=0, keepdims=True) for p in products]
        new = body.choose(constants, *here, own, old, state)
        change = new - old
        own = [p + M[at, at] * change for p, M in zip(own, matrices, strict=True)]
        state = body.update(constants, *here, own, old, new, state)
        Q_out[at, :] = new
        return [p + M[pl.ds(start, size), at] * change for p, M in zip(products, matrices, strict=True)], state

    start_of = [o[...] for o in outside], [a[...] for a in state]
    _, state = lax.fori_loop(0, size, visit_row, start_of)
    for ref, a in zip(state_out, state, strict=True):
        ref[...] = a
