import jax
import numpy as np
import pytest

from beacon_jax.models import decoder
from configs import language
from experiments import train_language
from experiments.tokens import ArrayBatches, windows
from experiments.train import Progress

VOCABULARY = 13


@pytest.fixture
def config(monkeypatch):
    sizes = dict(vocabulary=VOCABULARY, width=16, depth=1, heads=2, hidden=16, dropout=0.1)
    monkeypatch.setitem(decoder.DECODERS, "tiny", sizes)
    monkeypatch.setattr(train_language, "CONTEXT", 8)
    config = language.get_config()
    config.model.name = "tiny"
    config.train.update(epochs=3, batch_size=4, save_every=5, learning_rate=1e-2, muon_learning_rate=1e-2)
    return config


@pytest.fixture
def documents(rng):
    """Texts in which each token but the separator tells the next."""
    starts, lengths = rng.integers(1, VOCABULARY, 60), rng.integers(3, 9, 60)
    return [[1 + (start + i) % (VOCABULARY - 1) for i in range(n)] for start, n in zip(starts, lengths, strict=True)]


def test_training_learns_and_goes_on_where_it_stopped(tmp_path, config, documents):
    losses, model = {}, decoder.create_decoder("tiny")
    batches = ArrayBatches(windows(documents, 8), 5)

    def report(epochs, params):
        losses[epochs] = train_language.mean_loss(model, params, batches)

    whole = train_language.fit(config, documents, Progress(tmp_path / "whole", config), report)
    assert list(losses) == [1, 2, 3] and losses[3] < losses[1] < np.log(VOCABULARY)

    class Stopped(Exception):
        pass

    def stop(epochs, params):
        raise Stopped

    progress = Progress(tmp_path / "parts", config)
    with pytest.raises(Stopped):
        train_language.fit(config, documents, progress, stop)
    resumed = train_language.fit(config, documents, progress)
    assert (tmp_path / "parts").exists()
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_the_loss_is_the_mean_over_real_positions(rng):
    model = decoder.Decoder(vocabulary=VOCABULARY, width=16, depth=1, heads=2, hidden=16)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    arrays = windows([rng.integers(1, VOCABULARY, n).tolist() for n in (9, 4, 6)], 8)
    assert 0 < arrays["mask"].sum() < arrays["mask"].size
    logits = np.asarray(model.apply({"params": params}, arrays["ids"]), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(logs, arrays["targets"][..., None], -1)[..., 0]
    expected = -own[arrays["mask"] == 1].mean()
    for batch_size in (1, 2, 3):
        loss = train_language.mean_loss(model, params, ArrayBatches(arrays, batch_size))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_epoch_is_drawn_anew(config, documents):
    one, again, other = (train_language.epoch_batches(documents, 4, (0, epoch)) for epoch in (0, 0, 1))
    assert len(one) == sum(len(d) + 1 for d in documents) // 8 // 4 == len(other)
    assert {batch["ids"].shape for batch in one} == {(4, 8)}
    for a, b in zip(one, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert any((a["ids"] != b["ids"]).any() for a, b in zip(one, other, strict=True))
    followed = [(a["ids"][:, 1:] == a["targets"][:, :-1]).all() for a in one]
    assert all(followed)


def test_mistakes(tmp_path, config, documents):
    for changes, message in (
        (dict(optimizer="sgd"), "unknown optimizer 'sgd'; expected adamw or muon"),
        (dict(epochs=0), "train.epochs must be at least 1, got 0"),
        (dict(batch_size=10**6), "train.batch_size=1000000 windows of 8 tokens exceed the training text"),
    ):
        changed = config.copy_and_resolve_references()
        changed.train.update(changes)
        with pytest.raises(ValueError, match=message):
            train_language.fit(changed, documents, Progress(tmp_path / "t", changed))
