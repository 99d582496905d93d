import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import Execution
from beacon_jax.output_change import output_changes

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)}
OTHER = {"w": PARAMS["w"] * 1.1 + 0.05}


def batches(*counts):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, 3, 6)).astype(np.float32) + 1 for n in counts]


def change(apply, data, weights=None, **execution):
    found = output_changes(
        apply, PARAMS, data, {"other": lambda: OTHER}, execution=Execution(**execution), weights=weights
    )
    return found["other"]


def expected(apply, data, weights=lambda batch: np.ones(len(batch))):
    """By the definition, of one array of outputs, in float64."""
    squares, spread = 0.0, 0.0
    for batch in data:
        y, y_hat = (np.asarray(apply(p, batch), np.float64) for p in (PARAMS, OTHER))
        w = weights(batch).astype(np.float64)
        w = w.reshape(w.shape + (1,) * (y.ndim - w.ndim))
        mean = (w * y).sum(0) / w.sum(0)
        squares, spread = squares + (w * (y_hat - y) ** 2).sum(), spread + (w * (y - mean) ** 2).sum()
    return squares / spread


def product(params, batch):
    return batch @ params["w"]


def pooled(params, batch):
    return product(params, batch).mean(1)


def by_position(batch):
    return np.linspace(0.1, 1, len(batch) * 3).reshape(-1, 3).astype(np.float32)


@pytest.mark.parametrize("apply", [product, pooled])
def test_the_definition(apply):
    data = batches(8, 5)
    assert change(apply, data) == pytest.approx(expected(apply, data), rel=1e-5)


def test_weights_of_positions_and_of_examples():
    data = batches(8, 5)
    assert change(product, data, by_position) == pytest.approx(expected(product, data, by_position), rel=1e-5)
    by_example = lambda batch: by_position(batch).max(1)  # noqa: E731
    assert change(pooled, data, by_position) == pytest.approx(expected(pooled, data, by_example), rel=1e-5)
    assert change(pooled, data, by_example) != pytest.approx(change(pooled, data), rel=1e-3)


def test_padding_may_hold_anything():
    data = batches(8)

    def weights(batch):
        return (np.arange(len(batch)) < 5).astype(np.float32)

    def spoiled(params, batch):
        return jnp.where(jnp.arange(len(batch))[:, None] < 5, pooled(params, batch), jnp.nan)

    assert change(spoiled, data, weights) == pytest.approx(change(pooled, [batch[:5] for batch in data]), rel=1e-5)
    with pytest.raises(ValueError, match="the outputs for calibration batch 0 are not all finite"):
        change(spoiled, data)


def test_leaves_count_alike_whatever_their_unit():
    data = batches(8)

    def apply(params, batch):
        y = product(params, batch)
        return {"y": 1000 * y, "pooled": (y.mean(1), jnp.zeros(3)), "class": y.argmax(-1)}

    assert change(apply, data) == pytest.approx((expected(product, data) + expected(pooled, data)) / 2, rel=1e-5)


def test_where_nothing_varies_over_examples_it_is_relative_to_the_size():
    data = batches(1, 1)
    y, y_hat = (np.asarray([product(p, batch) for batch in data], np.float64) for p in (PARAMS, OTHER))
    relative = ((y_hat - y) ** 2).sum() / (y**2).sum()
    assert change(product, data) == pytest.approx(relative, rel=1e-5)
    assert change(lambda p, batch: (product(p, batch) ** 2).sum(), batches(4)) > 0  # an output without axes


def test_outputs_that_tell_nothing():
    with pytest.raises(ValueError, match="the model has no floating-point outputs"):
        change(lambda p, batch: product(p, batch).argmax(-1), batches(4))
    with pytest.raises(ValueError, match="the outputs are zero for all calibration batches"):
        change(lambda p, batch: 0 * product(p, batch), batches(4))


def test_bfloat16_is_the_forward_passes_arithmetic():
    data = batches(8)
    exact, rough = change(product, data), change(product, data, forward_dtype="bfloat16")
    assert rough != exact and rough == pytest.approx(exact, rel=0.05)
