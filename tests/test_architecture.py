"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import beacon_jax

PACKAGE = Path(beacon_jax.__file__).parent
ALLOWED = {  # folder or file -> what of beacon_jax it may import
    "quant": {"quant"},
    "graph": {"graph"},
    "places.py": set(),
    "disk.py": {"places"},
    "temporary.py": {"disk"},
    "models": {"disk", "models", "places", "tensor_file"},
    "data.py": {"preprocessing", "sources"},
    "preprocessing.py": set(),
    "image_files.py": {"places", "preprocessing"},
    "folder_labels.py": {"image_files"},
    "sources.py": {"folder_labels", "image_files", "places"},
    "batches.py": set(),
    "metrics": {"metrics"},
    "evaluate.py": {"batches", "metrics"},
    "norms.py": {"graph"},
    "row_scales.py": {"frameworks", "graph"},
    "tuning_data.py": {"batches", "metrics"},
    "norm_tuning.py": {"batches", "graph", "leaves", "metrics", "norms", "tuning_data"},
    "leaves.py": {"graph"},
    "finished.py": {"graph", "quant", "report", "spec"},
    "devices.py": {"leaves"},
    "frameworks.py": set(),
    "streams.py": {"devices", "disk", "temporary"},
    "execution.py": {"streams"},
    "float_stats.py": {"leaves", "quant"},
    "version.py": set(),
    "tensor_file.py": {"disk", "leaves", "places"},
    "packed.py": {"graph", "quant"},
    "packed_function.py": {"packed"},
    "version_1.py": {"graph", "packed", "quant"},
    "checkpoint.py": {"graph", "packed", "quant", "tensor_file", "version_1"},
    "quantized_file.py": {
        "checkpoint", "graph", "metrics", "packed", "quant", "quantized_model", "report", "spec", "tensor_file",
        "version", "version_1"
    },
    "row_sample.py": set(),
    "spec.py": {"graph", "quant", "row_sample"},
    "report.py": {"graph", "quant", "spec"},
    "calibration_data.py": {"graph"},
    "influence.py": {"devices", "graph", "output_change"},
    "quantized_leaves.py": {"devices", "graph", "quant"},
    "calibration_step.py": {"devices", "graph", "quant", "row_sample"},
    "calibration.py": {
        "calibration_data", "calibration_step", "devices", "execution", "float_stats", "graph", "influence", "quant",
        "quantized_leaves", "row_sample", "streams"
    },
    "quantized_model.py": {"quant", "report", "spec"},
    "run.py": {"finished", "quant", "report"},
    "pipeline.py": {
        "calibration", "devices", "execution", "finished", "float_stats", "frameworks", "graph", "leaves", "quant",
        "quantized_model", "report", "run", "spec"
    },
    "abstract_run.py": {
        "calibration", "calibration_data", "devices", "execution", "float_stats", "graph", "pipeline", "run", "spec"
    },
    "layer_errors.py": {"calibration", "execution", "frameworks", "graph", "leaves", "quant", "quantized_model"},
    "knapsack.py": set(),
    "output_change.py": {"devices", "execution"},
    "bit_budget.py": {"graph", "pipeline", "quant", "spec"},
    "bit_widths.py": {
        "batches", "bit_budget", "calibration", "devices", "execution", "float_stats", "frameworks", "graph",
        "knapsack", "leaves", "output_change", "pipeline", "quantized_leaves", "quantized_model", "report", "spec"
    },
}  # fmt: skip


# Optional packages, for these files alone, and only inside functions.
LAZY = {"models/state_dict.py": {"torch"}, "places.py": {"upath"}}


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if path == PACKAGE / "__init__.py":
        return
    name = path.relative_to(PACKAGE)
    tree = ast.parse(path.read_text())
    everywhere = set(imports(ast.walk(tree)))
    own = {module.split(".")[1] for module in everywhere if module.startswith("beacon_jax.")}
    assert own <= ALLOWED[name.parts[0]]
    others = {module.split(".")[0] for module in everywhere} - {"beacon_jax"}
    assert not others & {"experiments", "configs"}
    assert others & {"fsspec", "tensorflow", "torch", "upath"} <= LAZY.get(str(name), set())
    at_import = {module.split(".")[0] for module in imports(tree.body)}
    assert not at_import & {"tensorflow", "torch", "sklearn", "tensorflow_datasets", "PIL"}
    if name.parts[0] in ("quant", "graph"):
        assert not others & {"flax", "optax", "safetensors", "sklearn"}


TESTS = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_no_test_imports_another(path):
    """What several need is in a file of its own."""
    found = imports(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [name for name in found if name.startswith("tests.") and ".test_" in name]
