"""Reports of output folders: of one, or of two runs side by side, as one HTML file that opens from disk.

python -m experiments.report results/digits                     the report of a run, from the results in its folder
python -m experiments.report results/digits results/digits_2    what differs between two, and by how much

Reads results.jsonl of experiments.tables, or quantize.jsonl of experiments.quantize where a folder has none. Of a cell
with several results, as another version or other data leave, the latest counts.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from beacon_jax.places import exists, place
from experiments import common
from experiments.lines import read_lines
from experiments.quantize_results import results_of_line
from experiments.reports import facts
from experiments.reports.comparison import Run, write_comparison
from experiments.reports.result_tables import result_tables
from experiments.reports.run import write_report
from experiments.results import read_results

_PAGE = flags.DEFINE_string(
    "page", "", "File to write; by default report.html, or comparison.html, in the first folder."
)

_TABLES, _QUANTIZE = "results.jsonl", "quantize.jsonl"


def read_run(folder: str) -> Run:
    """The results of a folder, of the same row, alphabet and seed the latest, in the order of these lines.

    Raises:
      FileNotFoundError: a folder without results.
      ValueError: files that hold something else.
    """
    path = place(folder)
    if exists(path / _TABLES):
        results = read_results(path / _TABLES)
    elif exists(path / _QUANTIZE):
        results = [result for found in read_lines(path / _QUANTIZE, results_of_line) for result in found]
    else:
        raise FileNotFoundError(f"{folder} has neither {_TABLES} nor {_QUANTIZE}; expected a folder of config.out")
    if not results:
        raise FileNotFoundError(f"{folder} has no results yet")
    last = {(r.cell.row, r.cell.alphabet, r.cell.seed): i for i, r in enumerate(results)}
    latest = [results[i] for i in sorted(last.values())]
    # Every line of experiments.quantize has the float model again.
    older = sum(r.cell.quant is not None for r in results) - sum(r.cell.quant is not None for r in latest)
    return Run(folder, latest, facts.read_facts(path), older)


def write(folders: Sequence[str], out: str = "") -> Any:
    """Writes the report of one folder or the comparison of two, and returns its path."""
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        print(run)
    if len(runs) == 2:
        path = place(out or place(folders[0]) / "comparison.html")
        write_comparison(path, *runs)
        return path
    (run,) = runs
    path, metrics = place(out or place(folders[0]) / "report.html"), facts.metrics_of(run.facts, run.results)
    cells = [result.cell for result in run.results]
    tables = result_tables(cells, run.results, metrics, facts.published(run.facts))
    write_report(path, place(folders[0]).name, tables, run.results, run.facts)
    return path


def main(argv):
    folders = argv[1:]
    if len(folders) not in (1, 2):
        raise ValueError(f"experiments.report takes one or two output folders, got {len(folders)}")
    print(f"report: {write(folders, _PAGE.value)}")


if __name__ == "__main__":
    common.run(main, configured=False, arguments=True)
