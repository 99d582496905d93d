"""Decoding with a beam: the several best partial roundings of every channel are kept, not the best alone.

At each coordinate every partial rounding (a lane of the beam) goes on with the two levels around its weight w′_t (see
decoding.py); of the 2·width candidates the `width` of least error so far stay. Codes are stored as level numbers in
uint8, so that moving lanes about is cheap, and lanes are moved in what lies behind the current 8 coordinates only once
for these.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Shaped, UInt8

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.decoding import Decoder
from beacon_jax.quant.store import Store, buffer
from beacon_jax.quant.sweep import INNER, even_block, pad_rows, pad_square, prefix_product, put, row, take

CODE = jnp.uint8


def beam_decode(
    decoder: Decoder,
    levels: Levels,
    W: Float[Array, "N C"],
    s: Float[Array, " C"],
    *,
    width: int,
    block_size: int,
) -> Float[Array, "N C"]:
    """Rounds the columns of W (N, C) to levels q (N, C), Ŵ = s q, keeping `width` partial roundings of each.

    Args:
      decoder: of H; (w − ŵ)ᵀH(w − ŵ) is what is to be small.
      levels: the alphabet.
      W: (N, C) weights.
      s: (C,) scales, of either sign, none 0.
      width: a power of two; 1 decodes as `decode` does but for rounding.
      block_size: coordinates per block, at most.

    Returns:
      q, the best of those that are left at the end. Errors are compared to 20 bits in float32, 48 in float64.
    """
    N, C = W.shape
    size = even_block(N, block_size)
    rows, feedback, weight = decoder.in_order(W) / s[None, :], decoder.feedback, decoder.weight
    rows, weight = pad_rows((rows, weight), size)
    feedback = pad_square(feedback, size)
    beam = _Beam(levels, width, C, W.dtype)

    def enter_block(b, carry):
        lanes, errors, scratch = carry
        start = b * size
        stripe = take(feedback, start, size)
        corner = take(stripe, start, size, axis=1)
        before = jnp.where(jnp.arange(stripe.shape[1])[None, :] < start, stripe, 0)
        outside = _prefix_product(before, levels.at(lanes), b, size)
        corners = corner, take(rows, start, size), take(weight, start, size)
        block, errors, origin, scratch = beam.visit_block(*corners, outside, errors, scratch)
        return put(pick(lanes, origin), block, start), errors, scratch

    lanes = jnp.zeros((rows.shape[0], width, C), CODE)
    errors = jnp.full((width, C), jnp.inf, W.dtype).at[0].set(0)  # one lane to begin with
    lanes, errors, _ = lax.fori_loop(0, rows.shape[0] // size, enter_block, (lanes, errors, beam.scratch()))
    best = jnp.argmin(errors, axis=0).astype(CODE)
    return decoder.back(levels.at(pick(lanes[:N], best[None, :])[:, 0]))


def pick(a: Shaped[Array, "*rest L C"], lane: UInt8[Array, "K C"]) -> Shaped[Array, "*rest K C"]:
    """a[…, lane[k, c], c] for a (…, L, C) and lane (K, C): selections, which vectorize where gathers do not."""
    out = jnp.zeros((*a.shape[:-2], *lane.shape), a.dtype)
    for i in range(a.shape[-2]):
        out = jnp.where(lane == i, a[..., i : i + 1, :], out)
    return out


# The channels stay an axis of their own in products with all lanes, because devices share them.
_prefix_product = jax.vmap(prefix_product, in_axes=(None, 1, None, None), out_axes=1)


def _product(M: jax.Array, values: jax.Array) -> jax.Array:
    """(K, width, C), M (K, R) times values (R, width, C), in true float32."""
    return lax.dot_general(M, values, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


class _Beam:
    """The steps of a beam of C channels.

    What several others need, and each row of a larger array, is stored in `scratch` first (see store.py).
    """

    def __init__(self, levels: Levels, width: int, channels: int, dtype):
        self.levels, self.width, self.channels, self.dtype = levels, width, channels, dtype
        self.key = jnp.int32 if dtype == jnp.float32 else jnp.int64
        self.mask = 2 * width - 1  # low bits of an error that hold the candidate's number

    def scratch(self) -> dict[str, jax.Array]:
        def buffers(dtype, lanes, *names):
            return {name: buffer((lanes, self.channels), dtype) for name in names}

        n = self.width
        return {
            **buffers(self.dtype, n, "missing", "own", "weight"),
            **buffers(CODE, n, "lower", "parent", "code"),
            **buffers(CODE, 2 * n, "rank"),
            **buffers(self.key, n, "kept"),
            **buffers(self.key, 2 * n, "keys"),
        }

    def lanes(self) -> jax.Array:
        """(width, C), each its own number."""
        return jnp.broadcast_to(jnp.arange(self.width, dtype=CODE)[:, None], (self.width, self.channels))

    def visit_block(self, corner, rows, weight, outside, errors, scratch):
        """The codes of a block (B, width, C), the errors after it, and the lane that each lane was at its start."""
        size = corner.shape[0]
        inner = math.gcd(size, INNER)

        def visit_inner(i, carry):
            block, errors, origin, scratch = carry
            at = i * inner
            part = take(corner, at, inner)
            inside = jnp.where(jnp.arange(size)[None, :] < at, part, 0)
            products = pick(take(outside, at, inner), origin) + _product(inside, self.levels.at(block))
            own = take(part, at, inner, axis=1), take(rows, at, inner), take(weight, at, inner)
            chosen, errors, lane, scratch = self.visit_rows(*own, products, errors, scratch)
            return put(pick(block, lane), chosen, at), errors, pick(origin, lane), scratch

        block = jnp.zeros((size, self.width, self.channels), CODE)
        return lax.fori_loop(0, size // inner, visit_inner, (block, errors, self.lanes(), scratch))

    def visit_rows(self, square, rows, weight, products, errors, scratch):
        """The codes of the R coordinates (R, width, C) of a square (R, R), likewise."""
        inner = square.shape[0]

        def visit_row(t, carry):
            chosen, errors, lane, scratch = carry
            among = row(square, t)  # strictly lower, so what is not chosen yet counts nothing
            store = Store(scratch, row(weight, t))
            x = store("missing", row(rows, t)[None, :] - row(products, t))
            x = store("own", pick(x, lane))
            x = store("weight", x - sum(among[j] * self.levels.at(chosen[j]) for j in range(inner)))
            errors, parent, code = self.choose(x, row(weight, t), errors, store)
            here = (jnp.arange(inner) == t)[:, None, None]
            chosen = jnp.where(here, code[None], pick(chosen, parent))
            return chosen, errors, pick(lane, parent), store.buffers

        chosen = jnp.zeros((inner, self.width, self.channels), CODE)
        return lax.fori_loop(0, inner, visit_row, (chosen, errors, self.lanes(), scratch))

    def choose(self, x, weight, errors, store):
        """The best lanes after the next coordinate, whose weights are x (width, C): their errors, parents and codes."""
        width, levels = self.width, self.levels
        number = jnp.arange(width, dtype=self.key)[:, None]
        lower = store("lower", levels.lower_index(x).astype(CODE))

        def candidates(code, first):
            error = errors + weight * jnp.square(x - levels.at(code))
            return lax.bitcast_convert_type(error, self.key) & ~self.mask | (number + first)

        store("keys", candidates(lower, 0))
        keys = store("keys", candidates(lower + 1, width), start=width)
        rank = store("rank", sum((keys[i : i + 1] < keys).astype(CODE) for i in range(2 * width)))
        kept = jnp.zeros((width, self.channels), self.key)
        for i in range(2 * width):
            kept = jnp.where(rank[i : i + 1] == number, keys[i : i + 1], kept)
        kept = store("kept", kept)
        parent = store("parent", (kept & (width - 1)).astype(CODE))
        code = store("code", pick(lower, parent) + ((kept & width) != 0).astype(CODE))
        return lax.bitcast_convert_type(kept & ~self.mask, self.dtype), parent, code
