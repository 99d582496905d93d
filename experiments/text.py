"""Text of the language tasks: the docstrings of Python's standard library.

The docstrings differ from one Python version to the next, and with them every perplexity and every calibration row. So
the text itself is shipped, 0.4 MB compressed, and all numbers can be had again on any Python. It was written by

    python -m experiments.text

under the Python that its first line names; the text is under that Python's licence, shipped beside it.
"""

import ast
import hashlib
import json
import lzma
import platform
import sysconfig
from collections.abc import Sequence
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
      The cleaned docstrings of modules, classes and functions, each once, sorted, without those of fewer than
      MIN_CHARACTERS characters.
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


def main() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    texts = collect_docstrings(root)
    source = f"docstrings of the standard library of Python {platform.python_version()}"
    write_corpus(CORPUS, texts, source)
    (CORPUS.parent / "LICENSE.txt").write_bytes((root / "LICENSE.txt").read_bytes())
    print(f"{len(texts)} texts, {sum(map(len, texts))} characters, digest {digest(texts)}, in {CORPUS}")


if __name__ == "__main__":
    main()
