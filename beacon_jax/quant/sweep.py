"""One pass over the coordinates of a layer, in blocks: the loop that Beacon, GPTQ and COMQ share.

Each of them visits the rows t = 0 … N−1 of an (N, C) array Q in order, and to choose row t needs (M Q)_t, the product
of one row of a fixed matrix with Q as it stands at that moment. Within a block of B rows only the B × B part of M has
to follow the changes; what the rest of Q contributes is one matmul M[block, :] Q over all channels, done when the block
is entered. That is exact, and rounding does not drift from pass to pass, because every block's products are computed
afresh from M and Q.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in true float32 (float64) on every backend.

    TF32 and bfloat16 products, the default on GPU and TPU, lose the small eigenvalues that the solvers live on.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def blocked_pass(
    step: Callable,
    matrices: Sequence[jax.Array],
    shared: Any,
    rows: Any,
    Q: jax.Array,
    state: Any,
    block_size: int,
) -> tuple[jax.Array, Any]:
    """Visits the coordinates in order and lets `step` choose each row of Q.

    Args:
      step: for ONE channel, `step(shared_t, rows_t, products, q_t, state) -> (q_t, state)`; it is vmapped over the
        channels here. `products` holds the scalar (M Q)_t for each matrix M, with Q as it stands when t is visited.
      matrices: (N, N) arrays M.
      shared: pytree of (N,) arrays, the same for every channel.
      rows: pytree of (N, C) arrays.
      Q: (N, C), the values to be visited.
      state: pytree of (C,) arrays carried along.
      block_size: B, must divide N (see `pad_rows`, `pad_square`).

    Returns:
      Q and state after the pass.
    """
    size = block_size
    step = jax.vmap(step, in_axes=(None, 0, 0, 0, 0))

    def visit_block(b, carry):
        Q, state = carry

        def block(a, axis=0):
            return lax.dynamic_slice_in_dim(a, b * size, size, axis)

        stripes = [block(M) for M in matrices]
        corners = [block(stripe, axis=1) for stripe in stripes]
        block_shared, block_rows, block_Q = jax.tree.map(block, (shared, rows, Q))
        rest = lax.dynamic_update_slice_in_dim(Q, jnp.zeros_like(block_Q), b * size, axis=0)
        from_rest = [matmul(stripe, rest) for stripe in stripes]

        def visit_row(t, carry):
            block_Q, state = carry
            shared_t, rows_t, rest_t, q_t = jax.tree.map(lambda a: a[t], (block_shared, block_rows, from_rest, block_Q))
            products = [r + matmul(corner[t], block_Q) for r, corner in zip(rest_t, corners, strict=True)]
            q_t, state = step(shared_t, rows_t, products, q_t, state)
            return block_Q.at[t].set(q_t), state

        block_Q, state = lax.fori_loop(0, size, visit_row, (block_Q, state))
        return lax.dynamic_update_slice_in_dim(rest, block_Q, b * size, axis=0), state

    return lax.fori_loop(0, Q.shape[0] // size, visit_block, (Q, state))


def pad_rows(tree: Any, multiple: int) -> Any:
    """Appends zeros to axis 0 of (N,) and (N, C) arrays until `multiple` divides it."""

    def pad(a):
        return jnp.pad(a, [(0, -a.shape[0] % multiple)] + [(0, 0)] * (a.ndim - 1))

    return jax.tree.map(pad, tree)


def pad_square(M: jax.Array, multiple: int) -> jax.Array:
    """Appends zero rows and columns to an (N, N) matrix until `multiple` divides N."""
    extra = -M.shape[0] % multiple
    return jnp.pad(M, [(0, extra), (0, extra)])


def map_channel_chunks(fn: Callable, chunk: int | None, *arrays: jax.Array) -> Any:
    """Applies fn to (…, C) arrays `chunk` channels at a time, one after another; all at once where chunk is None.

    fn must return a pytree of (…, C) arrays. Bounds the working memory and keeps it in cache; channels are
    independent, so the result does not depend on it.
    """
    channels = arrays[0].shape[-1]
    if chunk is None or chunk >= channels:
        return fn(*arrays)
    count = -(-channels // chunk)

    def split(a):
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, count * chunk - channels)])
        return jnp.moveaxis(a.reshape(*a.shape[:-1], count, chunk), -2, 0)

    def join(a):
        a = jnp.moveaxis(a, 0, -2)
        return a.reshape(*a.shape[:-2], count * chunk)[..., :channels]

    out = lax.map(lambda parts: fn(*parts), tuple(split(a) for a in arrays))
    return jax.tree.map(join, out)
