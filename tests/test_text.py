import lzma

import numpy as np
import pytest

from experiments.text import CORPUS, MIN_CHARACTERS, collect_docstrings, digest, read_corpus, split_texts, write_corpus

LONG = "A docstring that is long enough to be kept, number {}."

SOURCE = f'''"""{LONG.format(1)}"""
raise SystemExit("imported")
class A:
    """{LONG.format(2)}

        Indented.
    Not indented.
    """
    async def f(self):
        r"""{LONG.format(3)}"""
    def short(self):
        """Too short."""
def again():
    """{LONG.format(1)}"""
'''


def test_docstrings_are_read_and_never_run(tmp_path):
    (tmp_path / "pack" / "test").mkdir(parents=True)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "pack" / "a.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (")
    for left_out in ("pack/test/b.py", "site-packages/c.py"):
        (tmp_path / left_out).write_text(f'"""{LONG.format("left out")}"""')
    expected = [LONG.format(1), LONG.format(2) + "\n\n    Indented.\nNot indented.", LONG.format(3)]
    assert collect_docstrings(tmp_path) == expected


def test_the_shipped_corpus():
    texts = read_corpus()
    assert digest(texts) == "3edcb393bf844cd8"  # of the text that the language model was trained on
    assert texts == sorted(set(texts)) and min(map(len, texts)) >= MIN_CHARACTERS
    train, test = split_texts(texts)
    assert (len(train), len(test)) == (6294, 698)
    assert sorted(train + test) == texts and not set(train) & set(test)
    assert CORPUS.stat().st_size < 500_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (CORPUS.parent / "LICENSE.txt").read_text()


def test_a_text_keeps_its_side():
    texts = [LONG.format(i) for i in range(400)]
    sides = split_texts(texts)
    assert 20 < len(sides[1]) < 60
    for some in (texts[::-1], texts[5:50]):
        assert all(set(part) <= set(side) for part, side in zip(split_texts(some), sides, strict=True))


def test_writing_and_reading(tmp_path):
    texts = ["with\nlines\u2028and “quotes”", 'a "second"']
    path = tmp_path / "new" / "corpus.jsonl.xz"
    write_corpus(path, texts, "nowhere")
    assert read_corpus(path) == texts
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-8], "is not a corpus"),
        (b"plain text", "is not a corpus of xz-compressed JSON lines"),
        (lzma.compress(b'{"source": ""}\n[1]'), "expected a line that names its source, then a text in each line"),
        (lzma.compress(b'{"source": ""}'), "expected a line that names its source"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            read_corpus(path)
    with pytest.raises(FileNotFoundError):
        read_corpus(tmp_path / "none")


def test_digests_tell_contents_apart():
    array = np.arange(6, dtype=np.int32)
    several = [["ab"], ["a", "b"], array, array.reshape(2, 3), array.astype(np.int64), array + 1, b"ab", b""]
    assert len({digest(part) for part in several} | {digest(*several), digest(*several[::-1])}) == len(several) + 2
    assert digest(["a"], array) == digest(["a"], array.copy())
