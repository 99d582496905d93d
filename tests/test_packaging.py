import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import beacon_jax

ROOT = Path(__file__).parent.parent
SOME_LAYER = """
import importlib.resources, jax.numpy as jnp, numpy as np, beacon_jax
assert "site" in beacon_jax.__file__ and importlib.resources.files(beacon_jax).joinpath("py.typed").is_file()
x = [np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)]
done = beacon_jax.quantize(lambda p, x: x @ p["w"], {"w": np.eye(8, dtype=np.float32)}, x, beacon_jax.QuantSpec())
print(done.reports[0].layer, beacon_jax.__version__)
"""


def test_one_version():
    assert f"version: {beacon_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"({beacon_jax.__version__})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_name_what_the_project_asks_for():
    for path in (ROOT / "constraints").glob("*.txt"):
        names = {re.sub("[-_]", "-", line.split("==")[0]) for line in path.read_text(encoding="utf-8").splitlines()[1:]}
        assert {"absl-py", "flax", "jax", "jaxlib", "ml-dtypes", "numpy", "optax", "safetensors"} <= names


@pytest.mark.slow
def test_a_wheel_of_the_source_distribution_works_outside_of_the_project(tmp_path):
    def run(*command):
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    python = sys.executable
    run(python, "-m", "build", "--outdir", "dist", str(ROOT))  # the wheel is built from what the other one holds
    (source,), (wheel,) = ((tmp_path / "dist").glob(kind) for kind in ("*.tar.gz", "*.whl"))
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "beacon_jax/py.typed"} <= held
    run(python, "-m", "pip", "install", "--no-deps", "--target", "site", str(wheel))
    said = run(python, "-c", f"import sys; sys.path.insert(0, 'site')\n{SOME_LAYER}")
    assert said.split() == ["w", beacon_jax.__version__]
    assert not list((tmp_path / "site").glob("tests*")) and not list((tmp_path / "site").glob("experiments*"))
