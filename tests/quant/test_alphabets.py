import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import NAMED, Levels, is_symmetric, make_alphabet

USER = [(-3.0, -1.0, 0.0, 0.5, 2.0), (0.1, 0.2, 0.4)]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("1.58", [-1, 0, 1]),
        ("2", [-1.5, -0.5, 0.5, 1.5]),
        ("2.32", [-2, -1, 0, 1, 2]),
        ("2.58", [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),
        ("3", [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]),
        ("int2", [-2, -1, 0, 1]),
        (2, [-1.5, -0.5, 0.5, 1.5]),
        (1.58, [-1, 0, 1]),
        ([0, 1, 5], [0, 1, 5]),
        ("-1,0,1", [-1, 0, 1]),
        (np.int64(2), [-1.5, -0.5, 0.5, 1.5]),
    ],
)
def test_levels(name, levels):
    np.testing.assert_array_equal(make_alphabet(name), levels)


def test_sizes_and_symmetry():
    for bits in range(2, 9):
        assert len(make_alphabet(bits)) == len(make_alphabet(f"int{bits}")) == 2**bits
        assert is_symmetric(make_alphabet(bits))
        assert not is_symmetric(make_alphabet(f"int{bits}"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("9", "unknown alphabet '9'; expected one of 1.58"),
        ({}, "a name or a list of numbers, got {}"),
        ("-1,0,x", "a name or a list of numbers, got '-1,0,x'"),
        ([1.0], "2 to 256 levels"),
        ([[1.0, 2.0]], "2 to 256 levels"),
        (np.arange(257), "2 to 256 levels"),
        ([1.0, 0.0], "ascending order"),
        ([0.0, 0.0, 1.0], "distinct"),
        ([0.0, np.nan], "finite"),
        ([1.0, 1.0 + 1e-9], "distinct"),
        ([-1e30, 1e30], "magnitude near 1"),
        ([-1e200, 1e200], "magnitude near 1"),
    ],
)
def test_bad_alphabets(spec, message):
    with pytest.raises(ValueError, match=message):
        make_alphabet(spec)


@pytest.mark.parametrize("spec", [*NAMED, *USER], ids=str)
def test_bracket_nearest_and_index(x64, rng, spec):
    alphabet = make_alphabet(spec)
    levels = Levels.of(alphabet, jnp.float64)
    assert (levels.table is None) == (spec not in USER)
    p = jnp.asarray(np.concatenate([rng.uniform(alphabet[0] - 2, alphabet[-1] + 2, 200), alphabet]))
    lo, hi = jax.jit(levels.bracket)(p)
    i = np.clip(np.searchsorted(alphabet, p, side="right") - 1, 0, len(alphabet) - 2)
    np.testing.assert_allclose(lo, alphabet[i])
    np.testing.assert_allclose(hi, alphabet[i + 1])
    nearest = levels.nearest(p)
    expected = np.argmin(np.abs(np.asarray(p)[:, None] - alphabet[None, :]), axis=1)
    np.testing.assert_allclose(nearest, alphabet[expected])
    np.testing.assert_array_equal(levels.index(nearest), expected)
    assert levels.max_abs == np.abs(alphabet).max()


def test_nearest_takes_the_lower_of_two():
    assert Levels.of(make_alphabet("2"), jnp.float32).nearest(jnp.float32(0)) == -0.5
