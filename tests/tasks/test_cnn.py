import jax
import numpy as np
import pytest
from PIL import Image

from beacon_jax import QuantSpec, evaluate, quantize, save_params
from beacon_jax.graph.model import Model
from beacon_jax.graph.program import leaf_names
from beacon_jax.models import cnn as models
from configs import cifar10_cnn
from experiments.tasks.cnn import cnn, load_network


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A small network with random parameters and statistics, and noise in an image folder."""
    monkeypatch.setitem(models.VARIANTS, "tiny", dict(widths=(2, 4, 8), classes=2))
    monkeypatch.setitem(models.NORMALIZATION, "tiny", "cifar10")
    rng = np.random.default_rng(0)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    _, *variables = models.split(models.create_cnn("tiny", jax.random.key(0)))
    path = tmp_path / "tiny.safetensors"
    variables = jax.tree.map(lambda a: a + rng.uniform(0.1, 0.5, a.shape).astype(np.float32), models.united(*variables))
    save_params(path, variables, model="tiny")
    config = cifar10_cnn.get_config()
    config.model.name, config.model.checkpoint = "tiny", str(path)
    config.data.update(name="image_folder", root=str(tmp_path), batch_size=3)
    return config


def test_statistics_stay_those_of_the_checkpoint(config):
    apply, params = load_network("tiny", config.model.checkpoint)
    assert params["stem"]["norm"].keys() == {"scale", "bias"}
    images = np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
    logits, alone = (jax.jit(apply)(params, x) for x in (images, images[:1]))
    np.testing.assert_allclose(logits[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_model_is_refused(config):
    with pytest.raises(ValueError, match="holds the parameters of tiny, not of cnn_cifar10"):
        load_network("cnn_cifar10", config.model.checkpoint)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_network("tiny", config.model.checkpoint + ".none")


def test_the_task(config):
    task = cnn(config)
    assert task.main == "top1"
    drawn, again = (list(task.calibration(5, 0)) for _ in range(2))
    assert [len(batch["label"]) for batch in drawn] == [3, 2]
    jax.tree.map(np.testing.assert_array_equal, drawn, again)
    measured = evaluate(lambda batch: task.apply(task.params, batch), task.test, {"top1": task.metrics["top1"]})
    assert measured["top1"].count == 8
    moved = config.copy_and_resolve_references()
    moved.data.batch_size = 7  # does not decide a result
    assert cnn(moved).identity == task.identity
    moved.data.test_images = 2
    assert cnn(moved).identity != task.identity


def kernels(params):
    return {name.removesuffix("/kernel") for name in leaf_names(params) if name.endswith("/kernel")}


def test_every_layer_is_found(config):
    """Convolutions, the depthwise one in as many groups as it has channels, and linear maps."""
    task = cnn(config)
    model = Model(task.apply, task.params)
    model.add(next(iter(task.test)))
    layers = {layer.name: layer for layer in model.layers}
    assert layers.keys() == kernels(task.params)
    assert layers["separable/depthwise/conv"].shape == (8, 9, 1)


@pytest.mark.slow
def test_every_layer_is_quantized(config):
    task = cnn(config)
    spec = QuantSpec(method="rtn", alphabet="4", calibrate_on="float", allow_few_rows=True)
    done = quantize(task.apply, task.params, task.calibration(8, 0), spec)
    assert done.layers.keys() == kernels(task.params)
    assert done.layers["separable/depthwise/conv"].codes.shape == (8, 9, 1)
    left = {row.path for row in done.coverage.leaves if not row.quantized}
    assert left == {name for name in leaf_names(task.params) if not name.endswith("/kernel")}
