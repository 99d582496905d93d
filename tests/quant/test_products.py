import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from beacon_jax.devices import Placement, make_mesh
from beacon_jax.quant.alphabets import NAMED, Levels, make_alphabet
from beacon_jax.quant.products import (
    _in_tiles,
    code_matmul,
    matmul,
    parts_one_by_one,
    parts_together,
)


def gram_of(rng, kind, n=256):
    if kind == "ill-conditioned":
        basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return basis @ np.diag(np.logspace(0, -8, n)) @ basis.T
    X = rng.normal(size=(600, n)) + (30 * rng.normal(size=n) if kind == "large means" else 0)
    return X.T @ X


@pytest.mark.parametrize("by_parts", [parts_together, parts_one_by_one])
@pytest.mark.parametrize("kind", ["random", "ill-conditioned", "large means"])
def test_products_with_codes_are_no_worse_than_float32(rng, kind, by_parts):
    H = jnp.asarray(gram_of(rng, kind), jnp.float32)
    for alphabet in ("1.58", "2", "8", "int8"):
        Q = jnp.asarray(rng.choice(make_alphabet(alphabet), size=(H.shape[1], 32)), jnp.float32)
        exact = np.asarray(H, np.float64) @ np.asarray(Q, np.float64)
        plain, parts = (np.asarray(product(H, Q)) - exact for product in (jax.jit(matmul), jax.jit(by_parts)))
        assert np.sqrt(np.square(parts).mean()) <= np.sqrt(np.square(plain).mean())
        assert np.abs(parts).max() <= np.abs(plain).max()
    # What is lost where the numbers have more bits than bfloat16.
    assert np.abs(by_parts(H, Q + 0.3) - matmul(H, Q + 0.3)).max() > 20 * np.abs(plain).max()


def test_codes_that_bfloat16_holds():
    assert all(Levels.of(make_alphabet(name), np.float32).exact for name in NAMED)
    assert not Levels.of(make_alphabet((-0.3, 0.0, 0.3)), np.float32).exact
    assert not Levels.of(make_alphabet((-1.0, 0.0, 257.0)), np.float32).exact
    assert np.float32(ml_dtypes.bfloat16(127.5)) == 127.5


def test_double_precision_is_not_cut_into_parts(x64, rng):
    M, Q = jnp.asarray(rng.normal(size=(5, 5))), jnp.asarray(rng.integers(-2, 2, size=(5, 3)), jnp.float64)
    np.testing.assert_array_equal(code_matmul(M, Q), matmul(M, Q))


@pytest.mark.parametrize("shape", [(5, 7, 3), (130, 770, 9), (128, 5, 800), (2, 300, 2100)])
def test_products_of_tiles(x64, rng, shape):
    rows, inner, columns = shape
    a, b = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    found = _in_tiles(matmul, jnp.asarray(a), jnp.asarray(b))
    assert found.shape == (rows, columns)
    np.testing.assert_allclose(found, a @ b, atol=1e-10)


def test_tiles_are_not_gathered_where_devices_share_the_channels():
    placement = Placement(make_mesh(1, 8))
    a, b = jnp.ones((256, 1024)), placement.by_channels(jnp.ones((1024, 1600)))
    compiled = jax.jit(functools.partial(_in_tiles, matmul)).lower(placement.everywhere(a), b).compile().as_text()
    assert " while(" in compiled
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if f" {op}(" in compiled]
