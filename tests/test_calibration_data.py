import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.calibration_data import checked_batch, checked_weights

ONES = np.ones((3, 2), np.float32)


def test_leaves_come_as_host_arrays_in_their_order():
    batch = {"ids": jnp.arange(3), "more": [ONES, np.float32(2)], "half": jnp.ones(3, jnp.bfloat16)}
    found = checked_batch(batch, 0)
    assert all(type(a) is np.ndarray for a in found)
    for mine, given in zip(found, jax.tree.leaves(batch), strict=True):
        assert mine.dtype == given.dtype
        np.testing.assert_array_equal(mine, given)


def test_float64_is_kept_where_jax_has_it():
    (leaf,) = checked_batch(np.full(3, 0.1), 0)
    assert leaf.dtype == np.float32
    with jax.enable_x64(True):
        (leaf,) = checked_batch(np.full(3, 0.1), 0)
    assert leaf.dtype == np.float64


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([ONES, "label"], r"calibration batch 4 at \[1\] is no array but a str; batches are pytrees of arrays"),
        (3.0, "calibration batch 4 is no array but a float"),
        (jax.random.key(0), r"is a key of random numbers; pass jax.random.key_data\(key\), and wrap it inside"),
        ({"x": ONES[:0]}, r"calibration batch 4 at \['x'\] is empty, of shape \(0, 2\)"),
        (ONES * np.nan, "calibration batch 4 holds NaN or infinity"),
        (np.full(3, 1e300), "calibration batch 4 holds NaN or infinity"),  # too large for float32
        ({"x": None}, "calibration batch 4 holds no arrays"),
    ],
)
def test_batches_that_cannot_be_taken(batch, message):
    with pytest.raises(ValueError, match=message):
        checked_batch(batch, 4)


@pytest.mark.parametrize("weights", [np.arange(3), [True, False, True], np.ones((3, 2)), jnp.ones(3, jnp.bfloat16)])
def test_weights_over_the_first_axes(weights):
    found = checked_weights(weights, [np.zeros((7, 4)), np.zeros((3, 2, 5))], 0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(weights, np.float32))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["a"] * 3, "weights of batch 4 are not numbers but <U1"),
        (1.0, r"weights of batch 4 have shape \(\), the first axes of none of \(3, 2\)"),
        (np.ones(2), r"weights of batch 4 have shape \(2,\), the first axes of none of \(3, 2\)"),
        ([1, 0, -1], "weights of batch 4 must be finite and not negative"),
        ([1, 0, np.nan], "weights of batch 4 must be finite and not negative"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    with pytest.raises(ValueError, match=message):
        checked_weights(weights, [ONES], 4)
