"""What a script would do, without doing it: --dry_run of experiments.tables and experiments.quantize.

The model is traced, and the data is read for the digests by which it is known what is there already. No model is run,
nothing is compiled or written.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Sharding
from tabulate import tabulate

from beacon_jax.abstract_run import AbstractPlacement, Program
from beacon_jax.pipeline import plan_layers
from beacon_jax.places import listed
from experiments import mixed
from experiments.abstract_experiment import AbstractExperiment
from experiments.amounts import amount, duration
from experiments.experiment import Experiment
from experiments.grid import Cell, grouped
from experiments.results import Result

Layers = Sequence[Sequence[Mapping[str, Any]]]

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compute nothing; print what there is to do, its memory and time.")


class Largest:
    """A Recorder of the program that takes most memory, by its arguments and results.

    Attributes:
      name: of the program; "" before the first.
      size: its bytes on each device, the most where results are shared out over several.
      most: as of Programs, and of no meaning here.
    """

    def __init__(self):
        self.name, self.size, self.most = "", 0, 1
        self._seen: dict[tuple, Program] = {}

    def times(self, _count: int) -> contextlib.AbstractContextManager:
        """As of Programs: the size stays."""
        return contextlib.nullcontext()

    def ran(self, program: Program) -> list[Sharding] | None:
        """Looks at a program, the first time that it is called with its shapes."""
        key = id(program.code), tuple((a.shape, a.dtype) for a in program.args)
        if key not in self._seen:
            self._seen[key] = program  # kept, so that the id of its code stays its own
            given = [_bytes(a.sharding.shard_shape(a.shape), a.dtype) for a in program.args]
            kept = sum(size for size, donated in zip(given, program.donated, strict=True) if not donated)
            size = kept + sum(_bytes(a.shape, a.dtype) for a in program.code.out_avals)
            if size > self.size:
                self.name, self.size = program.name, size
        return None


def table_plan(grid: list[Cell], results: dict[str, Result], past: Layers, experiment: Experiment, out: Path) -> str:
    """The plan of a table.

    Args:
      grid: its cells, with their facts.
      results: {key: result} of those that are there.
      past: the layers of all results in the folder, of these and of other settings, as LayerReport's fields.
      experiment: of the task; nothing of it is run.
      out: the folder.
    """
    todo = grouped(cell for cell in grid if cell.key not in results)
    rows, alphabets = (list(dict.fromkeys(getattr(c, f) for c in grid)) for f in ("row", "alphabet"))
    body = [
        [row, *(_state([c for c in grid if (c.row, c.alphabet) == (row, a)], results) for a in alphabets)]
        for row in rows
    ]
    heads = ["row", *(f"{a} bit" if a else "" for a in alphabets)]
    missing = sum(map(len, todo))
    parts = [
        tabulate(body, heads, tablefmt="github", disable_numparse=True),
        f"{len(grid) - missing} of {len(grid)} results are there, {missing} are to be computed",
        quantized_plan(todo, past, experiment, out),
    ]
    return "\n\n".join(parts)


def quantized_plan(groups: list[list[Cell]], past: Layers, experiment: Experiment, out: Path) -> str:
    """What groups of cells that share a quantized model take: layers, memory, time. Arguments as `table_plan`."""
    own = [group for group in groups if group[0].quant is not None]
    if not own:
        return "no model is to be quantized"
    return "\n\n".join([_layers(own[0][0], experiment), _memory(own, experiment), _time(own, past, experiment, out)])


def _state(cells: Sequence[Cell], results: dict[str, Result]) -> str:
    there = sum(cell.key in results for cell in cells)
    if not cells:
        return ""
    if there in (0, len(cells)):
        return "there" if there else "to do" if len(cells) == 1 else f"{len(cells)} to do"
    return f"{there} of {len(cells)} there"


def _layers(cell: Cell, experiment: Experiment) -> str:
    """The layers that are quantized; which these are is the same for all rows."""
    model, examples = experiment.traced(experiment.drawn(cell.calibration_images, cell.seed))
    names = plan_layers(model, mixed.spec_of(cell.quant))
    layers = [layer for layer in model.layers if layer.name in names]
    body = [
        [
            layer.name,
            layer.kind,
            " × ".join(map(str, layer.shape)),
            f"{layer.rows * cell.calibration_images // examples:,}",
            amount(4 * layer.shape[-2] ** 2 * math.prod(layer.shape[:-2])),
        ]
        for layer in layers
    ]
    parameters = sum(math.prod(layer.shape) for layer in layers)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.task.params))
    heads = ["layer", "kind", "kernel", "calibration rows", "Gram matrix"]
    shown = tabulate(body, heads, tablefmt="github", disable_numparse=True)
    return f"{shown}\n\n{len(layers)} layers, {parameters:,} of the model's {total:,} parameters"


def _memory(groups: list[list[Cell]], experiment: Experiment) -> str:
    """For each row the program that takes most memory."""
    params = sum(_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(experiment.task.params))
    body, sizes = [], []
    for title, group in {group[0].title: group for group in groups}.items():
        largest, why = largest_program(group, experiment)
        sizes.append(largest.size)
        body.append([title, largest.name or f"not known: {why}", amount(largest.size) if largest.name else ""])
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    has = f"; {device.device_kind} has {amount(limit)}" if limit else ""
    shown = tabulate(body, ["row", "largest program", "its memory"], tablefmt="github", disable_numparse=True)
    return (
        f"{shown}\n\nmemory of each device, an estimate: {amount(max(sizes))} for arguments and results of the largest "
        f"program, beside {amount(2 * params)} for the parameters before and after{has}; what the compiler needs in "
        "between is not in it (experiments.compile_ahead tells)"
    )


def largest_program(group: list[Cell], experiment: Experiment) -> tuple[Largest, str]:
    """(The largest program of cells that share a quantized model, why it is not known): traced for a single batch."""
    task, execution, largest = experiment.task, experiment.execution, Largest()
    batch = next(iter(experiment.drawn(group[0].calibration_images, group[0].seed)))
    one = dataclasses.replace(task, calibration=lambda count, seed: [batch], test=[next(iter(task.test))])
    placement = AbstractPlacement(execution.mesh, jax.local_devices()[0], largest)
    abstract = AbstractExperiment(one, execution, placement, largest)
    quant = {**group[0].quant, "allow_few_rows": True}  # one batch may be too few for a layer
    abstract.run([[dataclasses.replace(cell, quant=quant) for cell in group]])
    return largest, "; ".join(abstract.left_out.values())


def _time(groups: list[list[Cell]], past: Layers, experiment: Experiment, out: Path) -> str:
    """The time to quantize, from that of the same methods before."""
    known: dict[str, list[float]] = {}
    for layers in past:
        if layers:
            seconds = sum(layer["gram_seconds"] + layer["solve_seconds"] for layer in layers)
            known.setdefault(layers[0]["method"], []).append(seconds)
    total, unknown, stored = 0.0, set(), 0
    for group in groups:
        method = group[0].quant["method"]
        finished = len(listed(out / "layers" / group[0].quant_key, "*.safetensors"))
        stored += finished
        if method in known:
            model, _ = experiment.traced(experiment.drawn(group[0].calibration_images, group[0].seed))
            count = len(plan_layers(model, mixed.spec_of(group[0].quant)))
            total += sum(known[method]) / len(known[method]) * (1 - finished / count)
        else:
            unknown.add(method)
    of = sum(map(len, known.values()))
    said = f"{len(groups)} models to quantize; {stored} layers of them are there already"
    if len(unknown) < len({group[0].quant["method"] for group in groups}):
        said += f"; time: {duration(total)} for Gram statistics and solving, by the {of} results in {out}"
        said += f", and unknown for {', '.join(sorted(unknown))}" if unknown else ""
    else:
        said += "; time: unknown, since no result of these methods is there"
    return f"{said}; evaluation and norm tuning come on top"


def _bytes(shape: tuple[int, ...], dtype) -> int:
    return math.prod(shape) * dtype.itemsize
