"""The language model that experiments/train_language.py trains, as --config.task=experiments.tasks.language:language"""

import jax
from ml_collections import ConfigDict

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.evaluate import Agreement, Divergence, Perplexity
from beacon_jax.models.decoder import Decoder, create_decoder
from beacon_jax.places import place, read
from experiments.task import Task
from experiments.text import digest, read_corpus, split_texts
from experiments.tokens import CONTEXT, ArrayBatches, encode, load_tokenizer, tokenizer_path, windows

METRICS = {
    "perplexity": Perplexity(label="targets", mask="mask"),
    "agreement": Agreement(mask="mask"),
    "kl": Divergence(mask="mask"),
}


def load_language_model(path: str) -> tuple[Decoder, dict]:
    """The model and the parameters of a checkpoint. FileNotFoundError, or ValueError for one of another model."""
    name = saved_model(path)
    if not name:
        raise ValueError(f"{path} does not say of which model it holds the parameters")
    model, params = create_decoder(name), load_params(path)
    if jax.tree.map(lambda a: a.shape, params) != jax.tree.map(lambda a: a.shape, model.param_shapes()):
        raise ValueError(f"{path} does not hold the parameters of {name}")
    return model, params


def text_batches(path: str, batch_size: int) -> tuple[ArrayBatches, ArrayBatches]:
    """Windows of the training texts and of the test texts, in the tokens of the tokenizer beside the checkpoint."""
    tokenizer = load_tokenizer(tokenizer_path(path))
    train, test = (windows(encode(tokenizer, texts), CONTEXT) for texts in split_texts(read_corpus()))
    return ArrayBatches(train, batch_size), ArrayBatches(test, batch_size)


def language(config: ConfigDict) -> Task:
    """The task: perplexity of the test texts per token, and how often the most likely token stays the same.

    An example is a window of CONTEXT tokens.

    Args:
      config: its model.checkpoint, data.batch_size and data.test_images are read.

    Raises:
      FileNotFoundError: no checkpoint, or no tokenizer beside it.
      ValueError: a damaged file, or a checkpoint of another model.
      ImportError: the tokenizers library is not installed.
    """
    path = config.model.checkpoint
    model, params = load_language_model(path)
    train, test = text_batches(path, config.data.batch_size)
    test = test.drawn(config.data.test_images, 0) if config.data.test_images else test
    return Task(
        apply=lambda params, batch: model.apply({"params": params}, batch["ids"]),
        params=params,
        calibration=train.drawn,
        test=test,
        metrics=METRICS,
        weights=lambda batch: batch["mask"],
        identity=digest(read(place(path)), train.arrays["ids"], test.arrays["ids"]),
    )
