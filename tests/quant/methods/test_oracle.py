"""The oracle on problems that can be done by hand."""

import itertools

import numpy as np
import pytest

from beacon_jax.quant.methods.oracle import beacon, cosine, least_squares_scale, nearest_level

TERNARY = np.array([-1.0, 0.0, 1.0])


def test_nearest_level_takes_the_lower_of_two():
    np.testing.assert_array_equal(nearest_level(np.array([-9, -0.5, 0.4, 0.5, 2]), TERNARY), [-1, -1, 0, 0, 1])


def test_cosine():
    assert cosine(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(0.5**0.5)
    assert cosine(np.zeros(2), np.ones(2)) == 0


def test_least_squares_scale_of_representable_weights():
    assert least_squares_scale(np.array([0.5, -0.5, 0]), TERNARY) == 0.5
    assert least_squares_scale(np.zeros(3), TERNARY) == 1


def test_orthonormal_inputs_are_solved_by_trying_all_codes():
    w, X = np.array([[0.9], [-1.1], [0.2]]), np.eye(3)
    q, c, history, fixed = beacon(w, X, X, TERNARY, 3)
    tries = [np.array(codes) for codes in itertools.product(TERNARY, repeat=3)]
    best = max(tries, key=lambda codes: cosine(w[:, 0], codes))
    np.testing.assert_array_equal(q[:, 0], best)
    np.testing.assert_allclose(c, 1.0)  # (0.9 + 1.1) / 2
    np.testing.assert_allclose(history[-1], cosine(w[:, 0], best))
    assert fixed.all()


def test_an_alphabet_of_one_sign_gets_a_negative_scale():
    q, c, _, _ = beacon(np.array([[-1.0], [-2.0]]), np.eye(2), np.eye(2), np.array([1.0, 2.0]), 2)
    np.testing.assert_array_equal(q[:, 0], [1, 2])
    np.testing.assert_allclose(c, -1)
