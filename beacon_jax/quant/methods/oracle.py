"""Beacon, literally: arXiv 2508.20293, Algorithm 1, in float64 NumPy, one channel at a time.

Nothing here is clever. It forms the vectors, computes every cosine and takes the largest, and is what the fast solver
in `beacon.py` is held to. Ties follow the rule stated in `beacon.solve`.
"""

import numpy as np
from jaxtyping import Bool, Float64, Real

from beacon_jax.quant.array_types import AnyArray

EPS = float(np.finfo(np.float64).eps)
TOL = EPS**0.8  # vectors shorter than √TOL of their terms count as zero
COSINE_TIE = EPS**0.8  # cosines closer than this are equal


def beacon(
    W: Real[AnyArray, "N C"],
    X: Real[AnyArray, "m N"],
    X_tilde: Real[AnyArray, "m N"],
    alphabet: Real[AnyArray, " K"],
    sweeps: int,
) -> tuple[
    Float64[np.ndarray, "N C"], Float64[np.ndarray, " C"], Float64[np.ndarray, "{sweeps}+1 C"], Bool[np.ndarray, " C"]
]:
    """Quantizes every column of W.

    Args:
      W: (N, C) kernel.
      X, X_tilde: (m, N) float and quantized inputs.
      alphabet: (K,) ascending levels.
      sweeps: the paper's K.

    Returns:
      q (N, C) levels; c (C,) scales; cosine_history (sweeps + 1, C); fixed_point (C,) bool.
    """
    W, X, X_tilde, alphabet = (np.asarray(a, np.float64) for a in (W, X, X_tilde, alphabet))
    signs = (1,) if np.array_equal(alphabet, -alphabet[::-1]) else (1, -1)
    solved = []
    for w in W.T:
        tries = [_solve_channel(sign * w, X, X_tilde, alphabet, sweeps) for sign in signs]
        q, history, fixed = next(t for t in tries if t[1][-1] >= max(t[1][-1] for t in tries) - COSINE_TIE)
        s = X_tilde @ q
        c = (X @ w) @ s / (s @ s) if s @ s > 0 else 0.0
        solved.append((q, c, history, fixed))
    q, c, history, fixed = zip(*solved, strict=True)
    return np.stack(q, 1), np.array(c), np.stack(history, 1), np.array(fixed)


def _solve_channel(w, X, X_tilde, alphabet, sweeps):
    N = w.size
    first = nearest_level(w / least_squares_scale(w, alphabet), alphabet)
    q = np.zeros(N)
    for t in range(N):  # greedy start
        y = X[:, : t + 1] @ w[: t + 1]
        q[t] = _choose(y, X_tilde[:, :t], q[:t], X_tilde[:, t], first[t], alphabet)
    y = X @ w
    history, fixed = [cosine(y, X_tilde @ q)], False
    for _ in range(sweeps):
        before = q.copy()
        for t in range(N):
            others = np.delete(np.arange(N), t)
            q[t] = _choose(y, X_tilde[:, others], q[others], X_tilde[:, t], first[t], alphabet)
        history.append(cosine(y, X_tilde @ q))
        fixed = fixed or np.array_equal(before, q)
    return q, np.array(history), fixed


def _choose(y, others, q, x, first, alphabet):
    """argmax over the levels p of cos∠(y, s + p x), by the tie rule; s = others @ q."""
    s = others @ q
    smallest = alphabet[np.argmin(np.abs(alphabet))]
    if not x.any():
        return smallest
    if s @ s <= TOL * np.sum((others * q) ** 2):  # empty, or cancelled to rounding
        right = alphabet[alphabet * (y @ x) > 0]
        if first * (y @ x) >= 0 or not right.size:
            return first
        return right[np.argmin(np.abs(right))]
    candidates = s[:, None] + x[:, None] * alphabet[None, :]  # (m, K), a column for each level
    norms = np.linalg.norm(candidates, axis=0)
    zero = norms**2 <= TOL * alphabet**2 * (x @ x)  # cancelled: no direction
    cosines = np.where(zero, 0.0, y @ candidates / np.where(zero, 1.0, norms))
    norm = np.linalg.norm(y)
    cosines = cosines / norm if norm > 0 else np.zeros_like(cosines)
    return alphabet[np.argmax(cosines >= cosines.max() - COSINE_TIE)]


def cosine(y: Float64[np.ndarray, " m"], v: Float64[np.ndarray, " m"]) -> float:
    """cos∠(y, v), 0 where either is zero."""
    norm = np.sqrt(y @ y) * np.sqrt(v @ v)
    return float(y @ v / norm) if norm > 0 else 0.0


def nearest_level(x: Float64[np.ndarray, " N"], alphabet: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " N"]:
    """The level nearest to each x, the lower of two equally near."""
    return alphabet[np.argmin(np.abs(x[:, None] - alphabet[None, :]), axis=1)]


def least_squares_scale(w: Float64[np.ndarray, " N"], alphabet: Float64[np.ndarray, " K"]) -> float:
    """Of 0.01, 0.02, … 1.00 times max|w|/max A, the scale of least Σ(w − s·nearest(w/s))²; 1 for w = 0."""
    full = np.abs(w).max() / (alphabet[-1] if alphabet[-1] > 0 else np.abs(alphabet).max())
    if full == 0:
        return 1.0
    scales = full * (np.arange(1, 101) / 100)
    errors = [np.square(w - s * nearest_level(w / s, alphabet)).sum() for s in scales]
    return float(
        scales[np.argmax(errors <= min(errors) + EPS**1.5 * (w @ w))]
    )  # the first of those equal up to rounding
