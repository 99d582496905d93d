import numpy as np
import pytest

from beacon_jax.evaluate import evaluate
from beacon_jax.metrics.classes import Agreement, CrossEntropy, Divergence, Perplexity, Top1, Top5


def tokens(rng, sizes=(6, 6, 2), length=5, classes=9):
    """Batches with logits (B, T, classes), targets −1 where the mask is 0."""
    for n in sizes:
        mask = rng.integers(2, size=(n, length))
        mask[:, 0] = 1
        targets = np.where(mask, rng.integers(classes, size=(n, length)), -1)
        yield {"logits": 2 * rng.normal(size=(n, length, classes)).astype(np.float32), "next": targets, "mask": mask}


def logits(batch):
    return {"logits": batch["logits"]}


KEYS = dict(label="next", mask="mask", output="logits")


def losses(data):
    """−log p of the targets (B, T), 0 where masked, and the mask, in float64."""
    z, y, mask = (np.concatenate([b[k] for b in data]) for k in ("logits", "next", "mask"))
    z = z.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.maximum(y, 0)[..., None], -1)[..., 0] * mask, mask


def test_cross_entropy_and_perplexity_of_masked_tokens(rng):
    data = list(tokens(rng))
    result = evaluate(logits, data, {"loss": CrossEntropy(**KEYS), "perplexity": Perplexity(**KEYS)})
    loss, mask = losses(data)
    mean = loss.sum() / mask.sum()
    assert result["loss"].value == pytest.approx(mean, rel=1e-5)
    assert result["perplexity"].value == pytest.approx(np.exp(mean), rel=1e-5)
    residuals = (loss - mean * mask).sum(1)  # of each example
    stderr = np.sqrt((residuals**2).sum()) / mask.sum()
    assert result["loss"].stderr == pytest.approx(stderr, rel=1e-5)
    assert result["perplexity"].stderr == pytest.approx(np.exp(mean) * stderr, rel=1e-5)
    assert result["loss"].count == 14


def test_standard_error_covers_the_spread_of_repeated_samples(rng):
    """Tokens of one example share an offset, which errors of independent tokens would miss by a factor of 3."""
    values = []
    for _ in range(200):
        shift = rng.normal(size=(40, 1, 1)).repeat(12, 1)
        z = np.concatenate([shift, 0 * shift], -1).astype(np.float32)
        batch = {"logits": z, "next": np.zeros((40, 12), int), "mask": np.ones((40, 12))}
        values.append(evaluate(logits, [batch], {"loss": CrossEntropy(**KEYS)})["loss"])
    spread = np.std([v.value for v in values])
    assert np.mean([v.stderr for v in values]) == pytest.approx(spread, rel=0.15)


def test_hits_of_masked_positions(rng):
    data = list(tokens(rng))
    result = evaluate(logits, data, {"top1": Top1(**KEYS), "top5": Top5(**KEYS)})
    z, y, mask = (np.concatenate([b[k] for b in data]) for k in ("logits", "next", "mask"))
    rank = (z > np.take_along_axis(z, np.maximum(y, 0)[..., None], -1)).sum(-1)
    for name, k in (("top1", 1), ("top5", 5)):
        assert result[name].value == pytest.approx(100 * ((rank < k) & (mask > 0)).sum() / mask.sum())


def test_equal_logits_are_no_hit(rng):
    batch = {"logits": np.zeros((8, 7), np.float32), "label": np.zeros(8, int)}
    result = evaluate(lambda b: b["logits"], [batch], {"top1": Top1(), "top5": Top5()})
    assert (result["top1"].value, result["top5"].value) == (0, 0)


def test_agreement_counts_what_the_mask_does(rng):
    data = list(tokens(rng))

    def other(batch):
        return {"logits": np.where(batch["mask"][..., None] > 0, batch["logits"], -batch["logits"])}

    metrics = {"masked": Agreement(mask="mask", output="logits"), "all": Agreement(output="logits")}
    result = evaluate(other, data, metrics, reference=logits)
    mask = np.concatenate([b["mask"] for b in data])
    assert result["masked"].value == 100 and result["all"].value == pytest.approx(100 * mask.mean())


def test_outputs_that_are_masked_may_be_anything(rng):
    data = list(tokens(rng))

    def spoilt(batch):
        return {"logits": np.where(batch["mask"][..., None] > 0, batch["logits"], np.nan)}

    metrics = {"loss": CrossEntropy(**KEYS), "agreement": Agreement(mask="mask", output="logits")}
    result = evaluate(spoilt, data, metrics, reference=logits)
    assert result == evaluate(logits, data, metrics, reference=logits)
    with pytest.raises(ValueError, match="the model's outputs are not all finite"):
        evaluate(spoilt, data, {"agreement": Agreement(output="logits")}, reference=logits)


def test_errors(rng):
    data = list(tokens(rng))
    for keys, message in (
        (KEYS | dict(label="targets"), "no 'targets' in the batch, of keys logits, mask, next"),
        (KEYS | dict(output="hidden"), "no 'hidden' in the outputs, of keys logits"),
        (KEYS | dict(mask=None), "labels -1 … [78] do not fit logits of 9 classes"),
        (KEYS | dict(mask=lambda b: b["mask"][:, :2]), r"a mask of shape \(6, 2\) does not have the first axes"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(logits, data, {"top1": Top1(**keys)})


def test_divergence_of_masked_positions(rng):
    data = list(tokens(rng))

    def other(batch):
        return {"logits": batch["logits"][..., ::-1] * 0.5}

    keys = dict(mask="mask", output="logits")
    result = evaluate(other, data, {"kl": Divergence(**keys)}, reference=logits)["kl"]
    z, mask = (np.concatenate([b[k] for b in data]) for k in ("logits", "mask"))
    p, q = (np.exp(a) / np.exp(a).sum(-1, keepdims=True) for a in (z.astype(np.float64), z[..., ::-1] * 0.5))
    each = (p * np.log(p / q)).sum(-1) * mask
    assert result.value == pytest.approx(each.sum() / mask.sum(), rel=1e-5)
    assert evaluate(logits, data, {"kl": Divergence(**keys)}, reference=logits)["kl"].value == pytest.approx(
        0, abs=1e-6
    )
