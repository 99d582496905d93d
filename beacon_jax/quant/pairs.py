"""Moves of two codes at once, where no move of a single code is any better.

At a fixed scale c, r = P(c q) − h, a move of code t by δ costs c²δ²P_tt + 2cδ r_t, and two moves together that of each
plus 2c²δη P_tj. All partners j of every t are looked at, each by one level up or down, which is N² pairs for each of
four directions: elementwise work over (coordinates at hand, channels), a few partners at a time.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from beacon_jax.quant.alphabets import Levels
from beacon_jax.quant.objective import Objective
from beacon_jax.quant.precision import tie_tolerance
from beacon_jax.quant.products import matmul
from beacon_jax.quant.store import Store, buffer
from beacon_jax.quant.sweep import pad_rows, pad_square, take

AT_A_TIME = 32  # coordinates, of which each channel makes the best move before the next ones are looked at
PARTNERS = 8  # rows in one elementwise loop


def pair_moves(objective: Objective, levels: Levels, q: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """One round of pair moves from codes q (N, C): for every few coordinates the best move of one of them with its
    best partner, if it lowers the objective at the scale of q; so the objective never rises.
    """
    N = q.shape[0]
    c = objective.scale(q)
    P = pad_square(objective.P, AT_A_TIME)
    q, h = pad_rows((q, objective.h), AT_A_TIME)
    real = (jnp.arange(q.shape[0]) < N)[:, None]
    diagonal = jnp.diagonal(P)[:, None]
    least = tie_tolerance(q.dtype) * jnp.square(c) * diagonal.mean()

    def visit(i, carry):
        q, r = carry
        up, down = _steps(levels, q)
        costs = [jnp.where((s != 0) & real, _cost(c, s, diagonal, r), jnp.inf) for s in (up, down)]
        at = i * AT_A_TIME
        gains, directions = _best_of_each(take(P, at, AT_A_TIME), c, (up, down), costs, at)
        best = jnp.argmin(gains, axis=0)
        t, step = at + best, jnp.take_along_axis(directions, best[None, :], axis=0)[0]
        own = jnp.take_along_axis(costs[0], t[None, :], axis=0)[0]
        own = jnp.where(step > 0, own, jnp.take_along_axis(costs[1], t[None, :], axis=0)[0])
        row = P[t].T
        j, other, cost = _partner(row, t, 2 * jnp.square(c) * step, (up, down), costs)
        made = own + cost < -least
        step, other = jnp.where(made, step, 0), jnp.where(made, other, 0)
        channels = jnp.arange(q.shape[1])
        q = levels.nearest(q.at[t, channels].add(step).at[j, channels].add(other))
        return q, r + c[None, :] * (row * step[None, :] + P[j].T * other[None, :])

    r = c[None, :] * matmul(P, q) - h
    return lax.fori_loop(0, q.shape[0] // AT_A_TIME, visit, (q, r))[0][:N]


def _steps(levels, q):
    """(N, C) each: the way to the next level above, and below (negative); 0 where there is none."""
    i = levels.index(q).astype(jnp.int32)
    last = levels.index(levels.last).astype(jnp.int32)
    return tuple(levels.at(jnp.clip(i + k, 0, last)) - q for k in (1, -1))


def _cost(c, step, diagonal, r):
    change = c[None, :] * step
    return change * (change * diagonal + 2 * r)


def _best_of_each(stripe, c, steps, costs, at):
    """(T, C) the cost of the best move of each of T coordinates with any partner, and the coordinate's step in it."""
    T = stripe.shape[0]
    own_steps = [take(s, at, T) for s in steps]
    factors = [2 * jnp.square(c)[None, :] * s for s in own_steps]
    C = c.shape[0]

    def look(k, carry):
        least, buffers = carry
        store, first = Store(buffers, stripe[0, 0]), k * PARTNERS
        P = store("P", take(stripe, first, PARTNERS, axis=1).T)
        partners = [
            [store(f"{name} {i}", take(a, first, PARTNERS)) for name, a in (("step", step), ("cost", cost))]
            for i, (step, cost) in enumerate(zip(steps, costs, strict=True))
        ]
        out = []
        for factor, low in zip(factors, least, strict=True):
            for p in range(PARTNERS):
                cross = P[p][:, None] * factor
                for step, cost in partners:
                    low = jnp.minimum(low, cost[p][None, :] + step[p][None, :] * cross)
            out.append(low)
        return tuple(out), store.buffers

    start = (jnp.full((T, C), jnp.inf, c.dtype),) * 2
    buffers = {f"{name} {i}": buffer((PARTNERS, C), c.dtype) for name in ("step", "cost") for i in range(2)}
    buffers["P"] = buffer((PARTNERS, T), c.dtype)
    least, _ = lax.fori_loop(0, stripe.shape[1] // PARTNERS, look, (start, buffers))
    up, down = (low + take(cost, at, T) for low, cost in zip(least, costs, strict=True))
    return jnp.minimum(up, down), jnp.where(up <= down, *own_steps)


def _partner(row, t, factor, steps, costs):
    """The best partner of one coordinate of each channel: its number, its step and what it adds to the cost, (C,)."""
    own = jnp.arange(row.shape[0])[:, None] == t[None, :]
    up, down = (jnp.where(own, jnp.inf, cost + s * row * factor[None, :]) for s, cost in zip(steps, costs, strict=True))
    j = jnp.argmin(jnp.minimum(up, down), axis=0)
    at_j = [jnp.take_along_axis(a, j[None, :], axis=0)[0] for a in (up, down, *steps)]
    return j, jnp.where(at_j[0] <= at_j[1], at_j[2], at_j[3]), jnp.minimum(at_j[0], at_j[1])
