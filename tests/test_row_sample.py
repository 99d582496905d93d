import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import Execution, FloatStats, QuantSpec, quantize
from beacon_jax.row_sample import RowSample
from tests.spy import SPY, spy


def apply(params, batch):
    return jnp.tanh(batch["x"] @ params["one"]) @ params["two"]


@pytest.fixture
def tokens():
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=s)) for name, s in dict(one=(3, 4), two=(4, 2)).items()}
    return params, [{"x": rng.normal(size=(4, 6, 3))} for _ in range(3)]


@pytest.fixture
def seen():
    with spy() as found:
        yield found


def run(tokens, weights=None, float_stats=None, **fields):
    spec = QuantSpec(**dict(method="rtn", rows_per_example=2) | fields)
    double = Execution(forward_dtype="float64")
    return quantize(apply, *tokens, spec, execution=double, weights=weights, float_stats=float_stats)


@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_are_of_the_rows_drawn(x64, tokens, seen, weighted):
    params, batches = tokens
    given = np.random.default_rng(2).integers(0, 3, (3, 4, 6)).astype(np.float32)
    given[0, 0] = [0, 0, 0, 1, 0, 0]
    order = iter(given)
    result = run(tokens, (lambda batch: next(order)) if weighted else None, method=SPY)
    sample, rows, weights = RowSample(2, 0), [], []
    for i, batch in enumerate(batches):
        own = given[i].reshape(-1) if weighted else np.ones(24)
        chosen = np.asarray(sample.chosen(24, 4, i, jnp.asarray(own) if weighted else None))
        assert chosen.shape == (4, 2) and (np.diff(chosen) > 0).all() and (chosen // 6 == np.arange(4)[:, None]).all()
        rows.append(batch["x"].reshape(24, 3)[chosen.reshape(-1)])
        weights.append(own[chosen.reshape(-1)])
    X, w = np.concatenate(rows), np.concatenate(weights)
    Xt = np.tanh(X @ np.asarray(result.params["one"]))
    X2 = np.tanh(X @ np.asarray(params["one"]))
    np.testing.assert_allclose(seen[0].stats.H, (w[:, None] * X).T @ X, atol=1e-12)
    np.testing.assert_allclose(seen[1].stats.G, (w[:, None] * Xt).T @ X2, atol=1e-12)
    np.testing.assert_allclose(seen[1].stats.F, (w[:, None] * X2).T @ X2, atol=1e-12)
    assert [report.rows for report in result.reports] == [(w > 0).sum()] * 2
    if weighted:  # examples of enough rows of positive weight take no others
        assert (w > 0).sum() == np.minimum((given > 0).sum(-1), 2).sum()


def test_enough_rows_are_all_rows(x64, tokens):
    whole, same = run(tokens, rows_per_example=None), run(tokens, rows_per_example=6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, same.params)


def test_seeds_draw_other_rows(x64, tokens, seen):
    for seed in (0, 0, 1):
        run(tokens, rows_seed=seed, method=SPY)
    np.testing.assert_array_equal(seen[0].stats.H, seen[2].stats.H)
    assert not np.allclose(seen[0].stats.H, seen[4].stats.H)


def test_double_precision_draws_the_same_rows():
    drawn = []
    for double in (False, True):
        with jax.enable_x64(double):
            drawn.append(np.asarray(RowSample(3, 2**32 - 1).chosen(40, 4, np.int32(1))))
    np.testing.assert_array_equal(*drawn)


def test_rows_that_no_examples_can_be_told_in_are_all_taken():
    sample = RowSample(2)
    assert not sample.thins(7, 2) and not sample.thins(4, 2) and sample.thins(6, 2)
    assert sample.rows(7, 2) == 7 and sample.rows(6, 2) == 4


def test_statistics_of_other_rows_are_not_taken(x64, tokens):
    shared = FloatStats()
    run(tokens, float_stats=shared)
    with pytest.raises(ValueError, match="float_stats holds statistics of another model"):
        run(tokens, float_stats=shared, rows_seed=1)


def test_too_few_rows_are_counted_as_drawn(x64, tokens):
    with pytest.raises(ValueError, match="too few calibration examples: 12 give 12 rows for the 16 inputs of w"):
        spec = QuantSpec(method="rtn", rows_per_example=1)
        batches = [np.ones((4, 6, 16), np.float32)] * 3
        quantize(lambda params, batch: batch @ params["w"], {"w": np.ones((16, 2), np.float32)}, batches, spec)


@pytest.mark.parametrize(
    "fields", [dict(rows_per_example=0), dict(rows_per_example=True), dict(rows_seed=-1), dict(rows_seed=2**32)]
)
def test_bad_numbers(fields):
    with pytest.raises(ValueError, match=r"rows_(per_example|seed) is an integer, at least"):
        QuantSpec(**fields)
