import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.store import Store, buffer


def test_gives_what_was_stored(rng):
    value, more = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (3, 2))

    @jax.jit
    def through(value, more):
        store = Store({"a": buffer((5, 5), value.dtype)}, value[0, 0])
        first = store("a", value)
        return first, store("a", more, start=3), store.buffers["a"]

    first, both, held = through(value, more)
    np.testing.assert_array_equal(first, value)
    np.testing.assert_array_equal(both, jnp.concatenate([value, more]))
    np.testing.assert_array_equal(held[:5], both)


def test_is_not_optimized_away():
    def stored(value):
        return Store({"a": buffer(value.shape, value.dtype)}, value[0, 0])("a", value) * 2

    compiled = jax.jit(stored).lower(jnp.ones((4, 3))).compile().as_text()
    assert "dynamic-update-slice" in compiled
