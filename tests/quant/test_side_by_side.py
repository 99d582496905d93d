import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS
from beacon_jax.quant import side_by_side
from beacon_jax.quant.methods import beacon
from beacon_jax.quant.precision import in_dtype
from beacon_jax.quant.problem import Problem
from tests.quant.problems import gram, make_problem


def test_parts_join_in_order_whatever_is_left(rng):
    kernel, seen = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32), set()

    def solve(part):
        seen.add((threading.current_thread(), part.shape))
        return {"twice": 2 * part, "sum": part.sum(0)}

    found = side_by_side.side_by_side(solve, 3, kernel)
    np.testing.assert_array_equal(found["twice"], 2 * kernel)
    np.testing.assert_allclose(found["sum"], kernel.sum(0), rtol=1e-6)
    assert {shape for _, shape in seen} == {(3, 3)} and threading.main_thread() not in {thread for thread, _ in seen}


def test_a_part_is_no_larger_than_the_kernel():
    seen = []
    found = side_by_side.side_by_side(lambda part: seen.append(part.shape) or part, 10**9, jnp.ones((2, 5)))
    assert seen == [(2, 5)] == [found.shape]


def test_what_comes_of_parts_lies_on_the_kernels_device():
    kernel = jax.device_put(jnp.ones((2, 5)), jax.devices()[-1])
    found = side_by_side.side_by_side(lambda part: part.sum(0), 2, kernel)
    assert found.devices() == kernel.devices()


def test_what_fails_in_a_part_is_raised(rng):
    def solve(part):
        raise ValueError("this part")

    with pytest.raises(ValueError, match="this part"):
        side_by_side.side_by_side(solve, 2, jnp.ones((2, 4)))


def test_only_large_kernels_at_hand_are_cut():
    large = jax.ShapeDtypeStruct((4, 2 * side_by_side.PART), jnp.float32)
    sizes = [side_by_side.part_size(jnp.zeros((4, c))) for c in (10, 2 * side_by_side.PART - 1, 2 * side_by_side.PART)]
    assert sizes == [None, None, side_by_side.PART]
    jax.eval_shape(lambda a: [] if side_by_side.part_size(a) is None else pytest.fail("cut"), large)


def test_parts_have_the_codes_of_the_whole_where_float64_is_on_in_this_thread_alone(x64, rng, monkeypatch):
    W, X, Xt = make_problem(rng, "mismatch", 12, 10)
    problem = Problem.of(jnp.asarray(W), gram(X, Xt), "int2")
    whole = beacon.solve(problem, beacon.BeaconOptions())
    monkeypatch.setattr(side_by_side, "PART", 4)
    with jax.enable_x64(False), in_dtype(np.float64):
        parts = beacon.solve(problem, beacon.BeaconOptions())
    assert parts.scale.dtype == np.float64
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)
    np.testing.assert_array_equal(parts.info["sweeps"], whole.info["sweeps"])


@pytest.mark.parametrize("options", [dict(effort="default", pairs=1, offset=True), dict(start="greedy", effort="fast")])
def test_beacon_plus_in_parts_has_the_codes_of_the_whole(x64, rng, monkeypatch, options):
    W, X, Xt = make_problem(rng, "mismatch", 12, 10)
    solve = functools.partial(METHODS["beacon_plus"], jnp.asarray(W), gram(X, Xt), "2", **options)
    whole = solve()
    monkeypatch.setattr(side_by_side, "PART", 4)
    parts = solve()
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-10)
    np.testing.assert_allclose(parts.info["loss"], whole.info["loss"], rtol=1e-10, atol=1e-10)
