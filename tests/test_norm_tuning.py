import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from beacon_jax.graph.program import leaf_names
from beacon_jax.norm_tuning import LOSSES, OPTIMIZERS, NormTuning, tune_norms
from beacon_jax.norms import norm_paths

FAST = NormTuning(steps=60, check_every=10, learning_rate=1e-2)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm1")(nn.Dense(16, name="fc1")(x))
        return nn.Dense(5, name="fc2")(nn.RMSNorm(name="norm2")(nn.relu(x)))


MODEL = Net()


@jax.jit
def apply(params, batch):
    return MODEL.apply({"params": params}, batch["image"])


@pytest.fixture(scope="module")
def problem():
    """A model, the same with kernels rounded to three levels, and batches with the float model's labels."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(n, 8)).astype(np.float32) for n in (32, 32, 21)]
    params = jax.jit(MODEL.init)(jax.random.key(0), images[0])["params"]
    batches = [{"image": x} for x in images]
    batches = [batch | {"label": np.asarray(apply(params, batch).argmax(-1))} for batch in batches]

    def round_kernel(path, a):
        scale = 0.7 * np.abs(a).max()
        return np.clip(np.round(a / scale), -1, 1) * scale if path[-1].key == "kernel" else a

    rounded = jax.tree_util.tree_map_with_path(round_kernel, jax.tree.map(np.asarray, params))
    return params, jax.device_put(rounded), batches


def reference(params):
    return lambda batch: apply(params, batch)


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        pytest.param(loss, optimizer, marks=[] if loss == "kl" or optimizer == "adamw" else [pytest.mark.slow])
        for loss in LOSSES
        for optimizer in OPTIMIZERS
    ],
)
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
        p, q = (np.asarray(jax.nn.softmax(apply(t, {"image": held}))) for t in (params, tree))
        np.testing.assert_allclose((p * (np.log(p) - np.log(q))).sum(1).mean(), value, rtol=1e-4)


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

    def counted(params, batch):
        traces.append(batch["image"].shape)
        return apply(params, batch)

    one, two = (tune_norms(counted, rounded, reference(params), batches, FAST) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert len(traces) == 4  # loss and gradient, for the full batches and the last


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_count(problem, loss):
    """Outputs by position, with weights by position: what the padded ones hold changes nothing."""
    params, rounded, batches = problem
    rng = np.random.default_rng(1)

    def sequences(fill):
        for batch in batches[:2]:
            x = batch["image"].reshape(16, 2, 8)
            mask = np.ones((16, 2), np.float32)
            mask[rng.integers(16, size=5), 1] = 0
            yield {
                "image": np.where(mask[..., None] > 0, x, fill),
                "label": batch["label"].reshape(16, 2),
                "mask": mask,
            }

    results = []
    for fill in (0.0, 1e3):
        rng = np.random.default_rng(1)
        data = list(sequences(np.float32(fill)))
        for batch in data:
            batch["label"] = np.where(batch["mask"] > 0, batch["label"], -1)
        tuning = dataclasses.replace(FAST, loss=loss)
        results.append(tune_norms(apply, rounded, reference(params), data, tuning, weights=lambda b: b["mask"]))
    assert results[0].before == pytest.approx(results[1].before, rel=1e-5)
    assert results[0].after < results[0].before or loss == "ce"
    jax.tree.map(np.testing.assert_array_equal, results[0].params, results[1].params)
    held = [{k: v[13:] for k, v in batch.items()} for batch in data]  # a fifth of 16
    x, mask = (np.concatenate([batch[k] for batch in held]) for k in ("image", "mask"))
    target, found = (np.asarray(apply(t, {"image": x})) for t in (params, rounded))
    if loss == "mse":
        expected = (np.square(found - target).mean(-1) * mask).sum() / mask.sum()
        assert results[0].before == pytest.approx(float(expected), rel=1e-4)


def test_weights_by_position_count_examples_where_outputs_have_none(problem):
    """As an embedding of a sequence does: an example of which everything is padding does not count."""
    params, rounded, batches = problem
    spoilt = [{**b, "mask": np.ones((len(b["image"]), 3), np.float32)} for b in batches]
    for batch in spoilt:
        batch["image"] = batch["image"].copy()
        batch["image"][::4], batch["mask"][::4] = 1e3, 0
        batch["mask"][1::4, 1:] = 0  # these count as the others do
    tuned = tune_norms(apply, rounded, reference(params), spoilt, FAST, weights=lambda b: b["mask"])
    held = np.concatenate([b["image"][-n:] for b, n in zip(spoilt, (6, 6, 4), strict=True)])
    real = held[held[:, 0] < 1e2]
    p, q = (np.asarray(jax.nn.softmax(apply(t, {"image": real}))) for t in (params, rounded))
    np.testing.assert_allclose((p * (np.log(p) - np.log(q))).sum(1).mean(), tuned.before, rtol=1e-4)


def test_outputs_and_labels_by_key(problem):
    params, rounded, batches = problem

    def named(params, batch):
        return {"logits": apply(params, {"image": batch["x"]}), "other": batch["x"]}

    data = [{"x": b["image"], "y": b["label"]} for b in batches]
    for loss in ("ce", "kl"):
        tuning = dataclasses.replace(FAST, loss=loss, output="logits", label="y")
        tuned = tune_norms(named, rounded, lambda batch: named(params, batch), data, tuning)
        plain = tune_norms(apply, rounded, reference(params), batches, dataclasses.replace(FAST, loss=loss))
        jax.tree.map(np.testing.assert_array_equal, tuned.params, plain.params)
    both = tune_norms(named, rounded, lambda batch: named(params, batch), data, dataclasses.replace(FAST, loss="mse"))
    assert both.after < both.before


def test_only_what_is_named_changes(problem):
    params, rounded, batches = problem
    for norms, expected in (
        (r"norm\d/scale", {("norm1", "scale"), ("norm2", "scale")}),
        (["fc2/bias"], {("fc2", "bias")}),
    ):
        tuned = tune_norms(apply, rounded, reference(params), batches, FAST, norms=norms)
        before, after = flatten_dict(rounded), flatten_dict(tuned.params)
        assert {path for path in before if not np.array_equal(before[path], after[path])} == expected


class Reshuffled:
    """As a loader that draws another order every time."""

    def __init__(self, batches, change):
        self.batches, self.change, self.passes = batches, change, 0

    def __iter__(self):
        self.passes += 1  # asked for an iterator once more, to see that it is no generator
        return iter(self.batches if self.passes <= 2 else self.change(list(self.batches)))


def swapped(batches):
    return [jax.tree.map(lambda a: a[::-1], batches[0]), *batches[1:]]


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches[::-1], "batch 0 of norm tuning is another one .* not shuffled or drawn anew"),
        (lambda batches: [batches[1], batches[0], batches[2]], "batch 0 of norm tuning is another one"),
        (swapped, "batch 0 of norm tuning is another one"),
        (lambda batches: [*batches, batches[0]], "batch 3 of norm tuning is another one"),
        (lambda batches: batches[:2], "norm tuning read 3 batches the first time, and now 2"),
    ],
    ids=["order", "two of one size", "within a batch", "more", "fewer"],
)
def test_batches_that_are_others_the_next_time(problem, loss, change, message):
    params, rounded, batches = problem
    tuning = dataclasses.replace(FAST, loss=loss)
    with pytest.raises(ValueError, match=message):
        tune_norms(apply, rounded, reference(params), Reshuffled(batches, change), tuning)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda y: y + 3, "labels 0 … [5-7] do not fit logits of 5 classes"),
        (lambda y: np.where(np.arange(len(y)) == 3, -1, y), "labels -1 … 4 do not fit logits of 5 classes"),
        (
            lambda y: np.eye(5, dtype=np.float32)[y],
            "labels of shape .32, 5. .* indices of classes, not one vector for each",
        ),
        (lambda y: y[:, None], r"labels of shape \(32, 1\) do not fit logits of shape \(32, 5\)"),
        (lambda y: y.astype(np.float32), "labels are indices of classes, and so integers, got float32"),
        (lambda y: y > 2, "labels are indices of classes, and so integers, got bool"),
        (lambda y: None, r"labels of shape \(\) do not fit logits"),
    ],
    ids=["out of range", "negative", "one-hot", "column", "floats", "booleans", "none"],
)
def test_labels_that_do_not_fit(problem, label, message):
    params, rounded, batches = problem
    data = [batch | {"label": label(batch["label"])} for batch in batches]
    with pytest.raises(ValueError, match=message):
        tune_norms(apply, rounded, reference(params), data, NormTuning(loss="ce"))


def test_batches_as_tuples(problem):
    params, rounded, batches = problem
    data = [(batch["image"], batch["label"]) for batch in batches]

    def pair(params, batch):
        return apply(params, {"image": batch[0]})

    with pytest.raises(ValueError, match="no 'label' in the batch, of type tuple"):
        tune_norms(pair, rounded, lambda b: pair(params, b), data, NormTuning(loss="ce"))
    tuned = tune_norms(pair, rounded, lambda b: pair(params, b), data, dataclasses.replace(FAST, loss="ce", label=1))
    plain = tune_norms(apply, rounded, reference(params), batches, dataclasses.replace(FAST, loss="ce"))
    jax.tree.map(np.testing.assert_array_equal, tuned.params, plain.params)


def test_outputs_of_another_shape_than_the_float_models(problem):
    params, rounded, batches = problem
    for loss in ("mse", "kl"):
        with pytest.raises(ValueError, match=r"outputs of shape \(\d+, 5\) and the float model's \(\d+, 1\)"):
            tune_norms(apply, rounded, lambda b: apply(params, b)[:, :1], batches, NormTuning(loss=loss))


@pytest.mark.parametrize("loss", LOSSES)
def test_types_that_must_not_be_mixed(problem, loss):
    params, rounded, batches = problem
    weights = [{**batch, "mask": np.ones(len(batch["image"]), np.int32)} for batch in batches]
    tuning = dataclasses.replace(FAST, loss=loss, steps=10)
    with jax.numpy_dtype_promotion("strict"):
        tuned = tune_norms(apply, rounded, reference(params), weights, tuning, weights=lambda b: b["mask"])
    assert tuned.after < tuned.before


def models(kind):
    """(apply, params) of a small network of that framework, with parameters of other types beside."""
    if kind == "nnx":
        from flax import nnx

        class Network(nnx.Module):
            def __init__(self, rngs):
                self.fc1, self.bn = nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
                self.ln, self.fc2 = nnx.LayerNorm(16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)

            def __call__(self, x):
                return self.fc2(self.ln(nnx.relu(self.bn(self.fc1(x)))))

        network = Network(nnx.Rngs(0))
        network.eval()
        graph, state = nnx.split(network)
        return lambda params, batch: nnx.merge(graph, params)(batch["image"]), state
    if kind == "equinox":
        eqx = pytest.importorskip("equinox")
        keys = jax.random.split(jax.random.key(0))
        network = eqx.nn.Sequential(
            [eqx.nn.Linear(8, 16, key=keys[0]), eqx.nn.LayerNorm(16), eqx.nn.Linear(16, 5, key=keys[1])]
        )
        params, rest = eqx.partition(network, eqx.is_array)
        return lambda params, batch: jax.vmap(eqx.combine(params, rest))(batch["image"]), params
    from flax.core import freeze

    params = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 8), np.float32))["params"]
    return lambda tree, batch: apply(tree["net"], batch), freeze({"net": params, "steps": jnp.arange(3)})


@pytest.mark.parametrize("kind", ["frozen", "nnx", "equinox"])
def test_parameters_of_any_framework(problem, kind):
    run, params = models(kind)
    run = jax.jit(run)
    rounded = jax.tree.map(lambda a: np.round(4 * np.asarray(a)) / 4 if a.ndim == 2 else a, params)
    batches = [{"image": batch["image"]} for batch in problem[2]]
    tuned = tune_norms(run, rounded, lambda batch: run(params, batch), batches, FAST)
    assert tuned.after < tuned.before and jax.tree.structure(tuned.params) == jax.tree.structure(params)
    names, trained = leaf_names(params), norm_paths(params)
    for name, a, b in zip(names, *map(jax.tree.leaves, (rounded, tuned.params)), strict=True):
        assert np.array_equal(a, b) == (name not in trained) and a.dtype == b.dtype


def test_errors(problem):
    params, rounded, batches = problem
    for fields, message in (
        ({"loss": "l1"}, "unknown loss 'l1' of norm tuning; expected one of kl, mse, ce"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam' of norm tuning; expected one of adamw"),
        ({"steps": 0}, "steps of norm tuning must be an integer of at least 1, got 0"),
        ({"patience": 1.5}, "patience of norm tuning must be an integer of at least 1, got 1.5"),
        ({"weight_decay": -1e-6}, "weight_decay of norm tuning must be a finite number of at least 0, got -1e-06"),
        ({"learning_rate": "1e-3"}, "learning_rate of norm tuning must be a finite number of at least 0, got '1e-3'"),
        ({"held_out": 1.0}, "held_out of norm tuning is a fraction between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate of norm tuning must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            NormTuning(**fields)
    only_images = [{"image": b["image"]} for b in batches]
    spoilt = jax.tree.map(lambda a: a * np.float32(np.nan), rounded)
    with pytest.raises(ValueError, match="no normalization layers to tune"):
        tune_norms(apply, {"fc": params["fc1"]}, reference(params), batches, FAST)
    for tree, given, tuning, message in (
        (rounded, iter(batches), FAST, "not a generator"),
        (rounded, [], FAST, "at least one batch of two examples"),
        (rounded, [{"image": batches[0]["image"][:1]}], FAST, "at least one batch of two examples"),
        (rounded, only_images, NormTuning(loss="ce"), "no 'label' in the batch, of keys image"),
        (spoilt, batches, FAST, "the outputs of the model to be tuned, or of the float model, are not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_norms(apply, tree, reference(params), given, tuning)
    for weights, message in (
        (lambda batch: np.ones(3), r"weights of shape \(3,\) do not fit a batch of 32 examples"),
        (lambda batch: np.zeros(len(batch["image"])), "at least one batch of two examples of positive weight"),
        (
            lambda batch: -np.ones(len(batch["image"])),
            "weights of batch 0 of norm tuning must be finite",
        ),
        (lambda batch: np.full(len(batch["image"]), np.nan), "weights of batch 0 of norm tuning must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_norms(apply, rounded, reference(params), batches, FAST, weights=weights)
    with pytest.raises(ValueError, match="the loss 'kl' is of one array of logits, the outputs have 2; set output"):
        tune_norms(lambda p, b: (apply(p, b),) * 2, rounded, lambda b: (apply(params, b),) * 2, batches, FAST)
