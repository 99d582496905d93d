import itertools

import numpy as np
import pytest

from beacon_jax import knapsack
from beacon_jax.knapsack import choose


def problem(rng):
    """Up to 6 items of 1 to 4 alternatives; among the costs are ties, zeros and larger ones for larger sizes."""
    counts = rng.integers(1, 5, size=rng.integers(1, 7))
    sizes = [rng.integers(1, 30, size=k) for k in counts]
    costs = [rng.integers(0, 4, size=k).astype(float) if rng.random() < 0.3 else rng.random(k) for k in counts]
    least, most = (sum(int(f(own)) for own in sizes) for f in (np.min, np.max))
    return costs, sizes, int(rng.integers(least, most + 3))


def sums(costs, sizes, chosen):
    return tuple(sum(own[i] for own, i in zip(each, chosen, strict=True)) for each in (costs, sizes))


def test_against_enumeration(rng):
    for _ in range(300):
        costs, sizes, budget = problem(rng)
        every = (sums(costs, sizes, c) for c in itertools.product(*(range(len(own)) for own in sizes)))
        best = min(cost for cost, size in every if size <= budget)
        chosen, bound = choose(costs, sizes, budget)
        cost, size = sums(costs, sizes, chosen)
        assert size <= budget and cost == pytest.approx(best, abs=1e-12) and bound <= best + 1e-12


def test_more_budget_is_never_worse(rng):
    costs, sizes, _ = problem(rng)
    least, most = (sum(int(f(own)) for own in sizes) for f in (np.min, np.max))
    by_budget = [sums(costs, sizes, choose(costs, sizes, b)[0])[0] for b in range(least, most + 10)]
    assert np.all(np.diff(by_budget) <= 1e-12) and by_budget[0] > by_budget[-1]
    assert by_budget[-1] == pytest.approx(sum(own.min() for own in costs))


def test_of_equal_costs_the_smaller():
    assert choose([np.array([1.0, 0.5, 0.5]), np.zeros(2)], [np.array([1, 5, 3]), np.array([2, 1])], 100)[0] == [2, 1]


def test_many_items(rng):
    sizes = [rng.integers(10**5, 10**7) * np.array([2, 3, 4, 8]) + rng.integers(1000) for _ in range(200)]
    costs = [rng.random() * 4.0 ** -np.array([2, 3, 4, 8]) for _ in range(200)]
    budget = int(sum(own[0] for own in sizes) * 1.3)
    chosen, bound = choose(costs, sizes, budget)
    cost, size = sums(costs, sizes, chosen)
    assert size <= budget and bound <= cost <= bound * 1.001


def test_too_many_partial_choices_are_thinned(rng, monkeypatch):
    """Costs that are linear in sizes leave no choice that another beats: there are twice as many each time."""
    monkeypatch.setattr(knapsack, "MAX_STATES", 50)
    sizes = [np.array([0, 1]) * rng.integers(10**6, 10**7) for _ in range(30)]
    costs = [(own.max() - own).astype(float) for own in sizes]
    budget = int(sum(own[1] for own in sizes) * 0.5)
    chosen, bound = choose(costs, sizes, budget)
    cost, size = sums(costs, sizes, chosen)
    assert size <= budget and bound <= cost <= bound * 1.01


def test_nothing_fits():
    with pytest.raises(ValueError, match="no choice is within the budget of 2: the smallest takes 3"):
        choose([np.zeros(2), np.zeros(1)], [np.array([1, 4]), np.array([2])], 2)
