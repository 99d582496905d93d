import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.precision import (
    in_dtype,
    largest_mean_over_spread,
    mean_over_spread,
    tie_tolerance,
    working_dtype,
)
from tests.quant.problems import gram


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_are_one_percent_of_what_the_cancellation_leaves(dtype):
    assert np.isclose(tie_tolerance(dtype) * largest_mean_over_spread(dtype) ** 2, 0.01)


def test_limits():
    assert 58 < largest_mean_over_spread(np.float32) < 59
    assert 1.8e5 < largest_mean_over_spread(np.float64) < 1.9e5


def test_float64_where_float32_is_not_enough():
    assert working_dtype(np.float32, 58) == working_dtype(np.float32, None) == np.float32
    assert working_dtype(np.float32, 59) == working_dtype(np.float32, np.inf) == np.float64
    assert working_dtype(np.float64, 1.0) == np.float64
    traced = []
    jax.eval_shape(lambda ratio: traced.append(working_dtype(np.float32, ratio)), jnp.float32(1e9))
    assert traced == [np.float32]


def test_float64_arrays_whatever_jax_is_set_to():
    with in_dtype(np.float64):
        assert jnp.zeros(2, jnp.float64).dtype == np.float64
    with in_dtype(np.float32):
        assert jnp.zeros(2).dtype == np.float32


@pytest.mark.parametrize("mean", [3, 1e3, 1e5])
def test_ratios_of_inputs_and_outputs(x64, rng, mean):
    X = (rng.normal(size=(300, 5)) * [1, 2, 3, 1, 1] + mean).astype(np.float32)
    means, deviations = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
    inputs = np.linalg.norm(means) / np.linalg.norm(deviations)
    stats = gram(X, dtype=jnp.float32)
    np.testing.assert_allclose(mean_over_spread(stats), inputs, rtol=1e-4)
    W = rng.normal(size=(5, 3))
    outputs = np.abs(means @ W) / np.sqrt(deviations**2 @ W**2)
    np.testing.assert_allclose(mean_over_spread(stats, jnp.asarray(W)), max(inputs, *outputs), rtol=1e-4)
    alike = jnp.ones((5, 1))
    assert mean_over_spread(stats, alike) > 1.5 * inputs  # the means add up in the output, the deviations do not


def test_ratios_of_what_does_not_vary():
    zero, constant = (GramStats.zeros(3).update(jnp.full((5, 3), value)) for value in (0.0, 2.0))
    assert mean_over_spread(zero) == mean_over_spread(zero, jnp.ones((3, 1))) == 0
    assert mean_over_spread(constant) == jnp.inf
    one_of_three = GramStats.zeros(3).update(jnp.array([[1.0, 0, 2], [0, 0, 2], [0, 0, 2]]))
    assert mean_over_spread(one_of_three) < 10
    assert mean_over_spread(one_of_three, jnp.array([[0.0], [0.0], [1.0]])) == jnp.inf
    assert mean_over_spread(one_of_three, jnp.zeros((3, 1))) == mean_over_spread(one_of_three)


def test_the_largest_of_streams_and_groups_counts(rng):
    X = rng.normal(size=(400, 3))
    for one, other in ((X, X + 30), (X + 30, X)):
        assert 25 < mean_over_spread(gram(one, other, jnp.float32)) < 35
    groups = jax.tree.map(lambda *a: jnp.stack(a), gram(X, dtype=jnp.float32), gram(X + 30, dtype=jnp.float32))
    assert 25 < mean_over_spread(groups, jnp.ones((2, 3, 4))) < 60
