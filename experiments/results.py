"""What a run leaves behind, to go on from after it was stopped: result lines, and the layers of unfinished cells."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beacon_jax import LayerReport
from beacon_jax.checkpoint import load_layer, save_layer
from beacon_jax.disk import disk_errors, replace_text
from beacon_jax.evaluate import Measured
from beacon_jax.places import exists, is_remote, listed, read, remove_folder
from experiments import hosts
from experiments.code_counts import CodeCounts, read_counts
from experiments.grid import Cell
from experiments.lines import read_lines

ABOUT = "about.json"
DELETED = ".deleted"


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
      codes: how often each level is used in each layer; empty where `layers` is, and in lines from before it was there.
    """

    cell: Cell
    metrics: Mapping[str, Measured]
    layers: tuple[LayerReport, ...] = ()
    coverage: Mapping[str, float] | None = None
    tuned: Mapping[str, float] | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    codes: CodeCounts = dataclasses.field(default_factory=dict)

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
        for layer in found["layers"]:
            del layer["options"]  # which the cell has
        cell = found.pop("cell") | {"key": self.cell.key, "row": self.cell.row}
        return cell | {"layer_error": self.layer_error, "seconds": self.seconds} | found

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Result":
        """Of what `line` gave. KeyError or TypeError where it is something else."""
        return cls(
            Cell(**{field.name: line[field.name] for field in dataclasses.fields(Cell)}),
            {name: Measured(**measured) for name, measured in line["metrics"].items()},
            tuple(read_report(fields) for fields in line["layers"]),
            line["coverage"],
            line["tuned"],
            line["skipped"],
            read_counts(line.get("codes")),
        )


def read_report(fields: Mapping[str, Any]) -> LayerReport:
    """Of what dataclasses.asdict and JSON made of one. KeyError or TypeError where it is something else."""
    return LayerReport(**{**fields, "shape": tuple(fields["shape"])})


def read_results(path: Path) -> list[Result]:
    """The results of a file, as the first process finds them. ValueError with path and number of what is no result."""
    return read_lines(path, Result.of_line)


def read_about(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON of a file beside stored layers. ValueError, with the path, where it does not have these keys."""
    with disk_errors(path, "read"):
        held = read(path)
    try:
        said = json.loads(held)
        complete = all(key in said for key in keys)
    except (ValueError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged, or of another version of this script; remove its folder to go on")
    return said


class LayerStore:
    """The finished layers of one quantized model, each in a file of `folder`."""

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None, check: Callable[[], None] = lambda: None):
        """What of its cell it is `about` is written beside the layers; `check` is called before each is saved."""
        self._folder, self._about, self._check = folder, about, check

    def save(self, report: LayerReport, matrix) -> None:
        """Keeps a layer; the file appears in one atomic step. Only the first process writes."""
        if not hosts.first():
            return
        self._begin()
        name = report.layer.replace("/", ".") + ".safetensors"
        save_layer(self._folder / name, matrix, dataclasses.asdict(report))

    def save_choice(self, choice: Mapping[str, Any]) -> None:
        """Keeps which alphabets were chosen for the layers, as JSON, in one atomic step."""
        if hosts.first():
            self._begin()
            replace_text(self._folder / "choice.json", json.dumps(choice))

    def _begin(self) -> None:
        self._check()
        if self._about is not None and not exists(self._folder / ABOUT):
            replace_text(self._folder / ABOUT, json.dumps(self._about))

    def load_choice(self) -> dict[str, Any] | None:
        """What `save_choice` kept, as the first process finds it; None where there is nothing."""
        path = self._folder / "choice.json"
        return hosts.from_first(read_about(path, ("rules", "shown")) if hosts.first() and exists(path) else None)

    def load(self) -> dict[str, tuple]:
        """{layer name: (report, quantized kernel)} of all that is kept, as the first process finds it."""
        return hosts.from_first(self._load() if hosts.first() else None)

    def _load(self):
        finished = {}
        for path in sorted(listed(self._folder, "*.safetensors")):
            matrix, fields = load_layer(path)
            try:
                report = read_report(fields)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is of another version of this script; remove it to go on") from error
            finished[report.layer] = report, matrix
        return finished

    def clear(self) -> None:
        """Deletes the layers, once the results that need them are written."""
        if hosts.first() and is_remote(self._folder):
            remove_folder(self._folder)  # half of it is a stored model that is not finished
        elif hosts.first() and self._folder.exists():
            deleted = self._folder.with_name(self._folder.name + DELETED)
            shutil.rmtree(deleted, ignore_errors=True)
            self._folder.rename(deleted)  # in one step, so that no half of it is taken for a stored model
            shutil.rmtree(deleted, ignore_errors=True)
