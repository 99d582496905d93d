import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from beacon_jax import evaluate, save_params
from beacon_jax.models import decoder
from configs import language as language_config
from experiments.tasks.language import language, load_language_model, text_batches
from experiments.text import read_corpus, split_texts
from experiments.tokens import CONTEXT, SEPARATOR, encode, load_tokenizer, tokenizer_path, train_tokenizer
from experiments.train_language import mean_loss

SHIPPED = Path(__file__).parents[2] / "experiments" / "checkpoints" / "language.safetensors"


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A small model with its tokenizer."""
    pytest.importorskip("tokenizers")
    monkeypatch.setitem(decoder.DECODERS, "tiny", dict(vocabulary=300, width=8, depth=1, heads=2, hidden=8))
    params = jax.jit(decoder.create_decoder("tiny").init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    path = tmp_path / "tiny.safetensors"
    save_params(path, params, model="tiny")
    tokenizer_path(path).write_text(train_tokenizer(read_corpus()[:100], 300).to_str(), encoding="utf-8")
    return path


def test_windows_hold_all_test_texts(checkpoint):
    train, test = text_batches(checkpoint, 32)
    batch = next(iter(test))
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(batch, (32, CONTEXT))
    real = test.arrays["mask"] == 1
    text = load_tokenizer(tokenizer_path(checkpoint)).decode(
        test.arrays["ids"][real].tolist(), skip_special_tokens=False
    )
    assert text.split("<|endoftext|>")[1:] == split_texts(read_corpus())[1]
    assert len(train.arrays["ids"]) > 8 * len(test.arrays["ids"])


def test_a_checkpoint_of_another_model_is_refused(checkpoint):
    model, params = load_language_model(checkpoint)
    assert model == decoder.create_decoder("tiny")
    save_params(checkpoint, params)
    with pytest.raises(ValueError, match="does not say of which model"):
        load_language_model(checkpoint)
    save_params(checkpoint, params, model="decoder_docstrings")
    with pytest.raises(ValueError, match="does not hold the parameters of decoder_docstrings"):
        load_language_model(checkpoint)


def test_the_shipped_model_reads_the_test_texts_as_well_as_when_it_was_trained():
    pytest.importorskip("tokenizers")
    model, params = load_language_model(SHIPPED)
    _, test = text_batches(SHIPPED, 32)
    assert test.arrays["mask"].sum() == 63_048
    np.testing.assert_allclose(mean_loss(model, params, test), 2.7853, atol=2e-4)
    assert SHIPPED.stat().st_size < 5_000_000


def test_the_shipped_tokenizer_fits_the_model():
    pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(tokenizer_path(SHIPPED))
    assert tokenizer.get_vocab_size() == load_language_model(SHIPPED)[0].vocabulary
    assert tokenizer.token_to_id(SEPARATOR) == 0
    texts = split_texts(read_corpus())[1]
    assert tokenizer.decode_batch(encode(tokenizer, texts)) == texts


def test_the_task_measures_the_loss_of_the_training_script(checkpoint):
    config = language_config.get_config()
    config.model.checkpoint, config.data.test_images = str(checkpoint), 40
    task = language(config)
    predict = functools.partial(jax.jit(task.apply), task.params)
    measured = evaluate(predict, task.test, task.metrics, predict)
    loss = mean_loss(decoder.create_decoder("tiny"), task.params, task.test)
    np.testing.assert_allclose(measured["perplexity"].value, np.exp(loss), rtol=1e-5)
    assert task.main == "perplexity" and measured["agreement"].value == 100
    batches = list(task.calibration(33, 0))
    assert [task.weights(batch).shape for batch in batches] == [(32, CONTEXT), (1, CONTEXT)]
    config.data.batch_size = 8
    assert language(config).identity == task.identity
    config.data.test_images = 41
    assert language(config).identity != task.identity


@pytest.mark.parametrize("missing", ["tiny.safetensors", "tiny.tokenizer.json"])
def test_missing_files_are_named(checkpoint, missing):
    config = language_config.get_config()
    config.model.checkpoint = str(checkpoint)
    (checkpoint.parent / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        language(config)
