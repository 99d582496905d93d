"""What the scripts do with the files of quantized models: show them, evaluate them, hand them on."""

import math
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict
from tabulate import tabulate

from beacon_jax import ModelRecord, PackedLeaf, load_packed, load_quantized, load_record
from beacon_jax.disk import try_place
from beacon_jax.evaluate import Measured
from beacon_jax.models.export import save_state_dict
from beacon_jax.models.vit import create_vit
from beacon_jax.places import stat
from experiments.experiment import Experiment
from experiments.task import make_task

ROUNDING = 1e-6  # relative: the same numbers on another machine
_COLUMNS = [*"layer shape method alphabet levels".split(), "bits per weight", "error", "options"]


def layer_table(leaves: Mapping[str, object], record: ModelRecord) -> str:
    """A line for each quantized kernel: what it is stored as, and what is recorded of how it was made."""
    reports = {report.layer: report for report in record.reports}
    rows = {}
    for leaf in (leaf for leaf in leaves.values() if isinstance(leaf, PackedLeaf)):
        for name, kernel in zip(leaf.layers, leaf.kernels, strict=True):
            report, options = reports.get(name), record.options.get(name, {})
            bits = sum(8 * a.nbytes for a in (kernel.words, kernel.scale, kernel.offset) if a is not None)
            rows[name] = (
                name,
                "×".join(map(str, kernel.shape)),
                report.method if report else "",
                report.alphabet if report else "",
                len(kernel.levels),
                bits / math.prod(kernel.shape),
                report.output_error if report else None,
                ", ".join(f"{key}={value}" for key, value in options.items()),
            )
    order = [report.layer for report in record.reports] or list(rows)
    return tabulate([rows[name] for name in order], headers=_COLUMNS, floatfmt=".4g", disable_numparse=[3])


def about(path: Path, leaves: Mapping[str, object], record: ModelRecord) -> str:
    """Lines on the whole file."""
    packed = {name for name, leaf in leaves.items() if isinstance(leaf, PackedLeaf)}
    weights = sum(math.prod(leaf.shape) for leaf in leaves.values())
    size = stat(path).st_size
    state = "checksums are right" if record.version > 1 else "no checksums"
    lines = [
        f"{path}: format version {record.version}, {state}",
        f"size: {size:,} bytes, {8 * size / weights:.2f} bits per parameter",
        f"parameters: {weights:,} in {len(leaves)} arrays, {len(packed)} of them with packed kernels",
    ]
    said = {"model": record.model, "licence": record.licence, "fingerprint": record.fingerprint}
    said["written by"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if record.spec is not None:
        said["spec"] = ", ".join(f"{key}={value}" for key, value in record.spec.to_dict().items() if value)
    for name, measured in record.metrics.items():
        said[name] = f"{measured.value:.6g} ± {measured.stderr:.2g} of {measured.count} test examples"
    lines += [f"{key}: {value}" for key, value in said.items() if value]
    if record.coverage is not None:
        lines.append(record.coverage.summary())
    return "\n".join(lines)


def evaluated(config: ConfigDict, path: str | Path) -> str:
    """A table of the task's metrics, now and in the file. ValueError where the file is not of the config's model."""
    record = load_record(path)
    if record.model not in ("", config.model.name):
        raise ValueError(f"{path} holds the model {record.model}, and the configuration is for {config.model.name}")
    task = make_task(config)
    measured = Experiment(config, task).evaluate(load_packed(path, like=task.params))
    rows = []
    for name, metric in task.metrics.items():
        now, then = measured[name], record.metrics.get(name)
        shown = f"{now.value:{metric.shown}} ± {now.stderr:{metric.shown}}"
        stored = "–" if then is None else f"{then.value:{metric.shown}}"
        rows.append([metric.title or name, shown, now.count, stored, "" if then is None else _compared(now, then)])
    return tabulate(rows, headers=["metric", "now", "test examples", "in the file", ""], disable_numparse=True)


def _compared(now: Measured, then: Measured) -> str:
    if now.count != then.count:
        return f"of {then.count} test examples"
    if now.value == then.value:
        return "the same"
    rounding = math.isclose(now.value, then.value, rel_tol=ROUNDING)
    return "the same but for rounding" if rounding else f"{now.value - then.value:+.2g}"


def export(path: str | Path, out: str | Path, naming: str, model: str | None = None) -> str:
    """Writes the file and says what is in it. ValueError where the model is not known, or not that of the file."""
    try_place(out)
    name = model or load_record(path).model
    if not name:
        raise ValueError(f"{path} does not say of which model it is; give --model")
    params, _ = load_quantized(path)
    return save_state_dict(out, params, create_vit(name), naming)
