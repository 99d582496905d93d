"""Random quantization problems of every kind that the solvers must survive."""

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.quant.gram import GramStats

KINDS = ("white", "correlated", "low_rank", "duplicates", "dead", "mismatch", "low_rank_mismatch", "dead_mismatch")


def make_problem(rng, kind: str, N: int, C: int, rows: int | None = None):
    """Kernel (N, C) and inputs X, X_tilde (rows, N), float64."""
    rows = rows or 2 * N + 3
    W, X = rng.normal(size=(N, C)), rng.normal(size=(rows, N))
    if kind in ("correlated", "mismatch"):
        X = X @ rng.normal(size=(N, N)) + 2 * rng.normal(size=(rows, 1))
    if "low_rank" in kind:
        rank = min(N, max(2, N // 3))
        X = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, N))
    if kind == "duplicates":
        X[:, 1::2] = X[:, 0 : N - N % 2 : 2]
    if "dead" in kind:
        X[:, rng.random(N) < 0.3] = 0
    X_tilde = X + 0.2 * rng.normal(size=X.shape) * (X != 0) if "mismatch" in kind else X
    return W, X, X_tilde


def gram(X, X_tilde=None, dtype=jnp.float64) -> GramStats:
    X_tilde = None if X_tilde is None or X_tilde is X else jax.device_put(np.asarray(X_tilde, dtype))
    return GramStats.zeros(X.shape[1], dtype).update(jax.device_put(np.asarray(X, dtype)), X_tilde)


def levels_of(result) -> np.ndarray:
    """The unscaled levels (N, C) that a QuantizedMatrix holds."""
    return np.asarray(result.alphabet)[np.asarray(result.codes)]


def least_squares(w, q, X, X_tilde, ridge, *, bias, offset):
    """min over c (and b, z) of ‖Xw − X̃(cq + z) − b‖² + Σ ridge_t (w_t − cq_t − z)², and c, z, b."""
    N = w.size
    root = np.sqrt(ridge)
    columns = [np.concatenate([X_tilde @ q, root * q])]
    if offset:
        columns.append(np.concatenate([X_tilde.sum(1), root * np.ones(N)]))
    if bias:
        columns.append(np.concatenate([np.ones(len(X)), np.zeros(N)]))
    A, y = np.stack(columns, 1), np.concatenate([X @ w, root * w])
    found = np.linalg.lstsq(A, y, rcond=None)[0]
    return np.square(y - A @ found).sum(), found
