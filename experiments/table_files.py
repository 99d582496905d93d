"""The files that show a table's results: Markdown, CSV, a plot and a report, all made of one list of tables."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from beacon_jax.disk import replace_file, replace_text
from beacon_jax.places import place
from experiments import hosts
from experiments.grid import Cell
from experiments.reports import facts, png, table
from experiments.reports.result_tables import LONG, RESULTS, result_tables
from experiments.reports.run import write_report
from experiments.results import Result
from experiments.run_folder import RunFolder
from experiments.task import Task

LINES, MARKDOWN, CSV, REPORT = "results.jsonl", "table.md", "table.csv", "report.html"
RENDERING_SHARE = 0.1  # of a run's time, at most, for files that show what there is so far


class RenderError(ValueError):
    """Results that are there and cannot be shown."""


def files(task: Task) -> tuple[str, ...]:
    """The names of all that a run writes beside its results, and theirs."""
    return LINES, MARKDOWN, CSV, f"{task.main}.png", facts.FILE, REPORT


def write_facts(config, task: Task) -> None:
    """Writes what identifies the run."""
    if hosts.first():
        text = json.dumps(facts.run_facts(config, task.metrics), indent=1)
        replace_text(place(config.out) / facts.FILE, text)


def render_all(grid: list[Cell], results: dict[str, Result], config, task: Task) -> str:
    """Writes the table, its CSV and the plot of the results that are there; returns the table.

    Raises RenderError for what tabulate, matplotlib or a metric's format make of them, OSError for the disk.
    """
    out = place(config.out)
    with _rendering(out):
        tables, _ = _tables(grid, results, config, task)
        by_name = {own.name: own for own in tables}
        markdown = table.markdown(own for own in tables if own.name not in LONG)
        if hosts.first():
            replace_text(out / MARKDOWN, markdown)
            replace_file(out / CSV, lambda path: table.write_csv(by_name[RESULTS], path))
            replace_file(out / f"{task.main}.png", lambda path: png.plot(by_name[task.main], path))
    return markdown


def report(grid: list[Cell], results: dict[str, Result], config, task: Task, computed: bool = True) -> None:
    """Writes the HTML report of the results that are there, some of them `computed` now; raises as `render_all`."""
    out = place(config.out)
    with _rendering(out):
        if hosts.first():
            about = facts.run_facts(config, task.metrics)
            if not computed:  # what shows results is not what they were computed by
                about["versions"] = facts.read_facts(out).get("versions", {})
            tables, here = _tables(grid, results, config, task)
            write_report(out / REPORT, out.name, tables, here, about, missing=len(grid) - len(here))


class SoFar:
    """`render_all` of a run's results as they come in, as often as RENDERING_SHARE allows."""

    def __init__(self, grid: list[Cell], results: dict[str, Result], config, task: Task):
        self._of, self._next = (grid, results, config, task), 0.0

    def update(self) -> None:
        """Another result is there. What cannot be shown is a warning."""
        start = time.monotonic()
        if start < self._next:
            return
        try:
            render_all(*self._of)
        except RenderError as error:  # the end of the run says so again
            logging.warning("%s", error)
        end = time.monotonic()
        self._next = end + (end - start) / RENDERING_SHARE


@contextlib.contextmanager
def reported_when_stopped(
    grid: list[Cell], results: dict[str, Result], config, folder: RunFolder, task: Task
) -> Iterator[None]:
    """Shows what there is in all files when whatever is inside is stopped or fails, and lets that go on."""
    try:
        yield
    except BaseException:
        try:
            if results:
                folder.check()
                render_all(grid, results, config, task)
                report(grid, results, config, task)
        except Exception as error:  # whatever it is, what stopped the run is what is told
            logging.warning("there is no report of what was computed: %s", error)
        raise


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
