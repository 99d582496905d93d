"""Choosing one alternative for each item so that a sum is least under a budget (the multiple-choice knapsack)."""

import itertools
from collections.abc import Sequence

import numpy as np

MAX_STATES = 50_000  # partial choices kept in memory at a time
_SLACK = 1e-9  # relative; sums in another order differ by less


def choose(costs: Sequence[np.ndarray], sizes: Sequence[np.ndarray], budget: int) -> tuple[list[int], float]:
    """The alternative of each item for which the sum of the costs is least and that of the sizes at most the budget.

    Dynamic programming over the partial choices that no other beats in both sums, without those whose bound shows that
    they cannot become the best (Nemhauser and Ullmann 1969, with the bound of the linear relaxation, Sinha and Zoltners
    1979). Exact, unless more than MAX_STATES are left at some item: then only the cheapest of those of nearly one size
    are kept, the result is within the budget all the same, and the bound says how far it may be from the best. Of equal
    costs the smaller size is taken.

    Args:
      costs: for each item, of its alternatives: (K,) floats, finite, of at least 0; K may differ.
      sizes: likewise, integers.
      budget: of the same unit.

    Returns:
      The number of each item's alternative, and a bound: no choice within the budget costs less.

    Raises:
      ValueError: no choice is within the budget.
    """
    sizes = [np.asarray(own, np.int64) for own in sizes]
    costs = [np.asarray(own, np.float64) for own in costs]
    if (least := sum(int(own.min()) for own in sizes)) > budget:
        raise ValueError(f"no choice is within the budget of {budget}: the smallest takes {least}")
    order = sorted(range(len(sizes)), key=lambda i: -int(np.ptp(sizes[i])))  # what is left is ever finer
    relaxed = [_Relaxed(costs, sizes, order[done:]) for done in range(len(order) + 1)]
    bound = float(relaxed[0].lower(np.array([budget]))[0])
    used, cost, best = np.zeros(1, np.int64), np.zeros(1), np.inf
    steps = []
    for i, rest in zip(order, relaxed[1:], strict=True):
        count = len(sizes[i])
        used, cost = ((a[:, None] + own[i][None, :]).reshape(-1) for a, own in ((used, sizes), (cost, costs)))
        left = budget - used
        reached = cost + rest.upper(left)
        best = min(best, float(reached.min()))
        kept = np.flatnonzero(cost + rest.lower(left) <= best * (1 + _SLACK))
        kept = kept[_unbeaten(used[kept], cost[kept])]
        if len(kept) > MAX_STATES:
            kept = kept[_thinned(used[kept], reached[kept])]
            best = float(reached[kept].min())
        used, cost = used[kept], cost[kept]
        steps.append((kept // count, kept % count))
    state, chosen = len(cost) - 1, [0] * len(order)  # the last is the cheapest
    for i, (before, alternative) in zip(reversed(order), reversed(steps), strict=True):
        chosen[i], state = int(alternative[state]), before[state]
    return chosen, bound


def _unbeaten(used: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Where no other is as small and as cheap, by ascending size and so by descending cost."""
    order = np.lexsort((cost, used))
    cheapest = np.minimum.accumulate(cost[order])
    return order[np.concatenate([[True], cheapest[1:] < cheapest[:-1]])]


def _thinned(used: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The last, the cheapest, of those in each of MAX_STATES equal ranges of size, and the one that reaches least."""
    place = (used - used[0]) * (MAX_STATES - 1) // max(int(used[-1] - used[0]), 1)
    last = np.append(place[1:] != place[:-1], True)
    last[reached.argmin()] = True
    return np.flatnonzero(last)


class _Relaxed:
    """The least cost of some items by the size left for them, where alternatives may be mixed."""

    def __init__(self, costs, sizes, items):
        steps, size, cost = [], 0, 0.0
        for i in items:
            corners = _corners(sizes[i], costs[i])
            size, cost = size + corners[0][0], cost + corners[0][1]
            steps += [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(corners)]
        steps.sort(key=lambda step: step[1] / step[0])
        self._sizes = size + np.cumsum([0, *(s for s, _ in steps)])
        self._costs = cost + np.cumsum([0.0, *(c for _, c in steps)])

    def lower(self, left: np.ndarray) -> np.ndarray:
        """The least cost itself; infinite where nothing fits."""
        return np.interp(left, self._sizes, self._costs, left=np.inf)

    def upper(self, left: np.ndarray) -> np.ndarray:
        """That of the last choice before it that mixes nothing."""
        place = np.searchsorted(self._sizes, left, side="right") - 1
        return np.where(place < 0, np.inf, self._costs[np.maximum(place, 0)])


def _corners(sizes: np.ndarray, costs: np.ndarray) -> list[tuple[int, float]]:
    """The lower convex hull of an item's alternatives, from the smallest one to the cheapest."""
    hull: list[tuple[int, float]] = []
    for i in _unbeaten(sizes, costs):
        point = int(sizes[i]), float(costs[i])
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a, b) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
