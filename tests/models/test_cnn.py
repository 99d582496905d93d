from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.models.cnn import NORMALIZATION, VARIANTS, create_cnn, inference, split, united
from beacon_jax.preprocessing import NORMALIZATIONS
from configs import cifar10_cnn

NAME = "cnn_cifar10"


@pytest.fixture(scope="module")
def trained():
    """(structure, parameters, statistics) after two batches in training."""
    model = create_cnn(NAME, jax.random.key(0))
    model.train()
    graphdef, params, statistics = split(model)

    @jax.jit
    def train(statistics, images):
        model = nnx.merge(graphdef, params, statistics)
        model(images)
        return split(model)[2]

    for i in range(2):
        images = 3 + 2 * jax.random.normal(jax.random.key(i), (16, 32, 32, 3))
        statistics = train(statistics, images)
    return graphdef, params, statistics


def size(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def test_sizes(trained):
    _, params, statistics = trained
    assert VARIANTS.keys() == NORMALIZATION.keys() == {NAME}
    assert NORMALIZATIONS.keys() >= set(NORMALIZATION.values())
    assert (size(params), size(statistics)) == (919_818, 2_048)
    assert 4 * (size(params) + size(statistics)) < 5e6
    kernels = {k: a.shape for k, a in flatten_dict(params, sep="/").items() if k.endswith("kernel")}
    assert len(kernels) == 11 and kernels["separable/depthwise/conv/kernel"] == (3, 3, 1, 192)


def test_inference_normalizes_by_the_running_statistics(trained, rng):
    graphdef, params, statistics = trained
    apply, given = inference(NAME, united(params, statistics))
    jax.tree.map(np.testing.assert_array_equal, given, params)
    apply = jax.jit(apply)
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    logits = apply(params, images)
    assert logits.shape == (4, 10) and logits.dtype == jnp.float32
    # An image's logits do not depend on the others in its batch, as they do in training.
    np.testing.assert_allclose(apply(params, images[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    in_training = nnx.merge(graphdef, params, statistics)(images)
    assert np.abs(in_training - logits).max() > 0.1
    model = nnx.merge(graphdef, params, statistics)
    model.eval()
    np.testing.assert_allclose(model(images), logits, rtol=1e-4, atol=1e-5)


def test_one_stage_by_hand(trained, rng):
    """The depthwise separable block, from its formula."""
    graphdef, params, statistics = trained
    model = nnx.merge(graphdef, params, statistics)
    model.eval()
    x = rng.normal(size=(2, 4, 4, 192)).astype(np.float32)
    p, s = jax.tree.map(np.asarray, (params["separable"], statistics["separable"]["depthwise"]["norm"]))
    padded, kernel = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), p["depthwise"]["conv"]["kernel"][:, :, 0]
    y = sum(padded[:, i : i + 4, j : j + 4] * kernel[i, j] for i in range(3) for j in range(3))
    y = (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["depthwise"]["norm"]["scale"] + p["depthwise"]["norm"]["bias"]
    y = np.maximum(y, 0) @ p["pointwise"]["kernel"] + p["pointwise"]["bias"]
    np.testing.assert_allclose(model.separable(x), np.maximum(x + y, 0), rtol=1e-4, atol=1e-4)


def test_the_shipped_checkpoint():
    path = Path(cifar10_cnn.get_config().model.checkpoint)
    assert saved_model(path) == NAME and path.stat().st_size < 5e6
    variables = load_params(path)
    apply, params = inference(NAME, variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert all((np.asarray(a) > 0).all() for k, a in flatten_dict(variables, sep="/").items() if k.endswith("/var"))
    assert np.isfinite(jax.jit(apply)(params, np.zeros((1, 32, 32, 3), np.float32))).all()


def test_mistakes(trained):
    _, params, statistics = trained
    with pytest.raises(ValueError, match="unknown model 'resnet50'; expected one of cnn_cifar10"):
        create_cnn("resnet50", jax.random.key(0))
    with pytest.raises(ValueError, match="block1/norm/mean is nothing, expected"):
        inference(NAME, params)
    wrong = united(params, statistics)
    wrong["head"] = {"kernel": np.zeros((192, 11)), "bias": wrong["head"]["bias"]}
    with pytest.raises(ValueError, match=r"head/kernel is \(192, 11\), expected \(192, 10\)"):
        inference(NAME, wrong)
    apply, _ = inference(NAME, united(params, statistics))
    for shape in ((2, 32, 32, 1), (2, 30, 32, 3), (32, 32, 3)):
        with pytest.raises(ValueError, match=r"takes images \(B, H, W, 3\) with sides that are multiples of 8, got"):
            apply(params, np.zeros(shape, np.float32))
