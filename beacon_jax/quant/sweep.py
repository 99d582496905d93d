"""One pass over the coordinates of a layer, in blocks: the loop that Beacon, GPTQ and COMQ share.

Each of them visits the rows t = 0 … N−1 of an (N, C) array Q in order, and to choose row t needs (M Q)_t, the product
of one row of a fixed matrix with Q as it stands at that moment. Within a block of B rows only the B × B part of M has
to follow the changes; what the rest of Q contributes is one matmul M[block, :] Q over all channels, done when the block
is entered. The same again inside the block, 8 rows at a time, so that what follows each single choice is an update of
8 rows. That is exact, and rounding does not drift from pass to pass, because every block's products are computed afresh
from M and Q.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, Shaped

from beacon_jax.quant.pallas_block import pallas_pass
from beacon_jax.quant.products import code_matmul, large_matmul, matmul
from beacon_jax.quant.triangular import STRIPES

INNER = 8  # rows whose products follow every single choice
ROOM = 8  # of what is told of the sweeps, a multiple of so many rows


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one coordinate of one channel is chosen; scalars in and out, vmapped over the channels by the loop.

    Fields:
      choose: `choose(constants, shared_t, rows_t, products, q_t, state) -> q_t`; `products` holds the scalar (M Q)_t
        for each matrix M, with Q as it stands when t is visited.
      update: `update(constants, shared_t, rows_t, products, old_q_t, q_t, state) -> state`, its products those after
        the change; None where the state stays as it is. A function of its own, from the chosen value as it was stored:
        XLA would otherwise repeat the whole choice for every number that depends on it.

    Neither may close over arrays: everything comes as an argument, so that the same functions can run in a kernel.
    """

    choose: Callable
    update: Callable | None = None

    def over_channels(self) -> tuple[Callable, Callable]:
        """`choose` and `update` for all channels at once."""
        choose = jax.vmap(self.choose, in_axes=(None, None, 0, 0, 0, 0))
        if self.update is None:
            return choose, lambda *args: args[-1]
        return choose, jax.vmap(self.update, in_axes=(None, None, 0, 0, 0, 0, 0))


def blocked_pass(
    rule: Rule,
    matrices: Sequence[Float[Array, "N N"]],
    constants: Any,
    shared: Any,
    rows: Any,
    Q: Float[Array, "N C"],
    state: Any = (),
    *,
    block_size: int,
    lower: bool = False,
    codes: bool = False,
    block: str = "xla",
) -> tuple[Float[Array, "N C"], Any]:
    """Visits the coordinates in order and lets `rule` set each row of Q.

    Args:
      rule: how a coordinate is chosen.
      matrices: (N, N) arrays M.
      constants: pytree of arrays, the same for every coordinate and channel.
      shared: pytree of (N,) arrays, the same for every channel.
      rows: pytree of (N, C) arrays.
      Q: (N, C), the values to be visited.
      state: pytree of (C,) arrays carried along.
      block_size: B, must divide N (see `pad_rows`, `pad_square`).
      lower: promises that Q is zero, so that only what lies before a block can contribute to it.
      codes: promises that bfloat16 holds all numbers in Q and all that are chosen (see `code_matmul`).
      block: "xla", or "pallas" for kernels (see pallas_block.py).

    Returns:
      Q and state after the pass.
    """
    size, product = block_size, code_matmul if codes else large_matmul
    if block == "pallas":

        def outside(b, Q):
            stripes = [take(M, b * size, size) for M in matrices]
            return [prefix_product(s, Q, b, size, product) if lower else product(s, Q) for s in stripes]

        return pallas_pass(rule, matrices, constants, shared, rows, Q, state, block_size=size, outside=outside)

    def enter_block(b, carry):
        Q, state = carry
        start = b * size
        stripes = [take(M, start, size) for M in matrices]
        corners = [take(stripe, start, size, axis=1) for stripe in stripes]
        if lower:
            outside = [prefix_product(stripe, Q, b, size, product) for stripe in stripes]
        else:
            # Without the block's own part, which changes.
            rest = [
                put(stripe, jnp.zeros_like(corner), start, axis=1)
                for stripe, corner in zip(stripes, corners, strict=True)
            ]
            outside = [product(stripe, Q) for stripe in rest]
        block, state = visit_block(rule, corners, outside, constants, shared, rows, take(Q, start, size), state, start)
        return put(Q, block, start), state

    return lax.fori_loop(0, Q.shape[0] // size, enter_block, (Q, state))


def visit_block(
    rule: Rule,
    corners: Sequence[Float[Array, "B B"]],
    outside: Sequence[Float[Array, "B C"]],
    constants: Any,
    shared: Any,
    rows: Any,
    block: Float[Array, "B C"],
    state: Any,
    start: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, "B C"], Any]:
    """One block of `blocked_pass`, which needs nothing from outside of it but what is passed.

    Args:
      rule, constants, state: as for `blocked_pass`.
      corners: (B, B), the block's own part of each matrix.
      outside: (B, C), what the rest of Q contributes to each matrix's product.
      shared, rows: as for `blocked_pass`; row `start` of them belongs to the block's first.
      block: (B, C), its rows of Q.

    Returns:
      The block of Q and the state after it.
    """
    choose, update = rule.over_channels()
    size = block.shape[0]
    inner = math.gcd(size, INNER)
    before = block

    def visit_inner(i, carry):
        block, state = carry
        at = i * inner
        corner_rows = [take(corner, at, inner) for corner in corners]
        squares = [take(r, at, inner, axis=1) for r in corner_rows]
        products = [take(f, at, inner) + matmul(r, block) for f, r in zip(outside, corner_rows, strict=True)]
        inner_before = take(before, at, inner)

        def visit_row(t, carry):
            products, block, state = carry
            shared_t, rows_t = jax.tree.map(lambda a: row(a, start + at + t), (shared, rows))
            old = row(inner_before, t)
            chosen = choose(constants, shared_t, rows_t, [row(v, t) for v in products], old, state)
            block = put(block, chosen[None], at + t)
            chosen = row(block, at + t)
            change = (chosen - old)[None]
            products = [v + take(s, t, 1, axis=1) * change for v, s in zip(products, squares, strict=True)]
            state = update(constants, shared_t, rows_t, [row(v, t) for v in products], old, chosen, state)
            return products, block, state

        _, block, state = lax.fori_loop(0, inner, visit_row, (products, block, state))
        return block, state

    return lax.fori_loop(0, size // inner, visit_inner, (block, state))


def prefix_product(
    stripe: Float[Array, "B N"],
    Q: Float[Array, "N C"],
    b: Int[Array, ""] | int,
    size: int,
    product: Callable = matmul,
) -> Float[Array, "B C"]:
    """stripe @ Q, one of them zero from b·size on, on a CPU with the shortest of a few lengths that holds the rest.

    GPU and TPU take the whole: for the branches a GPU waits for its host, and a TPU's compiler takes a second for each.
    """
    shortest = functools.partial(_shortest_product, size=size)
    return lax.platform_dependent(stripe, Q, b, cpu=shortest, default=lambda stripe, Q, _b: product(stripe, Q))


def _shortest_product(stripe, Q, b, *, size):
    blocks = Q.shape[0] // size
    pieces = min(STRIPES, blocks)
    lengths = [-(-blocks * k // pieces) * size for k in range(pieces + 1)]

    def product(length, stripe, Q):
        return matmul(stripe[:, :length], Q[:length])

    branch = -(-b * pieces // blocks)
    return lax.switch(branch, [functools.partial(product, n) for n in lengths], stripe, Q)


def take(a: Shaped[Array, "*shape"], start: Int[Array, ""] | int, size: int, axis: int = 0) -> Shaped[Array, "*part"]:
    """`size` elements of an axis from `start` (≥ 0) on."""
    starts = [start if i == axis else 0 for i in range(a.ndim)]
    sizes = [size if i == axis else n for i, n in enumerate(a.shape)]
    return lax.dynamic_slice(a, starts, sizes, allow_negative_indices=False)


def row(a: Shaped[Array, " N *rest"], t: Int[Array, ""] | int) -> Shaped[Array, "*rest"]:
    """a[t] for t ≥ 0."""
    return take(a, t, 1)[0]


def put(
    a: Shaped[Array, "*shape"], part: Shaped[Array, "*part"], start: Int[Array, ""] | int, axis: int = 0
) -> Shaped[Array, "*shape"]:
    """`a` with `part` in place from `start` (≥ 0) on along an axis."""
    starts = [start if i == axis else 0 for i in range(a.ndim)]
    return lax.dynamic_update_slice(a, part, starts, allow_negative_indices=False)


def room_for(sweeps: int) -> int:
    """Rows for what is told of so many sweeps: few numbers of rows, so that few solvers are compiled."""
    return -(-max(sweeps, 1) // ROOM) * ROOM


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


def pad_square(M: Float[Array, "N N"], multiple: int) -> Float[Array, "P P"]:
    """Appends zero rows and columns to an (N, N) matrix until `multiple` divides N."""
    extra = -M.shape[0] % multiple
    return jnp.pad(M, [(0, extra), (0, extra)])


def map_channel_chunks(fn: Callable, chunk: int | None, *arrays: Shaped[Array, "*_ C"]) -> Any:
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
