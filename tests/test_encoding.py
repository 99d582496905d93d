"""Text files are in UTF-8 and messages get out, whatever the locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("beacon_jax", "experiments", "configs") for path in (ROOT / folder).rglob("*.py"))


def without_encoding(tree):
    """Lines that open text files, by whatever expression for the path, and do not say in which encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in ("open", "read_text", "write_text", "fdopen", "NamedTemporaryFile", "TextIOWrapper"):
            continue
        mode = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        mode += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        pictures = getattr(getattr(node.func, "value", None), "id", "") == "Image"
        binary = any("b" in m and set(m) <= set("rwaxb+") for m in mode) or pictures
        bytewise = ast.unparse(node.func) in ("self._zip.open", "os.open")
        if not binary and not bytewise and not any(k.arg == "encoding" for k in node.keywords):
            yield node.lineno


def test_every_text_file_names_its_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{n}" for path in SOURCES for n in without_encoding(ast.parse(path.read_bytes()))
    ]
    assert not found
    bad = "open(p)\np.read_text()\n(a / 'b').write_text(x)\nopen(p, 'w')\n"
    good = "open(p, 'rb')\np.read_text(encoding='utf-8')\nopen(p, mode='wb')\np.open('a', encoding='utf-8')\n"
    assert list(without_encoding(ast.parse(bad))) == [1, 2, 3, 4] and not list(without_encoding(ast.parse(good)))


SCRIPT = """
import sys
from pathlib import Path
from experiments import common
from experiments.lines import append_line, read_lines
from experiments.results import LayerStore

def main(_):
    out = Path(sys.argv[0]).parent
    append_line(out / "lines.jsonl", {"row": "Beacon – ‖XW‖²"})
    LayerStore(out / "layers").save_choice({"rules": [], "shown": "β"})
    print(len(read_lines(out / "lines.jsonl", dict)), "± 2 × – ‖β‖", LayerStore(out / "layers").load_choice())
    raise ValueError("größer als β")

common.run(main)
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_script_in_any_locale(tmp_path, locale):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    without = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    env = without | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, timeout=300)
    assert done.returncode == 2 and done.stdout.startswith(b"1 "), done.stderr
    expected = "error: größer als β" if locale == "C.UTF-8" else r"error: gr\xf6\xdfer als \u03b2"
    assert done.stderr.decode("utf-8").strip().endswith(expected)
