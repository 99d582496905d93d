"""The shipped model on real held-out images."""

import jax
import pytest

from beacon_jax import METHODS, QuantSpec, evaluate, load_params, quantize
from beacon_jax.evaluate import reference_of
from configs.digits import get_config
from experiments.task import make_task

BLOCKS = r"blocks_\d+/.*"


@pytest.fixture(scope="module")
def digits():
    config = get_config()
    task = make_task(config)
    apply = jax.jit(task.apply)
    return config, task, lambda params: lambda batch: apply(params, batch)


def quantized(digits, **spec):
    config, task, _ = digits
    batches = task.calibration(config.data.calibration_images, config.seed)
    return quantize(task.apply, task.params, batches, QuantSpec(layers=BLOCKS, **spec))


def test_float_accuracy(digits):
    _, task, predict = digits
    result = evaluate(predict(task.params), task.test, {"top1": task.metrics["top1"]})["top1"]
    assert result.count == 500 and result.value >= 97.5


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", ["1.58", "2", "3", "4"])
def test_every_method_beats_rounding_on_trained_layers(digits, alphabet):
    """On the float model's inputs, so that each layer is the same problem for all methods."""
    errors = {
        method: {
            r.layer: r.output_error
            for r in quantized(digits, method=method, alphabet=alphabet, calibrate_on="float").reports
        }
        for method in METHODS
    }
    for method in METHODS:
        if method != "rtn":
            assert all(errors[method][name] < error for name, error in errors["rtn"].items()), (method, errors)


def test_quantized_accuracy(digits):
    """Two bits with error correction cost little; rounding to them costs more in the logits."""
    _, task, predict = digits
    models = quantized(digits), quantized(digits, method="rtn", calibrate_on="float")
    reference = reference_of(predict(task.params), task.test, task.metrics)
    results = [evaluate(predict(m.params), task.test, task.metrics, reference=reference) for m in models]
    assert results[0]["top1"].value >= 96
    assert results[0]["logit_error"].value < results[1]["logit_error"].value / 4


def test_the_checkpoint_is_small(digits):
    params = load_params(digits[0].model.checkpoint)
    assert sum(a.nbytes for a in jax.tree.leaves(params)) < 2e6
