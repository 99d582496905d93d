"""Text of the language tasks: the docstrings of Python's standard library, and batches of token ids made of texts.

The docstrings differ from one Python version to the next, and with them every perplexity and every calibration row. So
the text itself is shipped, 0.4 MB compressed, and all numbers can be had again on any Python. It was written by

    python -m experiments.text

under the Python that its first line names; the text is under that Python's licence, shipped beside it.
"""

import ast
import dataclasses
import hashlib
import json
import lzma
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

CORPUS = Path(__file__).parent / "corpora" / "stdlib_docstrings.jsonl.xz"
MIN_CHARACTERS = 40  # shorter docstrings say nothing ("Return a copy.")
TEST_SHARE = 10  # one text in so many is a test text
# Tests, and what a package manager put there.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


def collect_docstrings(root: Path) -> list[str]:
    """Every docstring in the .py files below `root`, without running or importing any of them.

    Args:
      root: a folder, such as the one of the standard library; tests and site-packages in it are left out, and so are
        files that are not of this Python's syntax.

    Returns:
      The cleaned docstrings of modules, classes and functions with at least MIN_CHARACTERS characters, each once, sorted.
    """
    texts = set()
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                texts.add((ast.get_docstring(node) or "").strip())
    return sorted(text for text in texts if len(text) >= MIN_CHARACTERS)


def write_corpus(path: Path, texts: Sequence[str], source: str) -> None:
    """Writes the texts as xz-compressed JSON lines, after a first line that says where they are from."""
    lines = [json.dumps({"source": source}), *(json.dumps(text, ensure_ascii=False) for text in texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9))


def read_corpus(path: Path = CORPUS) -> list[str]:
    """The texts of a file that `write_corpus` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or other file.
    """
    try:
        source, *texts = map(json.loads, lzma.decompress(path.read_bytes()).decode().split("\n"))
    except (lzma.LZMAError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a corpus of xz-compressed JSON lines ({error})") from error
    if not isinstance(source, dict) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} is not a corpus: expected a line that names its source, then a text in each line")
    return texts


def split_texts(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(texts to train and calibrate on, test texts): one in TEST_SHARE is a test text, by its hash alone.

    So a text keeps its side whatever the others are, and equal texts are on one side.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        sides[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % TEST_SHARE == 0].append(text)
    return sides


def digest(*parts: Sequence[str] | np.ndarray | bytes) -> str:
    """A hexadecimal digest of lists of texts, of arrays and of bytes, in this order."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = f"{part.shape} {part.dtype}".encode() + part.tobytes()
        elif not isinstance(part, bytes):
            part = json.dumps(list(part)).encode()
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


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
      ids (count, T), targets (count, T): the token that follows each, and mask (count, T): 0 for what was filled up; all
      int32.
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


def main() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    texts = collect_docstrings(root)
    source = f"docstrings of the standard library of Python {platform.python_version()}"
    write_corpus(CORPUS, texts, source)
    (CORPUS.parent / "LICENSE.txt").write_bytes((root / "LICENSE.txt").read_bytes())
    print(f"{len(texts)} texts, {sum(map(len, texts))} characters, digest {digest(texts)}, in {CORPUS}")


if __name__ == "__main__":
    main()
