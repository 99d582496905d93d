"""The Python examples of README and docs run as they stand, one after another; their links lead somewhere."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = {  # and the number of their examples, of which some need what those before them made
    "README.md": 1,
    "docs/your_model.md": 2,
    "docs/norm_tuning.md": 1,
    "docs/files.md": 1,
    "docs/beacon_plus.md": 1,
    "docs/memory.md": 1,
    "docs/extending.md": 4,
}
TEXTS = sorted(path for place in ("", "docs", "docs/api", "docs/notebooks") for path in (ROOT / place).glob("*.md"))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for page, count in PAGES.items():
        examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        assert len(examples) == count
        for example in examples:
            exec(example, names)
    assert (tmp_path / "model.safetensors").stat().st_size > 0
    assert (tmp_path / "tagger.safetensors").stat().st_size > 0
    assert names["tuned"].after <= names["tuned"].before
    jax.tree.map(np.testing.assert_array_equal, names["again"], names["result"].params)
    printed = capsys.readouterr().out
    assert "\n0.0\n" in printed and "QuantSpec(method='beacon', alphabet='int4'" in printed
    assert "attn/query/kernel" in printed and "looked up (gather)" in printed and "% of the multiplications" in printed


def test_every_example_is_run():
    found = {str(path.relative_to(ROOT)) for path in TEXTS if "```python" in path.read_text(encoding="utf-8")}
    assert found == set(PAGES)


def _anchors(text):
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert not re.findall(r"\[(?:above|below)\]\([^#)][^)]*\)", path.read_text(encoding="utf-8"))  # is another page
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith(("http:", "https:")):
            file, _, anchor = link.partition("#")
            target = (path.parent / file) if file else path
            assert not file or target.resolve() != path, link  # leads from a page to itself
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), link
