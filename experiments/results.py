"""What a run leaves behind, to go on from after it was stopped: result lines, and the layers of unfinished cells."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from beacon_jax import LayerReport
from beacon_jax.checkpoint import load_layer, save_layer
from beacon_jax.evaluate import Measured
from experiments import hosts
from experiments.grid import Cell


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out for one cell.

    Fields:
      cell: which.
      metrics: {name: value, standard error, number of test examples}.
      layers: what was done to each layer; none for the float model and after norm tuning, which changes no layers.
      coverage: what of the model is quantized; likewise.
      tuned: how norm tuning went.
      skipped: examples left out of calibration, tuning and test because they could not be read.
    """

    cell: Cell
    metrics: Mapping[str, Measured]
    layers: tuple[LayerReport, ...] = ()
    coverage: Mapping[str, float] | None = None
    tuned: Mapping[str, float] | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def layer_error(self) -> float | None:
        """Mean of the layers' relative output errors."""
        return float(np.mean([layer.output_error for layer in self.layers])) if self.layers else None

    @property
    def seconds(self) -> float | None:
        """To solve all layers."""
        return sum(layer.solve_seconds for layer in self.layers) if self.layers else None

    def line(self) -> dict[str, Any]:
        """As it is written."""
        found = dataclasses.asdict(self)
        return (
            found.pop("cell") | {"row": self.cell.row, "layer_error": self.layer_error, "seconds": self.seconds} | found
        )

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Result":
        """Of what `line` gave. KeyError or TypeError where it is something else."""
        return cls(
            Cell(**{field.name: line[field.name] for field in dataclasses.fields(Cell)}),
            {name: Measured(**measured) for name, measured in line["metrics"].items()},
            tuple(_report(fields) for fields in line["layers"]),
            line["coverage"],
            line["tuned"],
            line["skipped"],
        )


def _report(fields: Mapping[str, Any]) -> LayerReport:
    return LayerReport(**{**fields, "shape": tuple(fields["shape"])})


def read_results(path: Path) -> dict[str, Result]:
    """{key: result} from JSON lines, as the first process finds them.

    A last line cut short by an interruption is dropped from the file.
    """
    return hosts.from_first(_read_results(path) if hosts.first() else None)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON; only the first process writes."""
    if hosts.first():
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def complete_lines(path: Path) -> list[str]:
    """The lines of a file, none where there is no file; a last one cut short is dropped from it."""
    if not path.exists():
        return []
    *complete, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        logging.warning("%s ends in an unfinished line, which is dropped", path)
        repaired = path.with_name(path.name + ".partial")
        repaired.write_text("".join(line + "\n" for line in complete), encoding="utf-8")
        repaired.replace(path)
    return complete


def _read_results(path):
    results = {}
    for number, line in enumerate(complete_lines(path), 1):
        try:
            result = Result.of_line(json.loads(line))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"line {number} of {path} is not a result of this version of the script; remove it to go on"
            ) from error
        results[result.cell.key] = result
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

    def save_choice(self, choice: Mapping[str, Any]) -> None:
        """Keeps which alphabets were chosen for the layers, as JSON, in one atomic step."""
        if hosts.first():
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / "choice.json.partial"
            partial.write_text(json.dumps(choice), encoding="utf-8")
            partial.replace(self._folder / "choice.json")

    def load_choice(self) -> dict[str, Any] | None:
        """What `save_choice` kept, as the first process finds it; None where there is nothing."""
        path = self._folder / "choice.json"
        return hosts.from_first(
            json.loads(path.read_text(encoding="utf-8")) if hosts.first() and path.exists() else None
        )

    def load(self) -> dict[str, tuple]:
        """{layer name: (report, quantized kernel)} of all that is kept, as the first process finds it."""
        return hosts.from_first(self._load() if hosts.first() else None)

    def _load(self):
        finished = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            matrix, fields = load_layer(path)
            try:
                report = _report(fields)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is of another version of this script; remove it to go on") from error
            finished[report.layer] = report, matrix
        return finished

    def clear(self) -> None:
        """Deletes the layers, once the results that need them are written."""
        if hosts.first():
            shutil.rmtree(self._folder, ignore_errors=True)
