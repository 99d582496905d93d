"""One pass over the coordinates of a layer, in blocks: the loop that Beacon, GPTQ and COMQ share.

Each of them visits the rows t = 0 … N−1 of an (N, C) array Q in order, and to choose row t needs (M Q)_t, the product
of one row of a fixed matrix with Q as it stands at that moment. Within a block of B rows only the B × B part of M has
to follow the changes; what the rest of Q contributes is one matmul M[block, :] Q over all channels, done when the block
is entered. The same again inside the block, 8 rows at a time, so that what follows each single choice is an update of
8 rows. That is exact, and rounding does not drift from pass to pass, because every block's products are computed afresh
from M and Q.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STRIPES = 4  # pieces of a triangular product, each as long as what is not zero
INNER = 8  # rows whose products follow every single choice


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in true float32 (float64) on every backend.

    TF32 and bfloat16 products, the default on GPU and TPU, lose the small eigenvalues that the solvers live on.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def lower_matmul(M: jax.Array, Q: jax.Array) -> jax.Array:
    """tril(M) @ Q for (N, N) and (N, C), in less time than the whole product."""
    M, N = jnp.tril(M), M.shape[0]
    edges = [N * i // STRIPES for i in range(STRIPES + 1)] if N >= 256 else [0, N]
    return jnp.concatenate([matmul(M[i:j, :j], Q[:j]) for i, j in itertools.pairwise(edges)])


def quadratic_form(M: jax.Array, Q: jax.Array) -> jax.Array:
    """(C,) values qᵀMq for the columns q of Q, M symmetric."""
    return (Q * (2 * lower_matmul(M, Q) - jnp.diagonal(M)[:, None] * Q)).sum(0)


def blocked_pass(
    choose: Callable,
    matrices: Sequence[jax.Array],
    shared: Any,
    rows: Any,
    Q: jax.Array,
    state: Any = (),
    update: Callable | None = None,
    *,
    block_size: int,
    lower: bool = False,
) -> tuple[jax.Array, Any]:
    """Visits the coordinates in order and lets `choose` set each row of Q.

    `choose` and `update` are written for ONE channel and vmapped over the channels here. The state is updated in a
    function of its own, from the chosen value as it was stored: XLA would otherwise repeat the whole choice for every
    number that depends on it.

    Args:
      choose: `choose(shared_t, rows_t, products, q_t, state) -> q_t`; `products` holds the scalar (M Q)_t for each
        matrix M, with Q as it stands when t is visited.
      matrices: (N, N) arrays M.
      shared: pytree of (N,) arrays, the same for every channel.
      rows: pytree of (N, C) arrays.
      Q: (N, C), the values to be visited.
      state: pytree of (C,) arrays carried along.
      update: `update(shared_t, rows_t, products, old_q_t, q_t, state) -> state`, its products those after the change.
      block_size: B, must divide N (see `pad_rows`, `pad_square`).
      lower: promises that Q is zero, so that only what lies before a block can contribute to it.

    Returns:
      Q and state after the pass.
    """
    size, inner = block_size, math.gcd(block_size, INNER)
    choose = jax.vmap(choose, in_axes=(None, 0, 0, 0, 0))
    update = jax.vmap(update, in_axes=(None, 0, 0, 0, 0, 0)) if update else lambda *args: args[-1]

    def visit_block(b, carry):
        Q, state = carry
        start = b * size
        stripes = [_slice(M, start, size) for M in matrices]
        corners = [_slice(stripe, start, size, axis=1) for stripe in stripes]
        before = _slice(Q, start, size)
        if lower:
            fixed = [_prefix_product(stripe, Q, b, size) for stripe in stripes]
        else:
            # Without the block's own part, which changes.
            rest = [
                _put(stripe, jnp.zeros_like(corner), start, axis=1)
                for stripe, corner in zip(stripes, corners, strict=True)
            ]
            fixed = [matmul(stripe, Q) for stripe in rest]

        def visit_inner(i, carry):
            block, state = carry
            at = i * inner
            corner_rows = [_slice(corner, at, inner) for corner in corners]
            squares = [_slice(r, at, inner, axis=1) for r in corner_rows]
            products = [_slice(f, at, inner) + matmul(r, block) for f, r in zip(fixed, corner_rows, strict=True)]
            inner_before = _slice(before, at, inner)

            def visit_row(t, carry):
                products, block, state = carry
                shared_t, rows_t = jax.tree.map(lambda a: _row(a, start + at + t), (shared, rows))
                old = _row(inner_before, t)
                chosen = choose(shared_t, rows_t, [_row(v, t) for v in products], old, state)
                block = _put(block, chosen[None], at + t)
                chosen = _row(block, at + t)
                change = (chosen - old)[None]
                products = [v + _slice(s, t, 1, axis=1) * change for v, s in zip(products, squares, strict=True)]
                return products, block, update(shared_t, rows_t, [_row(v, t) for v in products], old, chosen, state)

            _, block, state = lax.fori_loop(0, inner, visit_row, (products, block, state))
            return block, state

        block, state = lax.fori_loop(0, size // inner, visit_inner, (before, state))
        return _put(Q, block, start), state

    return lax.fori_loop(0, Q.shape[0] // size, visit_block, (Q, state))


def _prefix_product(stripe, Q, b, size):
    """stripe @ Q, Q zero from row b·size on, with the shortest of a few lengths that holds the rest."""
    blocks = Q.shape[0] // size
    pieces = min(STRIPES, blocks)
    lengths = [-(-blocks * k // pieces) * size for k in range(pieces + 1)]

    def product(length, stripe, Q):
        return matmul(stripe[:, :length], Q[:length])

    branch = -(-b * pieces // blocks)
    return lax.switch(branch, [functools.partial(product, n) for n in lengths], stripe, Q)


def _slice(a, start, size, axis=0):
    starts = [start if i == axis else 0 for i in range(a.ndim)]
    sizes = [size if i == axis else n for i, n in enumerate(a.shape)]
    return lax.dynamic_slice(a, starts, sizes, allow_negative_indices=False)


def _row(a, t):
    return _slice(a, t, 1)[0]


def _put(a, part, start, axis=0):
    starts = [start if i == axis else 0 for i in range(a.ndim)]
    return lax.dynamic_update_slice(a, part, starts, allow_negative_indices=False)


def even_block(n: int, most: int) -> int:
    """A block size of about `most` or less that cuts n coordinates into equal blocks with little padding."""
    step = math.gcd(most, INNER)
    size = -(-n // -(-n // most))
    return size + -size % step


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
