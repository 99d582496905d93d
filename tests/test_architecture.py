"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import beacon_jax

PACKAGE = Path(beacon_jax.__file__).parent
ALLOWED = {  # folder or file -> what of beacon_jax it may import
    "quant": {"quant"},
    "models": {"models", "quant"},
    "data.py": set(),
    "evaluate.py": {"quant"},
    "checkpoint.py": {"quant"},
    "streams.py": set(),
    "spec.py": {"quant", "streams"},
    "pipeline.py": {"quant", "models", "spec", "streams"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if path == PACKAGE / "__init__.py":
        return
    part = path.relative_to(PACKAGE).parts[0]
    own = {name.split(".")[1] for name in imports(path) if name.startswith("beacon_jax.")}
    assert own <= ALLOWED[part]
    others = {name.split(".")[0] for name in imports(path)} - {"beacon_jax"}
    assert not others & {"tensorflow", "torch", "experiments", "configs"}
    if part == "quant":
        assert not others & {"flax", "optax", "safetensors", "sklearn"}
