"""The README's Python examples run as they stand, one after another."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 3
    names = {"__name__": "readme"}
    for example in examples:
        exec(example, names)
    assert (tmp_path / "mlp.safetensors").stat().st_size > 0
    assert names["tuned"].after <= names["tuned"].before
    assert "hidden 3" in capsys.readouterr().out
