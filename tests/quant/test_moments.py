import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.moments import Moments, outer


def moments_of(rows, shift):
    centred = rows - shift
    return Moments(jnp.asarray(shift), jnp.asarray(centred.sum(0)), jnp.asarray(centred.T @ centred))


def assert_close(a, b):
    for name in ("shift", "total", "products"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9)


def test_about_another_shift(x64, rng):
    rows, count = rng.normal(size=(9, 4)) + 3, jnp.asarray(9.0)
    here, there = rng.normal(size=(2, 4))
    found, expected = moments_of(rows, here).shifted(jnp.asarray(there), count), moments_of(rows, there)
    assert_close(found, expected)
    np.testing.assert_allclose(found.mean(count), rows.mean(0))
    np.testing.assert_allclose(found.correction(count), rows.mean(0) - there)
    np.testing.assert_allclose(found.variance_sums(count), 9 * rows.var(0))
    without = Moments(jnp.asarray(here), moments_of(rows, here).total, None).shifted(jnp.asarray(there), count)
    assert without.products is None
    np.testing.assert_allclose(without.total, expected.total)


def test_sums_of_both(x64, rng):
    rows, shift = rng.normal(size=(9, 4)), rng.normal(size=4)
    assert_close(moments_of(rows[:3], shift).plus(moments_of(rows[3:], shift)), moments_of(rows, shift))


def test_no_rows():
    empty, count = Moments.zeros(3, jnp.float32), jnp.zeros(())
    for value in (empty.mean(count), empty.correction(count), empty.variance_sums(count)):
        np.testing.assert_array_equal(value, np.zeros(3))
    assert Moments.zeros(3, jnp.float32, products=False).products is None


def test_outer_products_of_groups(rng):
    a, b = jnp.asarray(rng.normal(size=(2, 5, 3)))
    np.testing.assert_allclose(outer(a, b), np.einsum("gi,gj->gij", a, b))
