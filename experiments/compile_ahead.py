"""Compiles all that a run would, for devices that need not be there: what would not compile, not fit, copy or wait.

    python -m experiments.compile_ahead --config=configs/deit_b_imagenet.py --target=v5e:2x2 --script=quantize

Prints a table of the programs that experiments/tables.py (or experiments/quantize.py) runs with this config: seconds of
one core to compile, memory of each device, what devices exchange, custom calls, kernels in an iteration of the
innermost loop, and kernels of the whole run; and warns of what is wrong with them. Nothing is computed. The image tasks
need neither weights nor images for it, other tasks theirs.
"""

import dataclasses
import importlib
from collections import Counter

import jax
from absl import flags
from tabulate import tabulate

from beacon_jax.abstract_run import AbstractPlacement
from experiments import common
from experiments.abstract_experiment import AbstractExperiment
from experiments.amounts import amount
from experiments.compiled_code import Visit
from experiments.grid import cells, grouped, single_cell
from experiments.programs import HELPERS, LARGE, Programs, Row
from experiments.targets import EXAMPLES, Target, find_target
from experiments.task import Task, make_task

_TARGET = flags.DEFINE_string("target", "v5e:1", f"The devices: {EXAMPLES}.")
_SCRIPT = flags.DEFINE_enum("script", "tables", ["tables", "quantize"], "The script that is to run.")
SHAPES = "_shapes"  # what the name of a task's function has at its end, of one that gives shapes in place of arrays


def task_of_shapes(config) -> Task:
    """The task of a config, with shapes in place of arrays where its module has a function for that."""
    module, _, function = config.task.partition(":")
    try:
        has = hasattr(importlib.import_module(module), function + SHAPES)
    except (ImportError, ValueError):
        has = False  # what is wrong make_task says
    if not has:
        return make_task(config)
    with config.unlocked():
        other = config.copy_and_resolve_references()
    other.task += SHAPES
    return make_task(other)


def compile_all(config, target: Target, script: str = "tables") -> tuple[Programs, dict[str, str]]:
    """The programs of a run of this config on a target, compiled, and {what is left out: why}.

    Raises:
      ValueError: as the script itself; a mesh that does not fit the target.
    """
    task = task_of_shapes(config)
    programs, execution = Programs(target.chip.platform), common.make_execution(config, devices=target.devices)
    placement = AbstractPlacement(execution.mesh, target.devices[0], programs)
    experiment = AbstractExperiment(task, execution, placement, programs)
    if script == "quantize":
        cell = single_cell(config, task.identity)
        float_cell = dataclasses.replace(cell, quant=None, tuning=None)
        groups = [[float_cell], [dataclasses.replace(cell, tuning=None), *([cell] if cell.tuning else [])]]
    else:
        groups = grouped(cells(config, task.identity))
    experiment.run(groups)
    return programs, experiment.left_out


def show(programs: Programs, target: Target, *, true_float32: bool = True) -> str:
    """The table of the programs, what they come to, and a line for each thing that is wrong with them."""
    rows = [_line(row) for row in programs.rows]
    head = ["program", "of", "runs", "compile s", "arguments", "temporary", "exchanged", "custom calls", "in loop"]
    table = tabulate(rows, [*head, "kernels"], tablefmt="github", disable_numparse=True)
    kernels = Counter({HELPERS: sum(programs.helpers.values())})
    for row in programs.rows:
        kernels[row.name] += row.runs * row.code.launches[0]
    bound = "at most " if any(row.code.launches[1] for row in programs.rows) else ""
    most = ", ".join(f"{name} {count:,}" for name, count in kernels.most_common(4))
    largest = max(row.memory for row in programs.rows)
    of = f" of {amount(target.chip.memory)} ({target.chip.source})" if target.chip.memory else ""
    said = [
        f"{len(programs.rows)} programs, {sum(row.seconds for row in programs.rows):.0f} s of one core to compile",
        f"kernels of the whole run, on each device: {bound}{kernels.total():,} ({most} …)",
        f"memory of the largest program, on each device: {amount(largest)}{of}",
    ]
    return "\n".join([table, "", *said, *warnings(programs, target, true_float32=true_float32)])


def warnings(programs: Programs, target: Target, *, true_float32: bool = True, large: int = LARGE) -> list[str]:
    """A sentence for each thing that is wrong with the programs on the target.

    Args:
      programs: compiled.
      target: the devices.
      true_float32: whether products of float32 numbers are to be in full float32.
      large: bytes from which on an array counts as a large one.
    """
    found = []
    for row in programs.rows:
        name = f"{row.name} ({row.shapes})"
        rough = row.code.rough_products()
        if rough and true_float32:
            found.append(f"{name}: {len(rough)} products of float32 numbers are not true float32, such as {rough[0]}")
        given = [v.instruction for v in row.code.collectives() if v.instruction.collective != "all-reduce"]
        gathered = [own for own in given if own.nbytes >= large]
        if gathered:
            own = max(gathered, key=lambda own: own.nbytes)
            found.append(f"{name}: an array of {amount(own.nbytes)} goes to other devices whole ({own.collective})")
        if target.chip.memory and row.memory > target.chip.memory:
            found.append(f"{name}: {amount(row.memory)} do not fit the chip's {amount(target.chip.memory)}")
    return [f"warning: {said}" for said in found]


def _line(row: Row) -> list[str]:
    count, bound = row.code.launches
    inner = row.code.innermost
    calls = ", ".join(f"{n} {name}" for name, n in row.code.custom_calls().items())
    return [
        row.name,
        row.shapes,
        f"{row.runs:,}",
        f"{row.seconds:.1f}",
        amount(row.arguments),
        amount(row.temporary),
        exchanged(row.code.collectives()),
        calls or "–",
        "–" if inner is None else f"{inner[0]} × {inner[1]:,}",
        f"{'≤ ' if bound else ''}{count:,}",
    ]


def exchanged(visits: list[Visit]) -> str:
    """What devices exchange in a call: how often, of each kind, and the bytes of all of them."""
    kinds = dict.fromkeys(v.instruction.collective for v in visits)
    said = []
    for kind in kinds:
        own = [v for v in visits if v.instruction.collective == kind]
        bound = "≤ " if any(v.bound for v in own) else ""
        size = amount(sum(v.times * v.instruction.nbytes for v in own))
        said.append(f"{bound}{sum(v.times for v in own):,} {kind} of {size}")
    return ", ".join(said) or "–"


def main(_):
    jax.config.update("jax_enable_compilation_cache", False)  # else a second run would show no time
    config = common.get_config()
    target = find_target(_TARGET.value)
    programs, left_out = compile_all(config, target, _SCRIPT.value)
    print(show(programs, target, true_float32=config.execution.forward_dtype != "bfloat16"))
    for what, why in left_out.items():
        print(f"not compiled: {what}, because {why}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # before anything looks for devices: what is there is not needed
    common.run(main)
