"""The shipped model on real held-out images."""

import jax
import pytest
from beacon_jax.models.capture import apply_with_inputs

from beacon_jax import METHODS, GramStats, QuantSpec, evaluate, load_params, quantize_model
from beacon_jax.evaluate import logits_of
from beacon_jax.quant.metrics import relative_output_error
from experiments import common
from tests.test_experiments import digits_config


@pytest.fixture(scope="module")
def digits():
    config = digits_config()
    model, params = common.load_model(config)
    return config, model, params, common.predictor(model)


def calibration_images(config):
    drawn = common.batches(config, "train", count=config.data.calibration_images, seed=config.seed)
    return [batch["image"] for batch in drawn]


def test_float_accuracy(digits):
    config, _, params, predict = digits
    result = evaluate(predict(params), common.test_batches(config))
    assert result.count == 500 and result.top1 >= 97.5


def test_every_method_beats_rounding_on_trained_layers(digits):
    config, model, params, _ = digits
    batches = calibration_images(config)
    flat = {}
    for batch in batches:
        for name, x in apply_with_inputs(model, params, batch)[1].items():
            flat[name] = flat.get(name, GramStats.zeros(x.shape[-1])).update(x)
    for name in ("blocks_0/attn/qkv", "blocks_1/attn/proj", "blocks_2/mlp/fc1", "blocks_3/mlp/fc2"):
        block, *path, last = name.split("/")
        kernel = params[block][path[0]][last]["kernel"]
        for alphabet in ("1.58", "2", "3", "4"):
            errors = {
                method: float(relative_output_error(kernel, quantize(kernel, flat[name], alphabet), flat[name]))
                for method, quantize in METHODS.items()
            }
            assert all(error < errors["rtn"] for method, error in errors.items() if method != "rtn"), (name, errors)


def test_quantized_accuracy(digits):
    """Two bits with error correction cost little; rounding to them costs more in the logits."""
    config, model, params, predict = digits
    specs = QuantSpec(), QuantSpec(method="rtn", calibrate_on="float")
    beacon, rtn = (quantize_model(model, params, calibration_images(config), s) for s in specs)
    test = common.test_batches(config)
    reference = logits_of(predict(params), test)
    results = [evaluate(predict(m.params), test, reference) for m in (beacon, rtn)]
    assert results[0].top1 >= 96
    assert results[0].logit_error < results[1].logit_error / 4


def test_the_checkpoint_is_small(digits):
    params = load_params(digits[0].model.checkpoint)
    assert sum(a.nbytes for a in jax.tree.leaves(params)) < 2e6
