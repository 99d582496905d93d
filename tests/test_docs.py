"""The documentation: what its commands name exists, the reference is complete, and it builds with its notebooks run."""

import html
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import beacon_jax

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.md")])
# How the tests compile; notebooks are run as users run them.
COMPILED = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")


def commands(path):
    """Every `python -m experiments.…` of a page: the script and its arguments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"python -m (experiments\.[^\n`]*)", text):
        script, *arguments = line.split("#")[0].split(" | ")[0].split()
        yield script, arguments


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_name_what_is_there(path):
    defined = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "experiments").glob("*.py"))
    for script, arguments in commands(path):
        assert importlib.util.find_spec(script) is not None, script
        config = "configs.base"
        for argument in arguments:
            if argument.startswith("--config=configs/"):
                config = argument.removeprefix("--config=").removesuffix(".py").replace("/", ".")
        settings = importlib.import_module(config).get_config()
        for argument in arguments:
            name = re.match(r"--([\w.]*)", argument)
            if name is None or name[1] == "config":
                continue
            if name[1].startswith("config."):
                assert name[1].removeprefix("config.") in set(_keys(settings)), argument
            else:
                assert re.search(rf'DEFINE_\w+\(\s*"{name[1]}"', defined), argument


def _keys(settings, prefix=""):
    for key, value in settings.items(preserve_field_references=True):
        yield prefix + key
        if hasattr(value, "items"):
            yield from _keys(value, f"{prefix}{key}.")


def test_the_reference_has_every_public_name():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    described = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (?:beacon_jax\.)?(\w+)$", text, re.MULTILINE))
    assert set(beacon_jax.__all__) - {"__version__"} <= described


@pytest.mark.slow
def test_it_builds_without_a_warning_and_notebooks_run(tmp_path):
    for package in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install -e ".[docs]"')
    environment = {name: value for name, value in os.environ.items() if name not in COMPILED}
    command = [sys.executable, "-m", "sphinx", "-W", "-b", "html", "docs", str(tmp_path / "html")]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "read"), "-D", "nb_execution_mode=force"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    left = dict(re.findall(r"notebooks/(\w+)\.md is not run, it lacks (.*)", said))

    def printed(notebook):
        text = html.unescape((tmp_path / "html" / "notebooks" / f"{notebook}.html").read_text(encoding="utf-8"))
        return re.sub(r"<[^>]*>", "", text)

    options = (tmp_path / "html" / "api" / "arrays.html").read_text(encoding="utf-8")
    assert re.search(r"<td>.*>effort<.*</td>", options)  # a cell of the table that a notebook makes
    if "sentence_encoder" not in left:
        found = re.findall(r"^(\w[^\n]*?) +cosine (0\.\d+) ±", printed("sentence_encoder"), re.MULTILINE)
        cosines = {name: float(cosine) for name, cosine in found}
        assert cosines["Beacon plus, int2"] > max(0.85, cosines["Beacon, int2"])
        assert cosines["Beacon, int2"] > cosines["rounding, int2"] + 0.2
    if "cifar10" not in left:
        found = re.findall(
            r"^(\w[^\n]*?) +([\d.]+) bit +top-1 +[\d.]+ +agreement +([\d.]+)", printed("cifar10"), re.MULTILINE
        )
        agreement = {(row, alphabet): float(value) for row, alphabet, value in found}
        assert agreement["Beacon w/ E.C.", "2"] > 90 > agreement["RTN", "2"]
        assert agreement["Beacon w/ E.C.", "1.58"] > 85 > agreement["RTN", "1.58"]
    if left:
        pytest.skip("; ".join(f"the notebook {name} was not run, it lacks {what}" for name, what in left.items()))
