import numpy as np
import pytest

from beacon_jax.evaluate import evaluate
from beacon_jax.metrics.base import Mean, Measured, pick
from beacon_jax.metrics.classes import Agreement, CrossEntropy, Perplexity, Top1, Top5
from beacon_jax.metrics.vectors import MeanCosine, NeighbourOverlap, RelativeOutputError

ALL = (Top1(), Top5(), CrossEntropy(), Perplexity(), Agreement(), MeanCosine(), RelativeOutputError())
ALL += (NeighbourOverlap(k=2), Mean(lambda outputs, batch, kept: outputs[:, 0], title="first"))


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: type(metric).__name__)
def test_every_metric_says_how_it_is_shown(rng, metric):
    """And the float model compared with itself is as good as can be, where that is known."""
    batches = [{"x": rng.normal(size=(n, 6)).astype(np.float32), "label": rng.integers(6, size=n)} for n in (8, 5)]
    result = evaluate(lambda b: b["x"], batches, {"m": metric}, reference=lambda b: b["x"])["m"]
    assert isinstance(result, Measured) and result.count == 13 and np.isfinite([result.value, result.stderr]).all()
    assert metric.title and metric.better in ("higher", "lower")
    assert float(f"{result.value:{metric.shown}}") == pytest.approx(result.value, rel=0.05, abs=0.01)
    best = {"Agreement": 100, "MeanCosine": 1, "RelativeOutputError": 0, "NeighbourOverlap": 100}
    if type(metric).__name__ in best:
        assert metric.compares and result.value == pytest.approx(best[type(metric).__name__], abs=1e-5)


def test_means_of_values_that_are_no_floats():
    hits = Mean(lambda outputs, batch, kept: outputs[:, 0] > 0)
    x = np.array([[1.0], [-1.0], [1.0], [1.0]])
    measured = evaluate(lambda b: b["x"], [{"x": x}], {"hits": hits})["hits"]
    assert measured == Measured(0.75, pytest.approx(np.sqrt(0.75 * 0.25 / 4)), 4)


def test_keys():
    assert pick({"a": 3}, "a", "batch") == pick((1, 3), 1, "batch") == pick([3], lambda t: t[0], "batch") == 3
    assert pick((1, 2), None, "batch") == (1, 2)
    for tree, key in (({"b": 1}, "a"), ((1,), 4), (np.zeros(2), "a")):
        with pytest.raises(ValueError, match=f"no {key!r} in the outputs, of"):
            pick(tree, key, "outputs")


def test_a_direction_that_is_unknown():
    with pytest.raises(ValueError, match="better must be 'higher' or 'lower', got 'more'"):
        Mean(len, better="more")
