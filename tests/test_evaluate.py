import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import evaluate
from beacon_jax.evaluate import logits_of


def batches(rng, sizes, classes=7):
    for n in sizes:
        yield {"image": rng.normal(size=(n, classes)).astype(np.float32), "label": rng.integers(classes, size=n)}


def test_counts_and_masks_the_last_batch(rng):
    data = list(batches(rng, (8, 8, 3)))
    shapes = set()

    def predict(x):
        shapes.add(x.shape)
        return x

    result = evaluate(predict, data, reference=logits_of(lambda x: 2 * x, data))
    logits, labels = (np.concatenate([b[k] for b in data]) for k in ("image", "label"))
    ranks = (logits > logits[np.arange(19), labels][:, None]).sum(1)
    assert result.count == 19 and shapes == {(8, 7)}
    np.testing.assert_allclose([result.top1, result.top5], [100 * np.mean(ranks < k) for k in (1, 5)])
    np.testing.assert_allclose(result.logit_error, 0.25, rtol=1e-6)
    assert result.agreement == 100
    other = evaluate(predict, data, reference=logits_of(lambda x: -2 * x, data))
    assert other.agreement == 100 * np.mean(logits.argmax(1) == logits.argmin(1)) == 0
    half = [np.where(np.arange(len(b["image"]))[:, None] % 2, b["image"], -b["image"]) for b in data]
    assert evaluate(predict, data, reference=half).agreement == pytest.approx(100 * (4 + 4 + 1) / 19)
    np.testing.assert_allclose(result.top1_stderr, np.sqrt(result.top1 * (100 - result.top1) / 19))


def test_equal_logits_are_no_hit(rng):
    result = evaluate(lambda x: 0 * x, batches(rng, (8,)))
    assert (result.top1, result.top5, result.logit_error) == (0, 0, None)


def test_padding_does_not_count_even_if_it_breaks_the_model(rng):
    """A model that divides by the image's own spread gives NaN for the zeros that a short batch is padded with."""
    data = list(batches(rng, (8, 3)))

    def predict(x):
        return jnp.asarray(x) / jnp.std(x, axis=1, keepdims=True)

    assert np.isnan(predict(np.zeros((1, 7)))).all()
    result = evaluate(predict, data, reference=logits_of(predict, data))
    assert result.logit_error == 0 and result.count == 11


def test_errors(rng):
    with pytest.raises(ValueError, match="labels 0 … 6 do not fit logits of 3 classes"):
        evaluate(lambda x: x[:, :3], [{"image": np.zeros((7, 7)), "label": np.arange(7)}])
    with pytest.raises(ValueError, match="no batches to evaluate on"):
        evaluate(lambda x: x, [])
    with pytest.raises(ValueError, match="logits are not all finite"):
        evaluate(lambda x: x * np.nan, batches(rng, (8, 3)))
    with pytest.raises(ValueError, match="a batch of 9 follows a first batch of 8"):
        evaluate(lambda x: x, batches(rng, (8, 9)))
    data = list(batches(rng, (8, 3)))
    for other in (data[:1], data[::-1]):
        with pytest.raises(ValueError, match="the reference logits are not those of these batches"):
            evaluate(lambda x: x, data, reference=[b["image"] for b in other])
