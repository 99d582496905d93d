"""The table of methods and bit widths: python -m experiments.tables --config=configs/digits.py

Runs every row of config.table at every alphabet on the model and data of config.task, appends one JSON line per result
to {config.out}/results.jsonl, and renders table.md, table.csv and a plot of the main metric beside it, and at its end
report.html. A run that was stopped goes on where it was: results in the file from the same config and the same model
and data are not computed again, nor are the layers that were finished. --render_only shows what is there.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from beacon_jax.disk import replace_file, replace_text
from experiments import common, hosts
from experiments.experiment import Experiment
from experiments.grid import Cell, cells, grouped
from experiments.layer_folders import open_store, remove_finished
from experiments.provenance import check_reuse, taken
from experiments.reports import facts, png, table
from experiments.reports.result_tables import LONG, RESULTS, result_tables
from experiments.reports.run import write_report
from experiments.results import Result, read_results
from experiments.run_folder import RunFolder
from experiments.task import Task, make_task

_RENDER_ONLY = flags.DEFINE_bool("render_only", False, "Compute nothing; show the results that are there.")

LINES, REPORT = "results.jsonl", "report.html"


class RenderError(ValueError):
    """Results that are there and cannot be shown."""


@contextlib.contextmanager
def _rendering(out: Path) -> Iterator[None]:
    """What tabulate, matplotlib, Bokeh or a metric's format raise becomes RenderError; OSError is for the disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever these libraries raise
        reason = f"{type(error).__name__}: {error}"
        raise RenderError(f"the results are in {out / LINES}, but cannot be shown ({reason})") from error


def _tables(grid: list[Cell], results: dict[str, Result], config, task: Task) -> tuple[list[table.Table], list[Result]]:
    """The tables of the results that are there, and these."""
    # A row may have another title by now.
    here = [dataclasses.replace(results[cell.key], cell=cell) for cell in grid if cell.key in results]
    published = facts.published({"config": config.to_dict()})
    return result_tables(grid, here, task.metrics, published), here


def render_all(grid: list[Cell], results: dict[str, Result], config, task: Task) -> str:
    """Writes the table, its CSV and the plot of the results that are there; returns the table.

    Raises RenderError for what tabulate, matplotlib or a metric's format make of them, OSError for the disk.
    """
    out = Path(config.out)
    with _rendering(out):
        tables, _ = _tables(grid, results, config, task)
        by_name = {own.name: own for own in tables}
        markdown = table.markdown(own for own in tables if own.name not in LONG)
        if hosts.first():
            replace_text(out / "table.md", markdown)
            replace_file(out / "table.csv", lambda path: table.write_csv(by_name[RESULTS], path))
            replace_file(out / f"{task.main}.png", lambda path: png.plot(by_name[task.main], path))
    return markdown


def report(grid: list[Cell], results: dict[str, Result], config, task: Task, computed: bool = True) -> None:
    """Writes the HTML report of the results that are there, some of them `computed` now; raises as `render_all`."""
    out = Path(config.out)
    with _rendering(out):
        if hosts.first():
            about = facts.run_facts(config, task.metrics)
            if not computed:  # what shows results is not what they were computed by
                about["versions"] = facts.read_facts(out).get("versions", {})
            tables, here = _tables(grid, results, config, task)
            write_report(out / REPORT, out.name, tables, here, about, missing=len(grid) - len(here))


@contextlib.contextmanager
def reported_when_stopped(grid: list[Cell], results: dict[str, Result], config, folder: RunFolder, task: Task):
    """Writes the report of what there is when whatever is inside is stopped or fails, and lets that go on."""
    try:
        yield
    except BaseException:
        try:
            if results:
                folder.check()
                report(grid, results, config, task)
        except (OSError, RenderError) as error:
            logging.warning("there is no report of what was computed: %s", error)
        raise


def compute(
    grid: list[Cell], results: dict[str, Result], config, experiment: Experiment, folder: RunFolder
) -> list[str]:
    """Computes what is missing of `results`, and adds it there and to the file; returns what failed."""
    task = experiment.task
    groups, failures = grouped(cell for cell in grid if cell.key not in results), []
    with tqdm(desc="results", unit="result", total=sum(map(len, groups)), disable=None) as bar:
        for group in groups:
            name = f"{group[0].row}, {group[0].alphabet} bit" if group[0].quant else group[0].row
            bar.set_postfix_str(name)
            try:
                store = open_store(folder, group[0], config.reuse)
                for result in experiment.results(group, store):
                    results[result.cell.key] = result
                    folder.append(LINES, result.line())
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


def known(grid: list[Cell], config) -> dict[str, Result]:
    """{key: result} of the cells whose results are in the file; see provenance.taken for what counts as such."""
    path = Path(config.out) / LINES
    found = [(result.cell.settings, result.cell.made_with, result) for result in read_results(path)]
    results = taken([(cell.settings, cell.made_with) for cell in grid], found, config.reuse, f"results in {path}")
    return {cell.key: result for cell, result in zip(grid, results, strict=True) if result is not None}


def drop_finished_layers(grid: list[Cell], results: dict[str, Result], folder: RunFolder) -> None:
    """Removes the layers of models whose results are all there."""
    needed = {cell.quant_key for cell in grid if cell.key not in results}
    finished = {cell.quant_key for cell in grid} - needed
    remove_finished(folder, lambda key, _: key in finished)


def main(_):
    config = common.get_config()
    check_reuse(config.reuse)
    out = Path(config.out)
    with contextlib.ExitStack() as stack:
        # What only shows results may do so beside the run that computes them.
        folder = None if _RENDER_ONLY.value else stack.enter_context(RunFolder(out))
        task = make_task(config)
        grid = cells(config, task.fingerprint())
        experiment = Experiment(config, task, folder)
        if folder is not None:
            folder.try_files(LINES, "table.md", "table.csv", f"{task.main}.png", facts.FILE, REPORT)
            experiment.check(grid)
        grid = experiment.provenance.add_to(grid)
        results, failures = known(grid, config), []
        before = len(results)
        if folder is not None:
            drop_finished_layers(grid, results, folder)
            if hosts.first():
                replace_text(out / facts.FILE, json.dumps(facts.run_facts(config, task.metrics), indent=1))
            with reported_when_stopped(grid, results, config, folder, task):
                failures = compute(grid, results, config, experiment, folder)
        elif not results:  # what is beside them may be of others
            raise ValueError(
                f"{out / LINES} has no results of these settings and this version; table.md and what is beside it stay"
            )
        print(render_all(grid, results, config, task))
        report(grid, results, config, task, computed=folder is not None)
    after = len(results)
    print(f"{after - before} of {len(grid)} results computed, {before} were there already, {len(grid) - after} missing")
    print(f"table: {out / 'table.md'} and {out / 'table.csv'}")
    print(f"plot:  {out / task.main}.png")
    print(f"lines: {out / LINES}")
    print(f"all in one page: {out / REPORT}")
    if failures:
        raise common.Failed(f"{len(failures)} could not be computed: " + "; ".join(failures))


if __name__ == "__main__":
    common.run(main)
