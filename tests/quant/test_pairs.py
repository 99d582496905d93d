"""Pair moves against all pairs, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.objective import Objective
from beacon_jax.quant.pairs import AT_A_TIME, pair_moves
from tests.quant.problems import gram, make_problem

moved = jax.jit(pair_moves)


def best_pair(P, h, c, q, alphabet):
    """The codes of one channel after the best move of two of them by one level each, at a fixed scale."""

    def error(q):
        return c * c * q @ P @ q - 2 * c * h @ q

    def moves(level):
        i = list(alphabet).index(level)
        return [alphabet[k] for k in (i - 1, i + 1) if 0 <= k < len(alphabet)]

    best, least = q, error(q) - 1e-9
    for t, j in itertools.combinations(range(q.size), 2):
        for a, b in itertools.product(moves(q[t]), moves(q[j])):
            new = q.copy()
            new[t], new[j] = a, b
            if error(new) < least:
                best, least = new, error(new)
    return best


@pytest.mark.parametrize("alphabet", ["1.58", "3", "-1,0,2.5"])
@pytest.mark.parametrize("kind", ["correlated", "duplicates"])
def test_the_best_pair_is_found(x64, rng, alphabet, kind):
    """So few coordinates that all are looked at before one pair is moved."""
    N, C = 11, 6
    assert N <= AT_A_TIME
    W, X, _ = make_problem(rng, kind, N, C)
    levels = make_alphabet(alphabet)
    objective = Objective.of(jnp.asarray(W), gram(X), jnp.asarray(0.01), bias=False, offset=False)
    q = rng.choice(levels, size=(N, C))
    c = np.asarray(objective.scale(jnp.asarray(q)))
    P, h = np.asarray(objective.P), np.asarray(objective.h)
    expected = np.stack([best_pair(P, h[:, k], c[k], q[:, k], levels) for k in range(C)], 1)
    found = moved(objective, Levels.of(levels, jnp.float64), jnp.asarray(q))
    np.testing.assert_array_equal(found, expected)
    assert (found != q).any()


def test_the_objective_never_rises(rng):
    W, X, X_tilde = make_problem(rng, "mismatch", 3 * AT_A_TIME - 5, 20)
    stats = gram(X, X_tilde, dtype=jnp.float32)
    objective = Objective.of(jnp.asarray(W, jnp.float32), stats, jnp.float32(0.01), bias=True, offset=False)
    levels = Levels.of(make_alphabet("2"), jnp.float32)
    q = levels.nearest(jnp.asarray(W, jnp.float32))
    losses = [objective.loss(q)]
    for _ in range(4):
        q = moved(objective, levels, q)
        losses.append(objective.loss(q))
    assert (np.diff(losses, axis=0) <= 1e-5 * np.abs(losses[0])).all()
    assert (losses[-1] < losses[0]).all()
