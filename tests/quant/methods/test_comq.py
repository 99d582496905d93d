"""COMQ against coordinate descent on the vectors themselves, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods import comq
from beacon_jax.quant.methods.oracle import nearest_level
from beacon_jax.quant.methods.table import METHODS
from tests.quant.problems import gram, levels_of, make_problem


def literal_comq(W, X, X_tilde, alphabet, s, z, sweeps, order):
    """Coordinate descent on ‖Xw − z X̃1 − s X̃q‖² with the vectors themselves, from q = (w − z) / s."""
    codes, scales, objectives = [], [], []
    for w, scale, zero in zip(W.T, s, z, strict=True):
        q, y = (w - zero) / scale, X @ w - zero * X_tilde.sum(1)
        history = []
        for _ in range(sweeps):
            for t in order:
                x = X_tilde[:, t]
                if not x.any():
                    q[t] = alphabet[np.argmin(np.abs(alphabet))]
                    continue
                residual = y - scale * (X_tilde @ q - q[t] * x)
                q[t] = nearest_level(np.array([residual @ x / (scale * (x @ x))]), alphabet)[0]
            v = X_tilde @ q
            scale = (y @ v) / (v @ v)
            history.append(np.sum((y - scale * v) ** 2))
        codes.append(q)
        scales.append(scale)
        objectives.append(history)
    return np.stack(codes, 1), np.array(scales), np.array(objectives).T


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", comq.ORDERS)
def test_comq_equals_its_literal_form(x64, rng, symmetric, order):
    alphabet = make_alphabet("3")
    for kind in ("correlated", "dead_mismatch"):
        W, X, X_tilde = make_problem(rng, kind, 22, 5)
        kernel, stats = jnp.asarray(W), gram(X, X_tilde.copy())  # two streams, also where they are equal
        result = METHODS["comq"](kernel, stats, alphabet, symmetric=symmetric, order=order, block_size=8)
        start = METHODS["rtn"](kernel, stats, alphabet, symmetric=symmetric)
        z = np.zeros(5) if symmetric else np.asarray(start.offset)
        importance = (X_tilde**2).sum(0) * (W**2).sum(1)
        visits = np.argsort(-importance, kind="stable") if order == "greedy" else np.arange(22)
        q, s, objective = literal_comq(W, X, X_tilde, alphabet, np.asarray(start.scale), z, 4, visits)
        np.testing.assert_array_equal(levels_of(result), q)
        np.testing.assert_allclose(result.scale, s, rtol=1e-9)
        np.testing.assert_allclose(result.info["objective"], objective, rtol=1e-8)


def test_comq_objective_never_rises(rng):
    for name in ("1.58", "2", "4"):
        W, X, X_tilde = make_problem(rng, "mismatch", 40, 16)
        stats = gram(X, X_tilde, jnp.float32)
        objective = np.asarray(METHODS["comq"](jnp.asarray(W, jnp.float32), stats, name, sweeps=8).info["objective"])
        assert np.all(np.diff(objective, axis=0) <= 1e-4 * objective[:-1])
