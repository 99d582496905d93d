"""The table of methods and bit widths: python -m experiments.tables --config=configs/digits.py

Runs every row of config.table at every alphabet on the model and data of config.task, appends one JSON line per result
to {config.out}/results.jsonl, and renders table.md, table.csv and a plot of the main metric beside it, and at its end
report.html. A run that was stopped goes on where it was: results in the file from the same config and the same model
and data are not computed again, nor are the layers that were finished. --render_only shows what is there. With --shared
the same command, started on several machines or devices with one config.out, computes the table together. --dry_run
shows what there is to do.
"""

import contextlib

from absl import flags
from tqdm import tqdm

from beacon_jax.places import place
from experiments import common, plan
from experiments.experiment import Experiment
from experiments.grid import Cell, cells, grouped
from experiments.layer_folders import open_store, remove_finished
from experiments.leases import LeaseLost
from experiments.logs import Log, check_logs, open_logs
from experiments.provenance import check_reuse, taken
from experiments.results import Result, read_results
from experiments.run_folder import RunFolder
from experiments.table_files import (
    CSV,
    LINES,
    MARKDOWN,
    REPORT,
    SoFar,
    files,
    render_all,
    report,
    reported_when_stopped,
    write_facts,
)
from experiments.task import Task, make_task
from experiments.workers import Alone, Workers, check_shared, title

_SHARED = flags.DEFINE_bool("shared", False, "Compute the table together with others that are started with --shared.")
_LEASE = flags.DEFINE_float("lease_seconds", 300, "With --shared: a worker that shows no life for so long is replaced.")
_WAIT = flags.DEFINE_bool("wait", True, "With --shared: wait for what others are at work on, to take over if they end.")
_RENDER_ONLY = flags.DEFINE_bool("render_only", False, "Compute nothing; show the results that are there.")
flags.declare_key_flag("dry_run")  # for --help


def compute(
    grid: list[Cell],
    results: dict[str, Result],
    config,
    experiment: Experiment,
    folder: RunFolder,
    workers: Workers | None = None,
    log: Log = lambda result: None,
) -> list[str]:
    """Computes what is missing of `results`, and adds it there and to the file; returns what failed.

    With `workers` it is computed together with others, whose results are added, too. What is computed here is given to
    `log`.
    """
    task, failures = experiment.task, []
    so_far = SoFar(grid, results, config, task)
    missing = [cell for cell in grid if cell.key not in results]
    work = ((group, Alone()) for group in grouped(missing))
    if workers is not None:
        work = workers.work(grid, results, lambda: known(grid, config, tell=False))
    with tqdm(desc="results", unit="result", total=len({cell.key for cell in missing}), disable=None) as bar:
        for group, lease in work:
            name = title(group)
            bar.set_postfix_str(name)
            try:
                with lease:
                    store = open_store(folder, group[0], config.reuse, check=lease.check)
                    for result in experiment.results(group, store):
                        lease.check()
                        results[result.cell.key] = result
                        folder.append(LINES, result.line(), result.cell.key)
                        log(result)
                        so_far.update()
                        bar.update(len({cell.key for cell in missing} & results.keys()) - bar.n)
                    lease.check()
                    store.clear()
            except LeaseLost as lost:
                print(f"{name}: {lost}; what this worker was computing of it is dropped")
            except ValueError as error:  # a method that cannot do this one; the others go on
                failures.append(f"{name}: {error}")
    if hasattr(task.test, "summary"):
        print(f"test data: {task.test.summary()}")
    return failures + (workers.failed if workers is not None else [])


def known(grid: list[Cell], config, *, tell: bool = True) -> dict[str, Result]:
    """{key: result} of the cells whose results are in the file; see provenance.taken for what counts as such."""
    path = place(config.out) / LINES
    found = [(result.cell.settings, result.cell.made_with, result) for result in read_results(path)]
    wanted = [(cell.settings, cell.made_with) for cell in grid]
    results = taken(wanted, found, config.reuse, f"results in {path}", tell=tell)
    return {cell.key: result for cell, result in zip(grid, results, strict=True) if result is not None}


def drop_finished_layers(grid: list[Cell], results: dict[str, Result], folder: RunFolder) -> None:
    """Removes the layers of models whose results are all there."""
    needed = {cell.quant_key for cell in grid if cell.key not in results}
    finished = {cell.quant_key for cell in grid} - needed
    remove_finished(folder, lambda key, _: key in finished)


def tidy(grid: list[Cell], config, task: Task, folder: RunFolder) -> bool:
    """Whether nothing is missing. Then layers are removed that a worker left which was killed after the last result.

    And the table is written once more: of several workers one that knew less can have been the last to write it.
    """
    results = known(grid, config, tell=False)
    if any(cell.key not in results for cell in grid):
        return False
    drop_finished_layers(grid, results, folder)
    render_all(grid, results, config, task)
    report(grid, results, config, task)
    return True


def main(_):
    config = common.get_config()
    check_reuse(config.reuse)
    check_logs(config.log)
    if _SHARED.value:
        check_shared(_LEASE.value)
    out = place(config.out)
    with contextlib.ExitStack() as stack:
        # What only shows something may do so beside the run that computes it.
        showing = _RENDER_ONLY.value or plan.DRY_RUN.value
        folder = None if showing else stack.enter_context(RunFolder(out, shared=_SHARED.value))
        log = None if folder is None else stack.enter_context(open_logs(config))
        task = make_task(config)
        grid = cells(config, task.fingerprint())
        experiment = Experiment(config, task, folder)
        if folder is not None:
            folder.try_files(*files(task))
        if not _RENDER_ONLY.value:
            experiment.check(grid)
        grid = experiment.provenance.add_to(grid)
        results, failures, workers = known(grid, config), [], None
        if plan.DRY_RUN.value:
            past = [result.line()["layers"] for result in read_results(out / LINES)]
            return print(plan.table_plan(grid, results, past, experiment, out))
        before = len(results)
        if folder is not None:
            if folder.worker:
                workers = Workers(folder, _LEASE.value, _WAIT.value, config.reuse)
                folder.when_last(lambda: tidy(grid, config, task, folder))
            else:
                drop_finished_layers(grid, results, folder)
            write_facts(config, task)
            with reported_when_stopped(grid, results, config, folder, task):
                failures = compute(grid, results, config, experiment, folder, workers, log)
        elif not results:  # what is beside them may be of others
            raise ValueError(
                f"{out / LINES} has no results of these settings and this version; {MARKDOWN} and what is beside it "
                "stay as they are"
            )
        print(render_all(grid, results, config, task))
        report(grid, results, config, task, computed=folder is not None)
    others = workers.others if workers is not None else 0
    own, missing = len(results) - before - others, len(grid) - len(results)
    by = f", {others} by others" if workers is not None else ""
    print(f"{own} of {len(grid)} results computed{by}, {before} were there already, {missing} missing")
    print(f"table: {out / MARKDOWN} and {out / CSV}")
    print(f"plot:  {out / task.main}.png")
    print(f"lines: {out / LINES}")
    print(f"all in one page: {out / REPORT}")
    if failures:
        raise common.Failed(f"{len(failures)} could not be computed: " + "; ".join(failures))


if __name__ == "__main__":
    common.run(main)
