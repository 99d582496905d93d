import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from beacon_jax.norm_tuning import LOSSES, OPTIMIZERS, NormTuning, norm_paths, tune_norms

FAST = NormTuning(steps=60, check_every=10, learning_rate=1e-2)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm1")(nn.Dense(16, name="fc1")(x))
        return nn.Dense(5, name="fc2")(nn.RMSNorm(name="norm2")(nn.relu(x)))


MODEL = Net()


def apply(params, images):
    return MODEL.apply({"params": params}, images)


@pytest.fixture(scope="module")
def problem():
    """A model, the same with kernels rounded to three levels, and batches with the float model's labels."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(n, 8)).astype(np.float32) for n in (32, 32, 21)]
    params = MODEL.init(jax.random.key(0), images[0])["params"]
    batches = [{"image": x, "label": np.asarray(apply(params, x).argmax(-1))} for x in images]

    def round_kernel(path, a):
        scale = 0.7 * jnp.abs(a).max()
        return jnp.clip(jnp.round(a / scale), -1, 1) * scale if path[-1].key == "kernel" else a

    return params, jax.tree_util.tree_map_with_path(round_kernel, params), batches


def reference(params):
    return lambda images: apply(params, images)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_loss_falls_and_only_norms_change(problem, loss, optimizer):
    params, rounded, batches = problem
    rate = 1e-3 if optimizer == "lion" else 1e-2
    tuning = dataclasses.replace(FAST, loss=loss, optimizer=optimizer, learning_rate=rate)
    seen = []
    tuned = tune_norms(
        apply, rounded, reference(params), batches, tuning, on_step=lambda step, value: seen.append((step, value))
    )
    assert tuned.after < tuned.before
    assert 0 < tuned.step <= tuned.steps == len(seen) and [step for step, _ in seen] == list(range(1, len(seen) + 1))
    before, after = flatten_dict(rounded), flatten_dict(tuned.params)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed and changed <= {("norm1", "scale"), ("norm1", "bias"), ("norm2", "scale")}


def test_the_loss_reported_is_that_of_the_held_out_images(problem):
    params, rounded, batches = problem
    tuned = tune_norms(apply, rounded, reference(params), batches, dataclasses.replace(FAST, held_out=0.25))
    held = np.concatenate([b["image"][-n:] for b, n in zip(batches, (8, 8, 5), strict=True)])
    for tree, value in ((rounded, tuned.before), (tuned.params, tuned.after)):
        p, q = (jax.nn.softmax(apply(t, held)) for t in (params, tree))
        np.testing.assert_allclose((p * (jnp.log(p) - jnp.log(q))).sum(1).mean(), value, rtol=1e-4)


def test_nothing_to_gain_stops_early_and_gives_the_model_back(problem):
    params, _, batches = problem
    tuning = NormTuning(steps=1000, check_every=5, patience=2, learning_rate=1e-2)
    tuned = tune_norms(apply, params, reference(params), batches, tuning)
    assert (tuned.step, tuned.steps) == (0, 10) and tuned.before == tuned.after < 1e-6
    jax.tree.map(np.testing.assert_array_equal, tuned.params, params)


def test_a_diverging_training_gives_the_best_that_was(problem):
    params, rounded, batches = problem
    tuning = dataclasses.replace(FAST, optimizer="sgd", learning_rate=1e30, loss="mse")
    tuned = tune_norms(apply, rounded, reference(params), batches, tuning)
    assert tuned.step == 0 and tuned.after == tuned.before
    jax.tree.map(np.testing.assert_array_equal, tuned.params, rounded)


def test_same_input_same_result_and_one_compilation(problem):
    params, rounded, batches = problem
    traces = []

    def counted(params, images):
        traces.append(images.shape)
        return apply(params, images)

    one, two = (tune_norms(counted, rounded, reference(params), batches, FAST) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert len(traces) == 4  # loss and gradient, for the full batches and the last


def test_norms_are_found_by_their_parameters():
    tree = {"a": {"norm": {"scale": 1, "bias": 2}, "fc": {"kernel": 3, "bias": 4}}, "out": {"scale": 5}}
    assert norm_paths(tree) == [("a", "norm", "bias"), ("a", "norm", "scale"), ("out", "scale")]


def test_errors(problem):
    params, rounded, batches = problem
    for fields, message in (
        ({"loss": "l1"}, "unknown loss 'l1' of norm tuning; expected one of kl, mse, ce"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam' of norm tuning; expected one of adamw"),
        ({"steps": 0}, "steps of norm tuning must be at least 1, got 0"),
        ({"held_out": 1.0}, "held_out of norm tuning is a fraction between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate of norm tuning must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            NormTuning(**fields)
    only_images = [{"image": b["image"]} for b in batches]
    spoilt = jax.tree.map(lambda a: a * jnp.nan, rounded)
    for tree, given, tuning, message in (
        (rounded, iter(batches), FAST, "not a generator"),
        (rounded, [], FAST, "at least one batch of two images"),
        (rounded, [{"image": batches[0]["image"][:1]}], FAST, "at least one batch of two images"),
        (rounded, only_images, NormTuning(loss="ce"), "needs batches with labels"),
        ({"fc": params["fc1"]}, batches, FAST, "no normalization layers"),
        (spoilt, batches, FAST, "the logits of the model to be tuned are not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_norms(apply, tree, reference(params), given, tuning)
