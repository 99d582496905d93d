"""Matrix products in true float32 (float64) on every backend."""

import functools

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from beacon_jax.quant.array_types import AnyArray

TPU_ROWS, LANES = 128, 128  # of a TPU's product, a tile's rows and what its inner axis is a multiple of
TPU_TILE, TPU_CODE_TILE = 512, 768  # and that at most, of float32 and with codes,
TPU_COLUMNS = 1024  # for as many columns; fewer for more


def matmul(a: Float[AnyArray, "..."], b: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """a @ b in true float32 (float64) on every backend.

    TF32 and bfloat16 products, the default on GPU and TPU, lose the small eigenvalues that the solvers live on.
    """
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def code_matmul(a: Float[Array, "M N"], q: Float[Array, "N C"]) -> Float[Array, "M C"]:
    """a @ q in true float32 (float64), for q whose entries bfloat16 holds exactly, as `Levels.exact` says of codes.

    On GPU and TPU float32 products of this kind are three of bfloat16, which matrix units are made for, in place of the
    six that a TPU takes otherwise, and of a GPU's plain float32 units. The 24 bits of a number are three parts of 8, so
    that nothing is lost but what the sums, in float32, round.
    """
    if a.dtype != jnp.float32:
        return matmul(a, q)
    tiles = functools.partial(_in_tiles, parts_one_by_one, largest=TPU_CODE_TILE)
    return lax.platform_dependent(a, q, cpu=matmul, tpu=tiles, default=parts_together)


def parts_together(a: Float[Array, "M N"], q: Float[Array, "N C"]) -> Float[Array, "M C"]:
    """`code_matmul` of float32 by one product, (3 M, N) and (N, C): one launch on a GPU."""
    parts = jnp.concatenate(_parts(a))
    low, middle, high = _bfloat16_matmul(parts, q).reshape(3, a.shape[0], q.shape[1])
    return low + middle + high


def parts_one_by_one(a: Float[Array, "M N"], q: Float[Array, "N C"]) -> Float[Array, "M C"]:
    """`code_matmul` of float32 by three products, into which a TPU's compiler takes the sums."""
    low, middle, high = (_bfloat16_matmul(part, q) for part in _parts(a))
    return low + middle + high


def _bfloat16_matmul(a, q):
    return jnp.matmul(a, q.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _parts(a):
    """Three bfloat16 arrays, smallest first, whose sum is a."""
    high = _eight_bits(a)
    middle = _eight_bits(a - high)
    return [part.astype(jnp.bfloat16) for part in (a - high - middle, middle, high)]


def _eight_bits(a):
    # XLA takes two casts, there and back, for none.
    return lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7)


def large_matmul(a: Float[Array, "M N"], b: Float[Array, "N C"]) -> Float[Array, "M C"]:
    """`matmul` for the solvers' loops: on a TPU a tile at a time.

    Where all of it fits on chip, a TPU's compiler writes a whole product out, which takes it 10 seconds for 768 × 768
    times 768 × 768, and a tenth of that for the tiles, of whatever size the product is.
    """
    return lax.platform_dependent(a, b, tpu=functools.partial(_in_tiles, matmul), default=matmul)


def _in_tiles(product, a, b, largest=TPU_TILE):
    """product(a, b) of tiles, for (M, N) and (N, C): some rows of a, and some of b with all columns.

    The columns, the channels of a layer, stay together: where devices share them, a part of them that is found at run
    time would have to be gathered from all.
    """
    largest = max(largest * TPU_COLUMNS // max(b.shape[1], TPU_COLUMNS) // LANES, 1) * LANES
    sizes = rows, inner = min(a.shape[0], TPU_ROWS), _tile(a.shape[1], largest)
    count, columns = a.shape[0], b.shape[1]
    a, b = _padded(a, sizes), _padded(b, (inner, 1))

    def visit(i, out):
        def add(k, total):
            left = lax.dynamic_slice(a, (i * rows, k * inner), sizes)
            return total + product(left, lax.dynamic_slice(b, (k * inner, 0), (inner, columns)))

        tile = lax.fori_loop(0, a.shape[1] // inner, add, jnp.zeros((rows, columns), out.dtype))
        return lax.dynamic_update_slice(out, tile, (i * rows, 0))

    out = jnp.zeros((a.shape[0], columns), a.dtype)
    return lax.fori_loop(0, a.shape[0] // rows, visit, out)[:count]


def _tile(n, largest):
    """n, or the size of a few equal tiles of at most `largest`."""
    return n if n <= largest else -(-n // (-(-n // largest) * LANES)) * LANES


def _padded(a, multiples):
    return jnp.pad(a, [(0, -n % m) for n, m in zip(a.shape, multiples, strict=True)])
