"""At 5 to 8 bit beacon_plus is never worse than rounding: every layer of every model that we trained."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from beacon_jax import FloatStats, QuantSpec, load_params, quantize
from beacon_jax.models.vit import create_vit
from experiments.tasks.cnn import load_network
from experiments.tasks.language import load_language_model
from experiments.tasks.minilm import PACKAGE, load_encoder, minilm_folder

CHECKPOINTS = Path(__file__).parents[1] / "experiments" / "checkpoints"


def vit(name):
    model = create_vit(f"deit_{name}")
    return (lambda p, x: model.apply({"params": p}, x)), load_params(CHECKPOINTS / f"{name}.safetensors")


def decoder(_):
    model, params = load_language_model(CHECKPOINTS / "language.safetensors")
    return (lambda p, ids: model.apply({"params": p}, ids)), params


def sentence_encoder(_):
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"the weights of MiniLM are not there ({PACKAGE})")
    encoder = load_encoder(minilm_folder())
    return encoder.apply, encoder.params


def batch_of(name, rng):
    """Smooth noise, or any tokens: the claim is of every input."""
    if name in ("language", "minilm"):
        ids = rng.integers(0, 1024, size=(16, 64)).astype(np.int32)
        return ids if name == "language" else {"ids": ids, "mask": np.ones_like(ids)}
    size, channels = (8, 1) if name == "digits" else (32, 3)
    images = rng.normal(size=(64, size, size, channels)).cumsum(1).cumsum(2)
    return (images / images.std()).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alphabet"),
    [
        *itertools.product(("digits", "cifar10", "cifar10_cnn", "language"), "5678"),
        *(("minilm", alphabet) for alphabet in "58"),  # which takes longest
    ],
)
def test_never_worse_than_rounding(rng, name, alphabet):
    load = {
        "cifar10_cnn": lambda name: load_network("cnn_cifar10", CHECKPOINTS / f"{name}.safetensors"),
        "language": decoder,
        "minilm": sentence_encoder,
    }
    apply, params = load.get(name, vit)(name)
    batches, stats, errors = [batch_of(name, rng)], FloatStats(), []
    # Without bias and ridge the objective is the error that is reported.
    for method, options in (
        ("rtn", dict(scale="absmax")),
        ("rtn", dict(scale="lsq")),
        ("beacon_plus", dict(effort="fast", bias=False, ridge=0.0)),
    ):
        spec = QuantSpec(method=method, alphabet=alphabet, calibrate_on="float", options=options, allow_few_rows=True)
        reports = quantize(apply, params, batches, spec, float_stats=stats).reports
        errors.append({report.layer: report.output_error for report in reports})
    *rounded, plus = errors
    worse = {layer: (plus[layer], *(own[layer] for own in rounded)) for layer in plus}
    worse = {layer: found for layer, found in worse.items() if found[0] > min(found[1:]) * (1 + 1e-4)}
    assert len(plus) > 10 and not worse
