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
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt8

from beacon_jax.quant.alphabets import Levels, is_symmetric
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.methods.best_level import best_level
from beacon_jax.quant.methods.block_options import BlockOptions
from beacon_jax.quant.methods.options import option
from beacon_jax.quant.objective import Grams, grams_of
from beacon_jax.quant.precision import tie_tolerance
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.scales import least_squares_scale, nonzero
from beacon_jax.quant.side_by_side import part_size, side_by_side
from beacon_jax.quant.sweep import (
    Rule,
    blocked_pass,
    map_channel_chunks,
    pad_rows,
    pad_square,
    room_for,
)
from beacon_jax.quant.triangular import lower_and_whole, quadratic_form

CENTERINGS = ("none", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeOptions(BlockOptions):
    """How much is solved at a time, which beacon_plus has as well."""

    block_size: int = option(128, "coordinates per block, at most", unit="inputs", at_least=1, decides_result=False)
    channel_chunk: int | None = option(
        None,
        "channels solved at a time; None for all, but parts on one CPU, for its caches and cores",
        unit="channels",
        at_least=1,
        decides_result=False,
    )

    def sizes(self, kernel: Float[Array, "N C"]) -> dict[str, int | str | None]:
        """block_size, block and channel_chunk for a kernel (N, C), or for a part of its channels."""
        return {**self.blocks(kernel), "channel_chunk": None if self.parts(kernel) else self.channel_chunk}

    def parts(self, kernel: Float[Array, "N C"]) -> int | None:
        """How many channels of a kernel (N, C) to solve at a time, side by side (see side_by_side.py); None for all."""
        size = part_size(kernel)
        return None if size is None else self.channel_chunk or size


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeaconOptions(SizeOptions):
    """Options of Beacon."""

    sweeps: int = option(6, "the paper's K, at most; 0 keeps the greedy start", unit="passes", at_least=0)
    centering: str = option(
        "none", "mean: quantize W minus its column means and put them back as an offset", choices=CENTERINGS
    )


def solve(problem: Problem, options: BeaconOptions) -> Found:
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

    centering="mean" quantizes W − 1·z with z the column means and puts the mean back as an offset, corrected for the
    input's change: z · ⟨X1, X̃1⟩ / ‖X̃1‖² (asymmetric quantization).

    Info: cosine (C,) = cos∠(Xw, X̃q) of the (centred) channel; sweeps (C,) int32 passes made, counting the one that
    found nothing to change; fixed_point (C,) bool; cosine_history (sweeps + 1, C) after the start and after each pass.
    """
    W, offset = problem.W, None
    if options.centering == "mean":
        W, offset = _centred(W, problem.stats)
    levels, both_signs, grams = problem.levels, not is_symmetric(problem.alphabet), grams_of(problem.stats)
    how, size = dict(room=room_for(options.sweeps), both_signs=both_signs, **options.sizes(W)), options.parts(W)

    def solved(W):
        return solve_codes(W, grams, levels, options.sweeps, **how)

    codes, facts = side_by_side(solved, size, W)
    facts["cosine_history"] = facts["cosine_history"][: options.sweeps + 1]
    return Found(codes, facts.pop("scale"), offset, info=facts)


@jit_solver("room", "both_signs", "block_size", "block", "channel_chunk")
def solve_codes(
    W: Float[Array, "N C"],
    grams: Grams,
    levels: Levels,
    sweeps: int | Int[Array, ""],
    *,
    room: int,
    both_signs: bool,
    block_size: int,
    channel_chunk: int | None,
    block: str = "xla",
) -> tuple[UInt8[Array, "N C"], dict[str, Array]]:
    """Codes (N, C) and the facts of each channel, scale among them, from (H, G, F), the last two None for one stream.

    One trace per layer shape and dtype, whatever the (evenly spaced) alphabet and the number of sweeps, up to `room`,
    for which the history has rows.
    """
    both = W if not both_signs else jnp.concatenate([W, -W], axis=1)
    q, facts = map_channel_chunks(
        functools.partial(_solve_channels, grams, levels, sweeps, room, block_size, block), channel_chunk, both
    )
    if both_signs:
        q, facts = _better_sign(q, facts)
    return levels.index(q), facts


def _solve_channels(grams, levels, sweeps, room, block_size, block, W):
    """Greedy start and sweeps for the channels W (N, C): q (N, C) and the facts of each."""
    visit = functools.partial(blocked_pass, block_size=block_size, block=block, codes=levels.exact)
    H, G, F = grams
    N, one_stream = W.shape[0], G is None
    G = H if one_stream else G
    padded = pad_square(H, block_size), None if one_stream else pad_square(G.T, block_size)
    first_level = levels.nearest(W / least_squares_scale(W, levels)[None, :])
    start_h, h = lower_and_whole(G, W)
    y_norm = jnp.sqrt(jnp.maximum((W * h).sum(0) if one_stream else quadratic_form(F, W), 0))
    W, start_h, h, first_level = pad_rows((W, start_h, h, first_level), block_size)
    diagonals = pad_rows((jnp.diagonal(H), jnp.diagonal(G)), block_size)

    q, beta = _greedy_start(visit, *padded, diagonals, levels, W, start_h, first_level)
    history = jnp.zeros((room + 1, *y_norm.shape), y_norm.dtype).at[0].set(_cosine((h * q).sum(0), beta, y_norm))

    def sweep(carry):
        k, q, beta, history, made, moving = carry
        # Afresh in every sweep, so that rounding does not drift.
        start = (h * q).sum(0), beta
        swept, (a, beta) = _sweep(visit, padded[0], diagonals[0], levels, h, first_level, q, start)
        changed = (swept != q).any(0)
        history = history.at[k + 1].set(jnp.where(changed, _cosine(a, beta, y_norm), history[k]))
        return k + 1, swept, beta, history, jnp.where(moving, k + 1, made), moving & changed

    def unfinished(carry):
        return (carry[0] < sweeps) & carry[-1].any()

    made, moving = jnp.zeros(y_norm.shape, jnp.int32), jnp.ones(y_norm.shape, bool)
    k, q, beta, history, made, moving = lax.while_loop(unfinished, sweep, (0, q, beta, history, made, moving))
    after = jnp.arange(room + 1)[:, None] > k
    history = jnp.where(after, history[k][None, :], history)
    a, beta = (h * q).sum(0), quadratic_form(H, q[:N])
    facts = {
        "scale": jnp.where(beta > 0, a / jnp.where(beta > 0, beta, 1), 0),
        "cosine": _cosine(jnp.abs(a), beta, y_norm),
        "sweeps": made,
        "fixed_point": ~moving,
        "cosine_history": history,
    }
    return q[:N], facts


def sweep_codes(
    P: Float[Array, "N N"],
    h: Float[Array, "N C"],
    target: Float[Array, "N C"],
    levels: Levels,
    q: Float[Array, "N C"],
    sweeps: int | Int[Array, ""],
    block_size: int,
    block: str = "xla",
) -> tuple[Float[Array, "N C"], Bool[Array, " C"]]:
    """Up to `sweeps` passes of coordinate maximisation of the cosine |hᵀq| / √(qᵀPq) from codes q (N, C).

    target (N, C), real weights near the optimum, decides the level for an empty running sum. Returns q, and (C,)
    whether the last pass that a channel took part in changed nothing.
    """
    N, visit = q.shape[0], functools.partial(blocked_pass, block_size=block_size, block=block, codes=levels.exact)
    cross, beta = (h * q).sum(0), quadratic_form(P, q)
    sign = jnp.where(cross < 0, -1, 1).astype(q.dtype)
    h = h * sign[None, :]
    scale = nonzero(jnp.where(beta > 0, cross / jnp.where(beta > 0, beta, 1), 0))
    first_level = levels.nearest(target / scale[None, :])
    M, (h, first_level, q) = pad_square(P, block_size), pad_rows((h, first_level, q), block_size)
    diagonal = jnp.diagonal(M)

    def sweep(carry):
        k, q, beta, _ = carry
        swept, (_, beta) = _sweep(visit, M, diagonal, levels, h, first_level, q, ((h * q).sum(0), beta))
        return k + 1, swept, beta, (swept != q).any(0)

    def unfinished(carry):
        return (carry[0] < sweeps) & carry[-1].any()

    moving = jnp.ones(beta.shape, bool)
    _, q, _, moving = lax.while_loop(unfinished, sweep, (0, q, beta, moving))
    return q[:N], ~moving


def _greedy_start(visit, H, Gt, diagonals, levels, W, start_h, first_level):
    """q (N, C), each coordinate chosen for the part of the output that it and those before it make up, and ‖s‖²."""
    zero, rows = jnp.zeros(W.shape[1], W.dtype), (W, start_h, first_level)
    q, (_, c) = visit(
        Rule(_choose_first, _update_first),
        (H,) if Gt is None else (H, Gt),
        levels,
        diagonals,
        rows,
        jnp.zeros_like(W),
        (zero, zero),
        lower=True,
    )
    return q, c


def _choose_first(levels, diagonals, row, products, _q, state):
    w, h, first = row
    d, g = products[0], products[-1]  # ⟨s, X̃_t⟩ and ⟨s, X_t⟩
    a, c = state
    return best_level(levels, first, a + w * g, c, h, d, diagonals[0], size=0.0)  # y gains w_t X_t first


def _update_first(_levels, diagonals, row, products, _q, p, state):
    w, h, _ = row
    a, c = state
    H_tt, G_tt = diagonals
    v, g = products[0], products[-1]  # with p X̃_t in s already
    return a + w * (g - p * G_tt) + p * h, c + p * (2 * v - p * H_tt)


def _sweep(visit, H, diagonal, levels, h, first_level, q, state):
    """One pass of exact coordinate maximisation; state = (a, β) of the whole q."""
    return visit(Rule(_choose_again, _update_again), (H,), levels, diagonal, (h, first_level), q, state)


def _choose_again(levels, H_tt, row, products, q, state):
    h, first = row
    a, beta = state
    d, own = products[0] - q * H_tt, q * q * H_tt
    return best_level(levels, first, a - q * h, beta - 2 * q * d - own, h, d, H_tt, size=beta + own)


def _update_again(_levels, H_tt, row, products, old, p, state):
    # A code that stays leaves a and β untouched to the last bit, so a fixed point stays one.
    a, beta = state
    change = p - old
    return a + change * row[0], beta + change * (2 * products[0] - change * H_tt)


def _better_sign(q, facts):
    """Of the solutions for w and for −w, side by side, the one with the better final cosine; equal ones give w's."""
    C = q.shape[1] // 2
    facts["scale"] = facts["scale"].at[C:].multiply(-1)
    final = facts["cosine_history"][-1]
    plus = final[:C] >= final[C:] - tie_tolerance(final.dtype)
    return jax.tree.map(lambda x: jnp.where(plus if x.ndim == 1 else plus[None, :], x[..., :C], x[..., C:]), (q, facts))


def _cosine(a, beta, y_norm):
    norm = jnp.sqrt(jnp.maximum(beta, 0)) * y_norm
    return jnp.where(norm > 0, a / jnp.where(norm > 0, norm, 1), 0)


@jax.jit
def _centred(W, stats):
    """The kernel without its columns' means, and these (C,) as offsets of what the inputs have become.

    They are times ⟨X1, X̃1⟩ / ‖X̃1‖², which is 1 where X̃ = X and taken as 1 where X̃1 = 0.
    """
    mean = W.mean(0)
    cross, norm = stats.G.sum(), stats.H.sum()
    return W - mean[None, :], mean * jnp.where(norm > 0, cross / jnp.where(norm > 0, norm, 1), 1)
