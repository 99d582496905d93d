"""What a run leaves behind, to go on from after it was stopped: result lines, and the layers of unfinished cells."""

import dataclasses
import json
import shutil
from pathlib import Path

from absl import logging

from beacon_jax import LayerReport
from beacon_jax.checkpoint import load_layer, save_layer
from experiments import hosts


def read_results(path: Path) -> dict[str, dict]:
    """{key: result} from JSON lines, as the first process finds them.

    A last line cut short by an interruption is dropped from the file.
    """
    return hosts.from_first(_read_results(path) if hosts.first() else None)


def append_result(path: Path, result: dict) -> None:
    """Adds a result to the JSON lines; only the first process writes."""
    if hosts.first():
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")


def _read_results(path):
    if not path.exists():
        return {}
    *complete, rest = path.read_text().split("\n")
    if rest:
        logging.warning("%s ends in an unfinished line, which is dropped", path)
        repaired = path.with_name(path.name + ".partial")
        repaired.write_text("".join(line + "\n" for line in complete))
        repaired.replace(path)
    results = {}
    for number, line in enumerate(complete, 1):
        try:
            result = json.loads(line)
            results[result["key"]] = result
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is not a result of this script; remove it to go on") from error
    return results


class LayerStore:
    """The finished layers of one quantized model, each in a file of `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save(self, report: LayerReport, matrix) -> None:
        """Keeps a layer; the file appears in one atomic step. Only the first process writes."""
        if not hosts.first():
            return
        name = report.layer.replace("/", ".") + ".safetensors"
        save_layer(self._folder / name, matrix, dataclasses.asdict(report))

    def load(self) -> dict[str, tuple]:
        """{layer name: (report, quantized kernel)} of all that is kept, as the first process finds it."""
        return hosts.from_first(self._load() if hosts.first() else None)

    def _load(self):
        finished = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            matrix, fields = load_layer(path)
            try:
                report = LayerReport(**{**fields, "shape": tuple(fields["shape"])})
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is of another version of this script; remove it to go on") from error
            finished[report.layer] = report, matrix
        return finished

    def clear(self) -> None:
        """Deletes the layers, once the results that need them are written."""
        if hosts.first():
            shutil.rmtree(self._folder, ignore_errors=True)
