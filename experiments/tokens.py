"""Texts as token ids: tokenizers, and arrays and batches of ids for encoders and language models.

The tokenizers library does the cutting; it is imported where it is used, so that the rest works without it.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from beacon_jax.places import place

CONTEXT = 128  # tokens of the language model's windows
SEPARATOR = "<|endoftext|>"  # between two texts of the language model; token 0


def train_tokenizer(texts: list[str], vocabulary: int):
    """A byte-level BPE tokenizer with `vocabulary` tokens, of which the separator of texts is the first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_path(checkpoint_path: str | Path) -> Path:
    """Where the tokenizer of a checkpoint lies."""
    return place(checkpoint_path).with_suffix(".tokenizer.json")


def load_tokenizer(path: Path):
    """The tokenizer of a file. Raises FileNotFoundError, ValueError for a damaged file, ImportError for the library."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("text is cut into tokens by the tokenizers library: pip install tokenizers") from error
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a tokenizer's JSON ({error})") from error
    return Tokenizer.from_str(text)


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text's tokens, and of no special ones."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


@dataclasses.dataclass(frozen=True)
class ArrayBatches:
    """Batches out of arrays that fit in memory, the same whenever iterated; the last may be smaller.

    Attributes:
      arrays: {name: array (count, …)}.
      batch_size: rows of a batch.
    """

    arrays: dict[str, np.ndarray]
    batch_size: int

    def __post_init__(self):
        counts = {name: len(array) for name, array in self.arrays.items()}
        if not counts or len(set(counts.values())) > 1 or not next(iter(counts.values())):
            raise ValueError(f"batches need arrays of one length of at least 1, got {counts}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        count = len(next(iter(self.arrays.values())))
        for start in range(0, count, self.batch_size):
            yield {name: array[start : start + self.batch_size] for name, array in self.arrays.items()}

    def __len__(self) -> int:
        return -(-len(next(iter(self.arrays.values()))) // self.batch_size)

    def drawn(self, count: int, seed: int) -> "ArrayBatches":
        """Batches of `count` different rows, drawn at random with the seed; ValueError where there are fewer."""
        rows = len(next(iter(self.arrays.values())))
        if not 1 <= count <= rows:
            raise ValueError(f"{count} examples were asked for; there are {rows}")
        chosen = np.random.default_rng(seed).choice(rows, count, replace=False)
        return ArrayBatches({name: array[chosen] for name, array in self.arrays.items()}, self.batch_size)


def padded(sequences: Sequence[Sequence[int]], length: int, pad: int = 0) -> dict[str, np.ndarray]:
    """Token sequences of different lengths as rows of one length, filled up at the end.

    Args:
      sequences: token ids, each sequence of 1 to `length` of them.
      length: T.
      pad: the id to fill with.

    Returns:
      ids (count, T) int32 and mask (count, T) int32, 1 for a token and 0 for what was filled up.
    """
    for sequence in sequences:
        if not 1 <= len(sequence) <= length:
            raise ValueError(f"a sequence of {len(sequence)} tokens does not fit rows of {length}")
    ids = np.full((len(sequences), length), pad, np.int32)
    lengths = np.array([len(sequence) for sequence in sequences])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return {"ids": ids, "mask": mask}


def windows(documents: Sequence[Sequence[int]], length: int, separator: int = 0) -> dict[str, np.ndarray]:
    """Documents joined to one stream, with a separator before each and at the end, and cut into rows of one length.

    Every token of every document, and the separator after it, is the target of exactly one position.

    Args:
      documents: token ids.
      length: T.
      separator: the id between two documents; the last row is filled up with it.

    Returns:
      int32 arrays (count, T): ids; targets, the token that follows each; mask, 0 for what was filled up and else 1.
    """
    stream = np.array([token for document in documents for token in (separator, *document)] + [separator], np.int32)
    steps = len(stream) - 1
    count = -(-steps // length)
    fill = [(0, count * length - steps)]
    columns = {"ids": stream[:-1], "targets": stream[1:], "mask": np.ones(steps, np.int32)}
    values = {"ids": separator, "targets": separator, "mask": 0}
    return {
        name: np.pad(column, fill, constant_values=values[name]).reshape(count, length)
        for name, column in columns.items()
    }
