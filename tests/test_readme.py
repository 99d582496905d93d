"""The README's Python examples run as they stand, one after another."""

import re
from pathlib import Path

import jax
import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 4
    names = {"__name__": "readme"}
    for example in examples:
        exec(example, names)
    assert (tmp_path / "tagger.safetensors").stat().st_size > 0
    assert names["tuned"].after <= names["tuned"].before
    jax.tree.map(np.testing.assert_array_equal, names["again"], names["result"].params)
    printed = capsys.readouterr().out
    assert "\n0.0\n" in printed and "QuantSpec(method='beacon', alphabet='int4'" in printed
    assert "attn/query/kernel" in printed and "looked up (gather)" in printed and "% of the multiplications" in printed
