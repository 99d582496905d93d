"""Beacon's objective with better codes: our best method at the same storage, without tuning or back-propagation.

Steps, each of which can be left out by an option (letters as in beacon.py; the objective is in objective.py):
  bias      the layer's bias takes up the constant part of the error, so only what varies has to be matched
  ridge     more weight on the diagonal of the statistics, for what few calibration rows do not tell
  offset    an offset of each channel, minimised over exactly
  residual  behind quantized layers, what they have changed in the residual stream is aimed at, too (residual.py)
  start     "scan": weights decoded (decoding.py) at several scales, for each channel the best; "greedy": the paper's
  sweeps    the paper's passes of coordinate maximisation, which find the scale, too
  redecode  decoded again at scales near the one found, then sweeps
  beam      decoded with a beam (beam.py) there, then sweeps
  pairs     moves of two codes at once (pairs.py), then sweeps
After each step every channel keeps the codes of the lower objective, so none is ever worse than without the step.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from beacon_jax.quant.alphabets import is_symmetric
from beacon_jax.quant.beam import beam_decode
from beacon_jax.quant.compiling import jit_solver
from beacon_jax.quant.decoding import Decoder, decode, descending
from beacon_jax.quant.methods import beacon
from beacon_jax.quant.methods.beacon_plus_options import FEW, BeaconPlusOptions
from beacon_jax.quant.objective import Objective, bias_change
from beacon_jax.quant.pairs import pair_moves
from beacon_jax.quant.problem import Found, Problem
from beacon_jax.quant.scales import SCALES, least_squares_scale, nonzero, scale_and_offset
from beacon_jax.quant.side_by_side import side_by_side
from beacon_jax.quant.sweep import even_block, map_channel_chunks, room_for

SCAN = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)  # of the least-squares scale
AGAIN = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)  # of the scale found; as many as in SCAN, mostly one program for both
# For few inputs, for which good scales lie far apart.
SCAN_FEW = tuple(0.4 * (4 / 0.4) ** (i / 31) for i in range(32))
DAMPING = 0.01  # of a decoder, in means of diag(P)


def solve(problem: Problem, options: BeaconPlusOptions) -> Found:
    """Codes of lower error than Beacon's, with the same storage: see the module's docstring for the steps.

    The decoder is GPTQ's, in descending order of diag(P), on P + 0.01 · mean diag(P) · I. For an alphabet that is not
    symmetric, scales of both signs are tried. Rounding to nearest is a candidate of the scan as well, at the
    least-squares scale and at that of the largest weight, so with start="scan" the objective is never above its. Layers
    of at most 32 inputs have a beam with every effort, at all scales of the start. With start="greedy", bias=False,
    ridge=0, effort="fast" and beam=0 what is left is Beacon.

    Info: loss (steps, C), the objective after each step that was taken (the paper's start and its sweeps are one), but
    for a factor of the layer and a constant of each channel; fixed_point (C,) bool, whether the last sweeps ended with
    one that changed nothing.
    """
    W, levels = problem.W, problem.levels
    free = options.frees_bias(problem.has_bias)
    aimed = options.reads_residual and problem.stats.residual is not None
    residual = jnp.asarray(options.residual, problem.dtype) if aimed else None
    objective, decoder = _prepare(
        W, problem.stats, _ridge(problem, options), residual, bias=free, offset=options.offset
    )
    both_signs, steps = not is_symmetric(problem.alphabet), options.steps(W.shape[0])
    run, size = options.sizes(W), options.parts(W)
    beam_run = {"block_size": even_block(W.shape[0], options.block_size), "channel_chunk": run["channel_chunk"]}
    few, history = W.shape[0] <= FEW, []

    def sweep(best):
        swept = functools.partial(_swept, levels=levels, sweeps=options.sweeps, **run)
        q, loss, fixed = _in_parts(swept, size, objective, *best)
        history.extend([best[1], loss])
        return (q, loss), fixed

    def decoded(best, scales):
        step = functools.partial(_decoded, decoder=decoder, levels=levels, **run)
        return _in_parts(step, size, objective, *best, scales)

    scales = _scan(objective, levels, SCAN_FEW if few else SCAN, both_signs=both_signs)
    if options.start == "greedy":
        how = dict(room=room_for(options.sweeps), both_signs=both_signs, **run)
        start = functools.partial(
            beacon.solve_codes, grams=objective.grams, levels=levels, sweeps=options.sweeps, **how
        )
        codes, facts = side_by_side(start, size, W)
        q = levels.at(codes)
        best, fixed = (q, _loss(objective, q)), facts["fixed_point"]
        history.append(best[1])
    else:
        rounded = _rounded(W, problem.live, objective, levels)
        best, fixed = sweep(decoded(rounded, scales))
    if steps.redecode:
        near = _near(objective, best[0], AGAIN)
        best, fixed = sweep(decoded(best, near))
    if steps.beam:
        near = scales if few else _near(objective, best[0], steps.beam_scales)
        beamed = functools.partial(_beamed, decoder=decoder, levels=levels, width=steps.beam, **beam_run)
        best, fixed = sweep(_in_parts(beamed, size, objective, *best, near))
    for _ in range(steps.pairs):
        paired = functools.partial(_paired, levels=levels, channel_chunk=run["channel_chunk"])
        best, fixed = sweep(_in_parts(paired, size, objective, *best))
    codes, scale, offset, change, loss = _finish(
        W, problem.stats, objective, levels, best[0], residual, history, bias=free
    )
    return Found(codes, scale, offset, change, {"loss": loss, "fixed_point": fixed})


def _ridge(problem, options):
    if options.ridge is not None:
        return jnp.asarray(options.ridge, problem.dtype)
    return problem.W.shape[0] / (2 * jnp.maximum(problem.stats.rows, 1).astype(problem.dtype))


@jit_solver("bias", "offset")
def _prepare(W, stats, ridge, residual, *, bias, offset):
    """What is to be minimised, and its decoder."""
    objective = Objective.of(W, stats, ridge, bias=bias, offset=offset, residual=residual)
    return objective, Decoder.of(objective.P, descending(jnp.diagonal(objective.P)), DAMPING)


@jax.jit
def _rounded(W, live, objective, levels):
    """(q, loss), each channel's best rounding to nearest."""
    q, loss = None, None
    for scale, symmetric in itertools.product(SCALES, (True, False)):
        if symmetric or objective.free is not None:
            s, z = scale_and_offset(W, levels, scale, symmetric, live)
            q, loss = _better(objective, q, loss, levels.nearest((W - z[None, :]) / s[None, :]))
    return q, loss


@functools.partial(jax.jit, static_argnames="both_signs")
def _scan(objective, levels, factors, *, both_signs):
    """(S, C) scales to decode at, these factors of the least-squares scale of each sign."""
    factors, target = jnp.asarray(factors, objective.P.dtype)[:, None], objective.target
    live = jnp.diagonal(objective.P) > 0
    scales = factors * least_squares_scale(target, levels, live)[None, :]
    if both_signs:
        scales = jnp.concatenate([scales, -factors * least_squares_scale(-target, levels, live)[None, :]])
    return scales


@jax.jit
def _loss(objective, q):
    return objective.loss(q)


@jax.jit
def _near(objective, q, factors):
    """(S, C) scales near the best one of the codes; none is 0."""
    return jnp.asarray(factors, q.dtype)[:, None] * nonzero(objective.scale(q))[None, :]


@jit_solver("block_size", "block", "channel_chunk")
def _decoded(objective, q, loss, scales, decoder, levels, *, block_size, block, channel_chunk):
    """(q, loss), each channel's better of those given and of those decoded at the scales (S, C)."""

    def decode_channels(objective, q, loss, scales):
        def at_scale(best, s):
            new, error = decode(decoder, levels, objective.target, s, block_size=block_size, block=block)
            # The decoder's matrix has a ridge, the objective has not.
            ridge = decoder.ridge * jnp.square(objective.target - s[None, :] * new).sum(0)
            q, loss = best
            return _kept(q, loss, new, objective.loss_from(new, s, error - ridge)), None

        new, _ = lax.scan(at_scale, (q, loss), scales)[0]
        return _better(objective, q, loss, new)

    return _by_channels(decode_channels, objective, channel_chunk, q, loss, scales)


@jit_solver("block_size", "block", "channel_chunk")
def _swept(objective, q, loss, levels, sweeps, *, block_size, block, channel_chunk):
    """(q, loss) after up to that many passes, where they are better, and whether each channel's have come to rest."""

    def sweep_channels(objective, q, loss):
        start = objective.P, objective.h, objective.target, levels, q
        new, fixed = beacon.sweep_codes(*start, sweeps, block_size, block)
        return *_better(objective, q, loss, new), fixed

    return _by_channels(sweep_channels, objective, channel_chunk, q, loss)


@jit_solver("width", "block_size", "channel_chunk")
def _beamed(objective, q, loss, scales, decoder, levels, *, width, block_size, channel_chunk):
    """(q, loss), each channel's better of those given and of those decoded with a beam at the scales (S, C)."""

    def beam_channels(objective, q, loss, scales):
        def at_scale(best, s):
            new = beam_decode(decoder, levels, objective.target, s, width=width, block_size=block_size)
            q, loss = best
            return _better(objective, q, loss, new), None

        return lax.scan(at_scale, (q, loss), scales)[0]

    return _by_channels(beam_channels, objective, channel_chunk, q, loss, scales)


@jit_solver("channel_chunk")
def _paired(objective, q, loss, levels, *, channel_chunk):
    """(q, loss) after a round of pair moves."""

    def pair_channels(objective, q, loss):
        return _better(objective, q, loss, pair_moves(objective, levels, q))

    return _by_channels(pair_channels, objective, channel_chunk, q, loss)


@jit_solver("bias")
def _finish(W, stats, objective, levels, q, residual, history, *, bias):
    """Codes (N, C) and per channel the scale, the offset, the change of the bias, and the losses after all steps."""
    c = objective.scale(q)
    z = objective.offset(q, c)
    W_hat = c[None, :] * q if z is None else c[None, :] * q + z[None, :]
    change = bias_change(stats, W, W_hat, residual) if bias else None
    return levels.index(q), c, z, change, jnp.stack(history)


def _better(objective, q, loss, new):
    """(q, loss) of each channel's better codes; the first ones where there are none yet."""
    new_loss = objective.loss(new)
    return (new, new_loss) if q is None else _kept(q, loss, new, new_loss)


def _kept(q, loss, new, new_loss):
    better = new_loss < loss
    return jnp.where(better[None, :], new, q), jnp.where(better, new_loss, loss)


def _by_channels(function, objective, chunk, *arrays):
    """function(objective, *arrays) for `chunk` channels at a time."""
    return map_channel_chunks(*_of_channels(function, objective, arrays, chunk))


def _in_parts(function, size, objective, *arrays):
    """function(objective, *arrays) for parts of so many channels, side by side; for all at once where size is None."""
    return side_by_side(*_of_channels(function, objective, arrays, size))


def _of_channels(function, objective, arrays, size):
    """A function of channels' arrays alone, `size`, and these arrays."""
    own = {name: a for name in ("h", "target", "rest") if (a := getattr(objective, name)) is not None}

    def run(*parts):
        mine = dict(zip(own, parts, strict=False))
        return function(dataclasses.replace(objective, **mine), *parts[len(own) :])

    return run, size, *own.values(), *arrays
