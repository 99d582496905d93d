"""The O(1) choice against evaluating every level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.methods.best_level import best_level
from beacon_jax.quant.methods.oracle import cosine

ALPHABETS = ["1.58", "2", "3", "int3", (-3.0, -1.0, 0.0, 0.5, 2.0), (1.0, 2.0, 4.0, 5.0, 9.0)]


def chosen(alphabet, first, y, s, x, size=None, dtype=jnp.float64):
    """best_level for the rows of y, s and x, (n, m) each."""
    a, c, h, d, H_tt = ((u * v).sum(1) for u, v in ((y, s), (s, s), (y, x), (s, x), (x, x)))
    levels = Levels.of(make_alphabet(alphabet), dtype)
    scalars = [jnp.asarray(v, dtype) for v in (first, a, c, h, d, H_tt, c if size is None else size)]
    choose = jax.jit(jax.vmap(lambda levels, *v: best_level(levels, *v), in_axes=(None, *(0,) * 7)))
    return np.asarray(choose(levels, *scalars))


def every_cosine(alphabet, y, s, x):
    """(n, K), 0 where the sum has cancelled."""
    sums = [[s_i + p * x_i for p in alphabet] for s_i, x_i in zip(s, x, strict=True)]
    return np.array(
        [
            [cosine(y_i, v) if v @ v > 1e-20 * (s_i @ s_i) else 0.0 for v in sums_i]
            for y_i, s_i, sums_i in zip(y, s, sums, strict=True)
        ]
    )


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=str)
def test_the_level_of_largest_cosine(x64, rng, alphabet):
    levels = make_alphabet(alphabet)
    y, s, x = rng.normal(size=(3, 400, 4)) * np.exp(rng.normal(size=(3, 400, 1)))
    y[:100] += 2 * s[:100]  # as in a sweep, s near y
    expected = levels[every_cosine(levels, y, s, x).argmax(1)]
    np.testing.assert_array_equal(chosen(alphabet, np.full(400, levels[0]), y, s, x), expected)
    assert set(expected) == set(levels)
    single = chosen(alphabet, np.full(400, levels[0]), y, s, x, dtype=jnp.float32)
    assert np.mean(single == expected) > 0.98


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=str)
def test_ties_take_the_lowest_level(x64, rng, alphabet):
    """x parallel to s: all levels give cosine ±cos∠(y, s), or 0 where the sum cancels."""
    levels = make_alphabet(alphabet)
    s = rng.normal(size=(60, 3))
    y = rng.normal(size=(60, 3))
    factors = rng.choice([-2.0, -1.0, -0.5, -0.3, 0.2, 0.5, 1.0, 3.0], 60)
    x = factors[:, None] * s
    cosines = every_cosine(levels, y, s, x)
    expected = levels[(cosines >= cosines.max(1, keepdims=True) - 1e-9).argmax(1)]
    np.testing.assert_array_equal(chosen(alphabet, np.full(60, levels[-1]), y, s, x), expected)
    assert len(set(expected)) > 1


def test_an_equal_pair_of_levels_gives_the_lower(x64):
    """y orthogonal to x and s: ±p have the same cosine, with y along s the largest for the smallest |p|."""
    s, x = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    assert chosen("2", [1.5], s, s, x) == -0.5
    assert chosen("1.58", [1.0], s, s, x) == 0
    assert chosen("2", [1.5], -s, s, x) == -1.5  # the worst direction: the ends are best
    assert chosen("2", [1.5], np.array([[0.0, 0.0, 1.0]]), s, x) == -1.5  # cosine 0 whatever the level


@pytest.mark.parametrize(
    ("alphabet", "first", "h", "expected"),
    [
        ("2", 1.5, 1, 1.5),  # the given level where its sign is right
        ("2", -1.5, -1, -1.5),
        ("2", 1.5, -1, -0.5),  # else the smallest of the right sign
        ("2", -1.5, 1, 0.5),
        ("1.58", 0.0, 1, 0.0),  # 0 has no wrong sign
        ((1.0, 2.0, 4.0, 5.0, 9.0), 4.0, -1, 4.0),  # no level of the right sign
    ],
)
@pytest.mark.parametrize("size", [0.0, 1e14])  # nothing there yet, or cancelled to rounding
def test_an_empty_sum_takes_the_first_level(x64, alphabet, first, h, expected, size):
    x, y = np.array([[2.0, 0.0]]), np.array([[h, 0.5]])
    s = np.array([[0.0, 0.0]]) if size == 0 else np.array([[0.01, 0.0]])
    assert chosen(alphabet, [first], y, s, x, size=[size]) == expected


@pytest.mark.parametrize(("alphabet", "smallest"), [("1.58", 0), ("2", -0.5), ((1.0, 2.0, 4.0), 1.0)], ids=str)
def test_a_dead_input_takes_the_smallest_level(x64, rng, alphabet, smallest):
    y, s = rng.normal(size=(2, 5, 3))
    np.testing.assert_array_equal(chosen(alphabet, np.full(5, 1.0), y, s, np.zeros((5, 3))), smallest)
