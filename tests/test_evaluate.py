import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.evaluate import MeanCosine, RelativeOutputError, Top1, Top5, evaluate, reference_of
from beacon_jax.metrics.base import Mean
from beacon_jax.metrics.classes import Agreement, CrossEntropy, Divergence

METRICS = {"top1": Top1(), "top5": Top5(), "agreement": Agreement(), "error": RelativeOutputError()}
PLAIN = {"top1": Top1(), "top5": Top5()}


def batches(rng, sizes, classes=7):
    for n in sizes:
        yield {"x": rng.normal(size=(n, classes)).astype(np.float32), "label": rng.integers(classes, size=n)}


def outputs(batch):
    return batch["x"]


def twice(batch):
    return 2 * batch["x"]


def test_counts_and_masks_the_last_batch(rng):
    data = list(batches(rng, (8, 8, 3)))
    shapes = set()

    def predict(batch):
        shapes.add(batch["x"].shape)
        return batch["x"]

    result = evaluate(predict, data, METRICS, reference=reference_of(twice, data, METRICS))
    logits, labels = (np.concatenate([b[k] for b in data]) for k in ("x", "label"))
    ranks = (logits > logits[np.arange(19), labels][:, None]).sum(1)
    assert {m.count for m in result.values()} == {19} and shapes == {(8, 7)}
    top1 = result["top1"]
    np.testing.assert_allclose([top1.value, result["top5"].value], [100 * np.mean(ranks < k) for k in (1, 5)])
    np.testing.assert_allclose(top1.stderr, np.sqrt(top1.value * (100 - top1.value) / 19))  # binomial
    np.testing.assert_allclose(result["error"].value, 0.25, rtol=1e-6)
    assert (result["agreement"].value, result["agreement"].stderr) == (100, 0)


def test_the_reference_may_run_beside(rng):
    data = list(batches(rng, (8, 8, 3)))

    def half(batch):
        return np.where(np.arange(len(batch["x"]))[:, None] % 2, batch["x"], -batch["x"])

    beside = evaluate(outputs, data, METRICS, reference=half)
    assert beside == evaluate(outputs, data, METRICS, reference=reference_of(half, data, METRICS))
    assert beside["agreement"].value == pytest.approx(100 * (4 + 4 + 1) / 19)


def test_outputs_and_batches_may_be_any_pytrees(rng):
    """Here tuples, with an array that belongs to all examples."""
    data = [(x, np.float32(2.0), {"y": x.sum(1)}) for x in rng.normal(size=(3, 4, 5)).astype(np.float32)]
    data.append(jax.tree.map(lambda a: a[:1] if np.ndim(a) else a, data[0]))

    def predict(batch):
        return {"scaled": batch[0] * batch[1], "sum": batch[0].sum(1)}

    def squares(outputs, batch, _):
        return (outputs["scaled"].sum(1) - 2 * batch[2]["y"]) ** 2

    def weighted(outputs, batch, _):
        return outputs["sum"] * 3, jnp.full(len(batch[0]), 3.0)

    metrics = {"squares": Mean(squares, better="lower"), "weighted": Mean(weighted)}
    metrics["error"] = RelativeOutputError()
    result = evaluate(predict, data, metrics, reference=lambda batch: jax.tree.map(lambda a: a * 0.5, predict(batch)))
    sums = np.concatenate([batch[2]["y"] for batch in data]).astype(np.float64)
    assert result["squares"].value < 1e-10 and result["error"].value == pytest.approx(1)
    assert result["weighted"].value == pytest.approx(sums.mean(), rel=1e-5)
    assert result["weighted"].stderr == pytest.approx(sums.std() / np.sqrt(13), rel=1e-5)


def test_copies_that_fill_a_batch_up_do_not_count(rng):
    """Not even where the model makes them NaN."""
    data = list(batches(rng, (8, 3)))

    def predict(batch):
        x = jnp.asarray(batch["x"])
        return jnp.where((jnp.arange(8) == 7)[:, None] & (x[3] == x[4]).all(), jnp.nan, x)

    result = evaluate(predict, data, METRICS, reference=reference_of(predict, data, METRICS))
    assert result["error"].value == 0 and result["error"].count == 11


def test_the_metrics_compile_once(rng):
    traced = []

    def count(outputs, batch, _):
        traced.append(outputs.shape)
        return outputs[:, 0]

    metrics = {"mean": Mean(count)}
    for _ in range(2):
        evaluate(outputs, batches(rng, (8, 8, 3)), metrics)
    assert traced == [(8, 7)]


def test_errors(rng):
    data = list(batches(rng, (8, 3)))
    for arguments, message in (
        ((lambda b: b["x"][:, :2], data, PLAIN), "metric top1: labels [01] … [3-6] do not fit logits of 2 classes"),
        ((lambda b: b["x"][:4], data, PLAIN), r"labels of shape \(8,\) do not fit logits of shape \(4, 7\)"),
        ((outputs, [], PLAIN), "no batches to evaluate on"),
        ((outputs, data, {}), "metrics is a dict of at least one metric by name"),
        ((outputs, data, {"top1": "top1"}), "top1='top1' is no metric, it has no 'compares'"),
        ((outputs, data, METRICS), "agreement, error compare with a reference's outputs, and none is given"),
        ((lambda b: b["x"] * np.nan, data, PLAIN), "the model's outputs are not all finite"),
        ((lambda b: b["x"] * np.inf, data, PLAIN), "the model's outputs are not all finite"),
        ((outputs, batches(rng, (8, 9)), PLAIN), "a batch of 9 follows a first batch of 8"),
        ((outputs, [{"x": data[0]["x"]}], PLAIN), "metric top1: no 'label' in the batch, of keys x"),
        (
            (outputs, [data[0] | {"label": [1, 2]}], PLAIN),
            r"batches are pytrees of arrays, but \['label'\]\[0\] is a int",
        ),
        ((outputs, [data[0] | {"label": np.zeros(3, int)}], PLAIN), r"one row for each example, but \['label'\] has 3"),
        ((outputs, [{"x": np.zeros((0, 3)), "label": np.zeros(0, int)}], PLAIN), "a batch holds no examples"),
        (
            (outputs, data, {"m": Mean(lambda o, b, r: o.sum())}),
            r"metric m gives arrays of shape \(\) for batches of 8",
        ),
        ((outputs, data, {"m": Mean(lambda o, b, r: (o[:, 0], 0 * o[:, 0]))}), "nothing to measure: all weights"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(*arguments)


def test_references_of_other_batches(rng):
    data = list(batches(rng, (8, 8, 3)))
    kept = reference_of(outputs, data, METRICS)
    changed = [*data[:2], data[2] | {"x": data[2]["x"] + 1}]
    others = {
        "fewer": kept[:1],
        "more": [*kept, kept[0]],
        "another order": kept[::-1],
        "the same sizes in another order": [kept[1], kept[0], kept[2]],
        "other values": reference_of(outputs, changed, METRICS),
        "other metrics": reference_of(outputs, data, {"agreement": Agreement()}),
        "something else": [{"agreement": np.zeros(8, int)}] * 3,
    }
    for case, other in others.items():
        with pytest.raises(ValueError, match="the reference is not that of these batches and metrics, in this order"):
            evaluate(outputs, data, METRICS, reference=other)
            pytest.fail(case)


LABELS = {
    "out of range": (lambda y: y + 7, "labels 0 … 1[0-3] do not fit logits of 7 classes"),
    "negative": (lambda y: np.where(np.arange(len(y)) == 3, -1, y), "labels -1 … 6 do not fit logits of 7 classes"),
    "one-hot": (lambda y: np.eye(7, dtype=np.int32)[y], r"\(8, 7\); they must be indices of classes, not one vector"),
    "column": (lambda y: y[:, None], r"labels of shape \(8, 1\) do not fit logits of shape \(8, 7\)"),
    "floats": (lambda y: y.astype(np.float32), "labels are indices of classes, and so integers, got float32"),
    "booleans": (lambda y: y > 2, "labels are indices of classes, and so integers, got bool"),
    "none": (lambda y: None, r"labels of shape \(\) do not fit"),
    "text": (lambda y: np.array(list("abcdefgh")), "labels are indices of classes, and so integers, got <U1"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_fit(rng, case):
    change, message = LABELS[case]
    data = [batch | {"label": change(batch["label"])} for batch in batches(rng, (8,))]
    with pytest.raises(ValueError, match=message):
        evaluate(outputs, data, PLAIN)


def test_labels_in_tuples(rng):
    data = [(batch["x"], batch["label"]) for batch in batches(rng, (8, 3))]
    with pytest.raises(ValueError, match="metric top1: no 'label' in the batch, of type tuple"):
        evaluate(lambda batch: batch[0], data, PLAIN)
    assert evaluate(lambda batch: batch[0], data, {"top1": Top1(label=1)})["top1"].count == 11


@pytest.mark.parametrize("own", [np.float16, np.float32, np.float64])
def test_types_that_must_not_be_mixed(rng, x64, own):
    """The outputs in one type, the reference's in another, the mask in a third."""
    metrics = METRICS | {"kl": Divergence(mask="mask"), "cosine": MeanCosine(), "loss": CrossEntropy()}
    data = [batch | {"mask": np.ones(len(batch["x"]), np.int8)} for batch in batches(rng, (8, 3))]
    with jax.numpy_dtype_promotion("strict"):
        kept = reference_of(outputs, data, metrics)
        result = evaluate(lambda batch: batch["x"].astype(own), data, metrics, reference=kept)
    assert result["error"].value < 1e-6 and result["agreement"].value == 100
    assert result["cosine"].value == pytest.approx(1, abs=1e-5)
