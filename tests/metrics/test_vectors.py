import numpy as np
import pytest

from beacon_jax.evaluate import evaluate
from beacon_jax.metrics.vectors import MeanCosine, NeighbourOverlap, RelativeOutputError


def batches(rng, sizes=(40, 40, 17), width=6):
    return [{"x": rng.normal(size=(n, width)).astype(np.float32), "mask": rng.integers(2, size=n)} for n in sizes]


def vectors(batch):
    return batch["x"]


def noisy(batch):
    return batch["x"] + 0.3 * np.sin(7 * batch["x"])


def whole(data, predict):
    return np.concatenate([predict(b) for b in data]).astype(np.float64)


def test_mean_cosine(rng):
    data = batches(rng)
    result = evaluate(noisy, data, {"cosine": MeanCosine()}, reference=vectors)["cosine"]
    a, b = whole(data, noisy), whole(data, vectors)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert result.value == pytest.approx(cosines.mean(), rel=1e-5)
    assert result.stderr == pytest.approx(cosines.std() / np.sqrt(97), rel=1e-5) and result.count == 97
    zero = evaluate(lambda b: 0 * b["x"], data, {"cosine": MeanCosine()}, reference=vectors)["cosine"]
    assert zero.value == 0


def test_masked_examples_do_not_count(rng):
    data = batches(rng)

    def spoilt(batch):
        return np.where(batch["mask"][:, None] > 0, 2 * batch["x"], np.nan)

    metrics = {"cosine": MeanCosine(mask="mask"), "error": RelativeOutputError(mask="mask")}
    result = evaluate(spoilt, data, metrics, reference=vectors)
    assert result["cosine"].value == pytest.approx(1) and result["error"].value == pytest.approx(1)
    assert result["cosine"].count == sum(b["mask"].sum() for b in data)


def test_relative_output_error_is_that_of_all_arrays_together(rng):
    data = batches(rng)

    def two(scale):
        return lambda batch: (scale * batch["x"], {"wide": batch["x"][:, :, None] ** 2})

    result = evaluate(two(3), data, {"error": RelativeOutputError()}, reference=two(1))["error"]
    x = whole(data, vectors)
    errors, norms = 4 * (x**2).sum(1), (x**2).sum(1) + (x**4).sum(1)
    assert result.value == pytest.approx(errors.sum() / norms.sum(), rel=1e-5)
    residuals = errors - result.value * norms
    assert result.stderr == pytest.approx(np.sqrt((residuals**2).sum()) / norms.sum(), rel=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbour_overlap_against_sorting_all_pairs(rng, k):
    data = batches(rng)
    result = evaluate(noisy, data, {"overlap": NeighbourOverlap(k=k)}, reference=vectors)["overlap"]
    near = []
    for predict in (noisy, vectors):
        v = whole(data, predict)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        near.append([set(sorted(set(range(97)) - {i}, key=lambda j: -v[i] @ v[j])[:k]) for i in range(97)])
    same = np.array([len(a & b) / k for a, b in zip(*near, strict=True)])
    assert result.value == pytest.approx(100 * same.mean()) and 0 < same.mean() < 1
    assert result.stderr == pytest.approx(100 * same.std() / np.sqrt(97)) and result.count == 97
    assert evaluate(vectors, data, {"o": NeighbourOverlap(k=k)}, reference=vectors)["o"].value == 100


def test_neighbours_of_more_examples_than_one_block(rng):
    data = batches(rng, (300, 300, 100), 3)
    result = evaluate(lambda b: 5 * b["x"], data, {"o": NeighbourOverlap()}, reference=vectors)["o"]
    assert (result.value, result.count) == (100, 700)


def test_errors(rng):
    with pytest.raises(ValueError, match="10 nearest neighbours need more than 10 examples, there are 9"):
        evaluate(vectors, batches(rng, (9,)), {"o": NeighbourOverlap()}, reference=vectors)
    with pytest.raises(ValueError, match=r"vectors \(B, width\), but the outputs have shape \(9, 6, 1\)"):
        evaluate(lambda b: b["x"][..., None], batches(rng, (9,)), {"o": NeighbourOverlap(k=2)}, reference=vectors)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        NeighbourOverlap(k=0)
