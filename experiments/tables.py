"""The table of methods and bit widths: python -m experiments.tables --config=configs/digits.py

Runs every row of config.table at every alphabet on the model and data of config.task, appends one JSON line per result
to {config.out}/results.jsonl, and renders table.md, table.csv and a plot of the main metric beside it. A run that was
stopped goes on where it was: results in the file from the same config and the same model and data are not computed
again, nor are the layers that were finished. --render_only shows what is there.
"""

import dataclasses
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from experiments import common, hosts, render, row_scales
from experiments.experiment import Experiment
from experiments.grid import Cell, cells
from experiments.results import LayerStore, Result, append_line, read_results
from experiments.task import Task, make_task

_RENDER_ONLY = flags.DEFINE_bool("render_only", False, "Compute nothing; show the results that are there.")


class RenderError(ValueError):
    """Results that are there and cannot be shown."""


def render_all(grid: list[Cell], results: dict[str, Result], config, task: Task) -> str:
    """Writes the table, its CSV and the plot of the results that are there; returns the table.

    Raises RenderError for what tabulate, matplotlib or a metric's format make of them, OSError for the disk.
    """
    out = Path(config.out)
    # A row may have another title by now.
    here = [dataclasses.replace(results[cell.key], cell=cell) for cell in grid if cell.key in results]
    own = config.table.published if config.table.published_model == config.model.name else ()
    try:
        markdown = render.markdown(grid, here, task.metrics, [tuple(number) for number in own])
        if hosts.first():
            (out / "table.md").write_text(markdown, encoding="utf-8")
            render.write_csv(here, out / "table.csv")
            render.plot(here, task.metrics, out / f"{task.main}.png")
    except OSError:
        raise
    except Exception as error:  # whatever these libraries raise
        reason = f"{type(error).__name__}: {error}"
        raise RenderError(f"the results are in {out / 'results.jsonl'}, but cannot be shown ({reason})") from error
    return markdown


def compute(grid: list[Cell], results: dict[str, Result], config, task: Task) -> list[str]:
    """Computes what is missing of `results`, and adds it there and to the file; returns what failed."""
    experiment = Experiment(config, task)
    experiment.check(grid)
    out = Path(config.out)
    groups: dict[str, dict[str, Cell]] = {}
    # Cells of the same calibration examples one after another, since they share what is computed from these.
    for cell in sorted(grid, key=lambda cell: (cell.calibration_images, cell.seed, row_scales.wanted(cell.quant))):
        if cell.key not in results:
            groups.setdefault(cell.quant_key, {})[cell.key] = cell
    failures = []
    with tqdm(desc="results", unit="result", total=sum(map(len, groups.values()))) as bar:
        for quant_key, cells_by_key in groups.items():
            group = list(cells_by_key.values())
            name = f"{group[0].row}, {group[0].alphabet} bit" if group[0].quant else group[0].row
            bar.set_postfix_str(name)
            store = LayerStore(out / "layers" / quant_key)
            try:
                for result in experiment.results(group, store):
                    results[result.cell.key] = result
                    append_line(out / "results.jsonl", result.line())
                    try:
                        render_all(grid, results, config, task)
                    except RenderError as error:  # the end of the run says so again
                        logging.warning("%s", error)
                    bar.update()
                store.clear()
            except ValueError as error:  # a method that cannot do this one; the others go on
                failures.append(f"{name}: {error}")
    if hasattr(task.test, "summary"):
        print(f"test data: {task.test.summary()}")
    return failures


def main(_):
    config = common.get_config()
    task = make_task(config)
    grid = cells(config, task.fingerprint())
    out = Path(config.out)
    if hosts.first():
        out.mkdir(parents=True, exist_ok=True)
    results = read_results(out / "results.jsonl")
    before = sum(cell.key in results for cell in grid)
    failures = [] if _RENDER_ONLY.value else compute(grid, results, config, task)
    after = sum(cell.key in results for cell in grid)
    print(render_all(grid, results, config, task))
    print(f"{after - before} of {len(grid)} results computed, {before} were there already, {len(grid) - after} missing")
    print(f"table: {out / 'table.md'} and {out / 'table.csv'}")
    print(f"plot:  {out / task.main}.png")
    print(f"lines: {out / 'results.jsonl'}")
    if failures:
        raise ValueError(f"{len(failures)} could not be computed: " + "; ".join(failures))


if __name__ == "__main__":
    common.run(main)
