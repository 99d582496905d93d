import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.problem import Found, Problem, Solution
from beacon_jax.quant.quantized import QuantizedMatrix
from tests.quant.problems import gram


def stats_of(rng, mean=0.0, n=4):
    return gram(rng.normal(size=(30, n)) + mean, dtype=jnp.float32)


def test_a_problem_is_put_into_the_dtype_to_solve_in(rng):
    kernel = jnp.ones((4, 2), jnp.bfloat16)
    problem = Problem.of(kernel, stats_of(rng), "2")
    assert problem.dtype == problem.W.dtype == problem.stats.dtype == problem.levels.first.dtype == jnp.float32
    np.testing.assert_array_equal(problem.alphabet, [-1.5, -0.5, 0.5, 1.5])
    large = Problem.of(kernel, stats_of(rng, 1e4), "2")
    assert large.dtype == large.stats.dtype == np.float64 and large.mean_over_spread > 5000
    unread = Problem.of(kernel, stats_of(rng, 1e4), "2", reads_means=False)
    assert unread.dtype == np.float32 and unread.mean_over_spread is None


def test_traced_values_are_taken_on_trust(rng):
    problems = []
    jax.eval_shape(lambda *a: problems.append(Problem.of(*a, "2")), jnp.ones((4, 2)), stats_of(rng, 1e4))
    assert problems[0].dtype == np.float32 and problems[0].mean_over_spread is None


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [
        ((4,), None, r"expected a kernel \(inputs, outputs\) or \(groups, inputs, outputs\), got shape \(4,\)"),
        ((4, 0), None, r"a kernel of shape \(4, 0\) has no weights to quantize"),
        ((5, 2), None, r"statistics are for 4 inputs, but the kernel of shape \(5, 2\) has 5"),
        ((2, 4, 2), None, r"statistics are of one layer, but the kernel of shape \(2, 4, 2\) is of 2 groups"),
        ((4, 2), 3, r"statistics are of 3 groups, but the kernel of shape \(4, 2\) is of one layer"),
        ((2, 4, 2), 3, r"statistics are of 3 groups, but the kernel of shape \(2, 4, 2\) is of 2 groups"),
    ],
)
def test_shapes_that_do_not_fit(shape, groups, message):
    with pytest.raises(ValueError, match=message):
        Problem.of(jnp.ones(shape), GramStats.zeros(4, groups=groups), "2")


def test_what_is_no_array_or_no_statistics():
    for kernel, stats, given in (
        ([[1.0]], GramStats.zeros(1), "list and GramStats"),
        (np.ones((4, 2)), np.ones((3, 4)), "ndarray and ndarray"),
    ):
        with pytest.raises(ValueError, match=f"expected a kernel that is an array, and GramStats .* got {given}"):
            Problem.of(kernel, stats, "2")


def test_every_group_needs_rows():
    def statistics(weights):
        update = jax.vmap(lambda stats, x, w: stats.update(x, weights=w))
        return update(GramStats.zeros(4, groups=2), jnp.ones((2, 3, 4)), jnp.asarray(weights))

    kernel = jnp.ones((2, 4, 2))
    Problem.of(kernel, statistics([[1, 0, 0], [0, 1, 1]]), "2")
    with pytest.raises(ValueError, match="no calibration rows"):
        Problem.of(kernel, statistics([[1, 0, 0], [0, 0, 0]]), "2")


def test_each_group_gets_the_solver_of_one_layer(rng):
    def solver(problem):
        assert problem.W.shape == (4, 2) and problem.stats.groups == ()
        return Found(jnp.zeros((4, 2), jnp.uint8), problem.W.sum(0) + problem.stats.count)

    stats = stats_of(rng)
    alone = Problem.of(jnp.ones((4, 2)), stats, "2").solved_by(solver)
    np.testing.assert_array_equal(alone.scale, [34, 34])
    groups = jax.tree.map(lambda a: jnp.stack([a, a]), stats)
    both = Problem.of(jnp.asarray([1.0, 4.0])[:, None, None] * jnp.ones((2, 4, 2)), groups, "2").solved_by(solver)
    np.testing.assert_array_equal(both.scale, [[34, 34], [4 * 34, 4 * 34]])  # the second in units of 4
    assert both.offset is None and both.codes.shape == (2, 4, 2)


def test_a_solution_says_why_it_took_float64():
    matrix = QuantizedMatrix(jnp.zeros((4, 2), jnp.uint8), jnp.arange(2.0), jnp.ones(2))
    assert Solution(matrix, "float32", 3.0).note is None
    note = Solution(matrix, "float64", 1234.5).note
    assert note == "solved in float64 because the mean of the inputs, or of an output, is 1,234 times its spread"
    assert Solution(matrix, "float64", np.inf).note.endswith("because inputs or an output never change")
