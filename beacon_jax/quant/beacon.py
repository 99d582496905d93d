"""Beacon (Zhang & Saab, arXiv 2508.20293): codes whose direction matches the output's, the scale in closed form.

Glossary (one layer; one column of W is one output channel and is quantized by itself)
  X, X̃   (m, N)  inputs in the float model and in the partly quantized model; only Gram matrices of them are needed
  w, q    (N,)    a column of the kernel, and its codes, every entry in the alphabet A
  H, G, F (N, N)  X̃ᵀX̃, X̃ᵀX, XᵀX
  y, s    (m,)    the target Xw (in the greedy start its partial sums) and the running sum Σ q_j X̃_j; never formed
  h, d    scalars ⟨y, X̃_t⟩ and ⟨s, X̃_t⟩ for the coordinate t at hand, s without it
  a, c    scalars ⟨y, s⟩ and ‖s‖², s without coordinate t
Choosing level p for coordinate t turns the cosine ∠(y, s + p X̃_t) into f(p) / ‖y‖ with

    f(p) = (a + p h) / √(c + 2 p d + p² H_tt),     f′(p) ∝ (h c − a d) − p (a H_tt − h d),

one stationary point, so the best of K levels is found in O(1) (best_level.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from beacon_jax.quant.alphabets import Levels, is_symmetric
from beacon_jax.quant.best_level import best_level
from beacon_jax.quant.checks import check_count, check_problem
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quant.scales import least_squares_scale
from beacon_jax.quant.sweep import (
    blocked_pass,
    even_block,
    lower_matmul,
    map_channel_chunks,
    matmul,
    pad_rows,
    pad_square,
    quadratic_form,
)

CENTERINGS = ("none", "mean")


def quantize(
    kernel: jax.Array,
    stats: GramStats,
    alphabet: jax.Array,
    *,
    sweeps: int = 6,
    centering: str = "none",
    block_size: int = 128,
    channel_chunk: int | None = None,
) -> QuantizedMatrix:
    """Beacon, Algorithm 1 of arXiv 2508.20293, from Gram statistics.

    Per channel it maximises cos∠(Xw, X̃q) over the codes q: a greedy start, then up to `sweeps` passes of exact
    coordinate maximisation, stopped at the fixed point; the scale is c = ⟨Xw, X̃q⟩ / ‖X̃q‖² (Prop. 2.1). With
    statistics of float inputs alone (X̃ = X) this is the paper's variant without error correction, with those of both
    streams the one with it.

    Where the paper leaves the codes open: while the running sum is zero every level of the right sign gives the same
    cosine; then the level nearest to w_t/s is taken (0 where that is nearest), s the least-squares round-to-nearest
    scale of the channel. Other ties take the lowest level. Inputs that are always zero take the level of smallest
    magnitude. For an alphabet that is not symmetric both signs of w are solved and the better cosine kept, so the
    scale may be negative.

    Args:
      kernel: (N, C) float.
      stats: Gram statistics of width N.
      alphabet: (K,) ascending levels.
      sweeps: the paper's K, at least 0 (0 keeps the greedy start).
      centering: "mean" quantizes W − 1·z with z the column means and puts the mean back as an offset, corrected for
        the input's change: z · ⟨X1, X̃1⟩ / ‖X̃1‖² (asymmetric quantization). "none" for no offset.
      block_size: coordinates per block, at most. Speed only, not the result.
      channel_chunk: channels solved at a time. None for all, but about 1,000 on one CPU, for its caches. Memory and
        speed only, not the result.

    Returns:
      QuantizedMatrix with info: cosine (C,) = cos∠(Xw, X̃q) of the (centred) channel; sweeps (C,) int32 passes made,
      counting the one that found nothing to change; fixed_point (C,) bool; cosine_history (sweeps + 1, C) after the
      start and after each pass.

    Raises:
      ValueError: bad shapes, values that are not finite, no calibration rows, unknown centering, sweeps below 0,
        block_size or channel_chunk below 1.
    """
    alphabet = check_problem(kernel, stats, alphabet)
    if centering not in CENTERINGS:
        raise ValueError(f"unknown centering {centering!r}; expected one of {', '.join(CENTERINGS)}")
    check_count("sweeps", sweeps, 0)
    check_count("block_size", block_size, 1)
    if channel_chunk is not None:
        check_count("channel_chunk", channel_chunk, 1)
    dtype = stats.H.dtype
    kernel = jnp.asarray(kernel, dtype)
    levels = Levels.of(alphabet, dtype)
    offset = None
    if centering == "mean":
        mean = kernel.mean(0)
        kernel = kernel - mean[None, :]
        offset = mean * _offset_gain(stats)
    solution = solve(
        kernel,
        stats,
        levels,
        sweeps=sweeps,
        both_signs=not is_symmetric(alphabet),
        block_size=even_block(kernel.shape[0], block_size),
        channel_chunk=channel_chunk or _chunk_for_caches(kernel),
    )
    info = {f.name: getattr(solution, f.name) for f in dataclasses.fields(solution) if f.name not in ("codes", "scale")}
    return QuantizedMatrix(solution.codes, jnp.asarray(alphabet, dtype), solution.scale, offset, info)


def _chunk_for_caches(kernel):
    if jax.default_backend() != "cpu" or isinstance(kernel, jax.core.Tracer) or len(kernel.sharding.device_set) > 1:
        return None
    channels = kernel.shape[1]
    return -(-channels // -(-channels // 1024))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """Codes (N, C) uint8, scale (C,) and the facts of the solve, as in `quantize`."""

    codes: jax.Array
    scale: jax.Array
    cosine: jax.Array
    sweeps: jax.Array
    fixed_point: jax.Array
    cosine_history: jax.Array


@jit_solver("sweeps", "both_signs", "block_size", "channel_chunk")
def solve(W, stats, levels, *, sweeps, both_signs, block_size, channel_chunk) -> Solution:
    """The solver behind `quantize`: one trace per layer shape and dtype, whatever the (evenly spaced) alphabet."""
    stats = _rescaled(stats)
    both = W if not both_signs else jnp.concatenate([W, -W], axis=1)
    q, facts = map_channel_chunks(
        functools.partial(_solve_channels, stats, levels, sweeps, block_size), channel_chunk, both
    )
    if both_signs:
        q, facts = _better_sign(q, facts)
    return Solution(levels.index(q), **facts)


def _solve_channels(stats, levels, sweeps, block_size, W):
    """Greedy start and sweeps for the channels W (N, C): q (N, C) and the facts of each."""
    N, diagonal = W.shape[0], jnp.diagonal(stats.H)
    H = pad_square(stats.H, block_size)
    Gt = None if stats.one_stream else pad_square(stats.G.T, block_size)
    first_level = levels.nearest(W / least_squares_scale(W, levels)[None, :])
    start_h = lower_matmul(stats.G, W)
    h = matmul(stats.G, W)
    y_norm = jnp.sqrt(jnp.maximum((W * h).sum(0) if stats.one_stream else quadratic_form(stats.F, W), 0))
    W, start_h, h, first_level = pad_rows((W, start_h, h, first_level), block_size)
    diagonals = pad_rows((diagonal, jnp.diagonal(stats.G)), block_size)

    q, beta = _greedy_start(H, Gt, diagonals, levels, block_size, W, start_h, first_level)
    history = jnp.zeros((sweeps + 1, *y_norm.shape), y_norm.dtype).at[0].set(_cosine((h * q).sum(0), beta, y_norm))

    def sweep(carry):
        k, q, beta, history, made, moving = carry
        # Afresh in every sweep, so that rounding does not drift.
        start = (h * q).sum(0), beta
        swept, (a, beta) = _sweep(H, diagonals[0], levels, block_size, h, first_level, q, start)
        changed = (swept != q).any(0)
        history = history.at[k + 1].set(jnp.where(changed, _cosine(a, beta, y_norm), history[k]))
        return k + 1, swept, beta, history, jnp.where(moving, k + 1, made), moving & changed

    def unfinished(carry):
        return (carry[0] < sweeps) & carry[-1].any()

    made, moving = jnp.zeros(y_norm.shape, jnp.int32), jnp.ones(y_norm.shape, bool)
    k, q, beta, history, made, moving = lax.while_loop(unfinished, sweep, (0, q, beta, history, made, moving))
    after = jnp.arange(sweeps + 1)[:, None] > k
    history = jnp.where(after, history[k][None, :], history)
    a, beta = (h * q).sum(0), quadratic_form(stats.H, q[:N])
    facts = {
        "scale": jnp.where(beta > 0, a / jnp.where(beta > 0, beta, 1), 0),
        "cosine": _cosine(jnp.abs(a), beta, y_norm),
        "sweeps": made,
        "fixed_point": ~moving,
        "cosine_history": history,
    }
    return q[:N], facts


def _greedy_start(H, Gt, diagonals, levels, block_size, W, start_h, first_level):
    """q (N, C), each coordinate chosen for the part of the output that it and those before it make up, and ‖s‖²."""

    def choose(diagonals, row, products, _q, state):
        w, h, first = row
        d, g = products[0], products[-1]  # ⟨s, X̃_t⟩ and ⟨s, X_t⟩
        a, c = state
        return best_level(levels, first, a + w * g, c, h, d, diagonals[0], size=0.0)  # y gains w_t X_t first

    def update(diagonals, row, products, _q, p, state):
        w, h, _ = row
        a, c = state
        H_tt, G_tt = diagonals
        v, g = products[0], products[-1]  # with p X̃_t in s already
        return a + w * (g - p * G_tt) + p * h, c + p * (2 * v - p * H_tt)

    zero, rows = jnp.zeros(W.shape[1], W.dtype), (W, start_h, first_level)
    q, (_, c) = blocked_pass(
        choose,
        (H,) if Gt is None else (H, Gt),
        diagonals,
        rows,
        jnp.zeros_like(W),
        (zero, zero),
        update,
        block_size=block_size,
        lower=True,
    )
    return q, c


def _sweep(H, diagonal, levels, block_size, h, first_level, q, state):
    """One pass of exact coordinate maximisation; state = (a, β) of the whole q."""

    def choose(H_tt, row, products, q, state):
        h, first = row
        a, beta = state
        d, own = products[0] - q * H_tt, q * q * H_tt
        return best_level(levels, first, a - q * h, beta - 2 * q * d - own, h, d, H_tt, size=beta + own)

    def update(H_tt, row, products, old, p, state):
        # A code that stays leaves a and β untouched to the last bit, so a fixed point stays one.
        a, beta = state
        change = p - old
        return a + change * row[0], beta + change * (2 * products[0] - change * H_tt)

    return blocked_pass(choose, (H,), diagonal, (h, first_level), q, state, update, block_size=block_size)


def _better_sign(q, facts):
    """Of the solutions for w and for −w, side by side, the one with the better final cosine; equal ones give w's."""
    C = q.shape[1] // 2
    facts["scale"] = facts["scale"].at[C:].multiply(-1)
    final = facts["cosine_history"][-1]
    plus = final[:C] >= final[C:] - float(jnp.finfo(final.dtype).eps) ** 0.8
    return jax.tree.map(lambda x: jnp.where(plus if x.ndim == 1 else plus[None, :], x[..., :C], x[..., C:]), (q, facts))


def _cosine(a, beta, y_norm):
    norm = jnp.sqrt(jnp.maximum(beta, 0)) * y_norm
    return jnp.where(norm > 0, a / jnp.where(norm > 0, norm, 1), 0)


def _rescaled(stats):
    """The statistics times a power of two that brings diag(H) near 1: products of six of them must fit in float32.

    It changes no code, and cancels in the scale.
    """
    _, exponent = jnp.frexp(jnp.diagonal(stats.H).mean())
    factor = jnp.ldexp(jnp.ones((), stats.H.dtype), -exponent)
    return jax.tree.map(lambda a: a * factor, stats)


def _offset_gain(stats):
    """⟨X1, X̃1⟩ / ‖X̃1‖², by which the mean's offset changes when the inputs do; 1 where X̃1 = 0 or X̃ = X."""
    cross, norm = stats.G.sum(), stats.H.sum()
    return jnp.where(norm > 0, cross / jnp.where(norm > 0, norm, 1), 1)
