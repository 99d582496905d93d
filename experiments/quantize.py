"""Quantizes one model with one spec: python -m experiments.quantize --config=configs/digits.py

Prints a report per layer, what of the model is quantized, and the task's metrics before and after; writes the packed
model to {config.out}/quantized.safetensors, appends the result as a JSON line to {config.out}/quantize.jsonl, and
writes a report, {config.out}/quantize.html. With config.norm_tuning.enabled the normalization layers are tuned
afterwards. A run that was stopped keeps its layers. --dry_run shows what there is to do.
"""

import dataclasses
import json
from pathlib import Path

import jax
from absl import flags
from tabulate import tabulate

from beacon_jax import save_quantized
from beacon_jax.disk import try_place
from beacon_jax.places import place
from experiments import common, hosts, mixed, plan
from experiments.experiment import Experiment, about_model
from experiments.grid import single_cell
from experiments.layer_folders import open_store, remove_finished
from experiments.lines import read_lines
from experiments.provenance import check_reuse
from experiments.quantize_results import results_of_line
from experiments.reports import facts
from experiments.reports.result_tables import result_tables
from experiments.reports.run import write_report
from experiments.run_folder import RunFolder
from experiments.task import make_task

MODEL, LINES, REPORT = "quantized.safetensors", "quantize.jsonl", "quantize.html"
_COLUMNS = "layer kind shape method alphabet output_error mean_cosine min_cosine dead rows solve_seconds".split()
flags.declare_key_flag("dry_run")  # for --help


def main(_):
    config = common.get_config()
    if plan.DRY_RUN.value:
        print(_plan(config))
    else:
        run(config)


def run(config) -> None:
    """All that the script does without --dry_run."""
    check_reuse(config.reuse)
    with RunFolder(config.out) as folder:
        _quantize(config, folder)


def _plan(config) -> str:
    """What there is to do, and whether it was done before."""
    task, out = make_task(config), place(config.out)
    experiment = Experiment(config, task)
    cell = single_cell(config, task.fingerprint())
    experiment.check([cell])
    (cell,) = experiment.provenance.add_to([cell])
    lines = read_lines(out / LINES, _checked)
    done = any(line["quant_key"] == cell.quant_key for line in lines)
    again = "has its result already, which is computed again" if done else "has no result of it"
    return (
        f"{out / LINES} {again}\n\n{plan.quantized_plan([[cell]], [line['layers'] for line in lines], experiment, out)}"
    )


def _checked(line: dict) -> dict:
    """A line, KeyError where it is none of this script."""
    line["quant_key"]
    return line


def _drop_finished_layers(lines: list[dict], folder: RunFolder) -> None:
    """Removes the layers of models that were quantized to the end after these had been begun."""

    def finished(key, about):
        return "lines" in about and any(line["quant_key"] == key for line in lines[about["lines"] :])

    remove_finished(folder, finished)


def _quantize(config, folder: RunFolder) -> None:
    task = make_task(config)
    cell = single_cell(config, task.fingerprint())
    experiment = Experiment(config, task, folder)
    folder.try_files(MODEL, LINES, REPORT)
    experiment.check([cell])
    (cell,) = experiment.provenance.add_to([cell])
    out = folder.path
    try_place(out / MODEL, sum(leaf.nbytes for leaf in jax.tree.leaves(task.params)))
    lines = read_lines(out / LINES, _checked)
    _drop_finished_layers(lines, folder)
    store = open_store(folder, cell, config.reuse, lines=len(lines))
    quantized = experiment.quantize(cell, store)
    evaluations = dict(float=experiment.evaluate(task.params), quantized=experiment.evaluate(quantized.params))
    params, tuning = quantized.params, None
    if cell.tuning is not None:
        tuned = experiment.tune(cell, params)
        params, tuning = tuned.params, tuned.summary()
        evaluations["tuned"] = experiment.evaluate(params)
    reports = [dataclasses.asdict(report) for report in quantized.reports]
    print(tabulate([[r[c] for c in _COLUMNS] for r in reports], headers=_COLUMNS, floatfmt=".4g"))
    if mixed.is_mixed(cell.quant):
        print(f"\nalphabets chosen under the budget:\n{experiment.bit_widths}")
    print(f"\n{quantized.coverage}\n")
    for name, metric in task.metrics.items():
        measured = {which: evaluation[name] for which, evaluation in evaluations.items()}
        shown = ", ".join(
            f"{which} {m.value:{metric.shown}} ± {m.stderr:{metric.shown}}" for which, m in measured.items()
        )
        print(f"{metric.title or name} ({measured['float'].count} test examples): {shown}")
    if hasattr(task.test, "summary"):
        print(f"test data: {task.test.summary()}")
    if hosts.first():
        about = dict(model=config.model.name, fingerprint=cell.key, metrics=list(evaluations.values())[-1])
        folder.check()
        save_quantized(out / MODEL, quantized, params=params, **about)
    results = {
        which: {name: dataclasses.asdict(measured) for name, measured in evaluation.items()}
        for which, evaluation in evaluations.items()
    }
    about = dict(key=cell.key, quant_key=cell.quant_key, made_with=cell.made_with, config=config.to_dict())
    shares = {name: own for name, own in about_model(quantized).items() if name != "layers"}
    line = dict(**about, **results, tuning=tuning, layers=reports, **shares)
    folder.append(LINES, line)
    store.clear()
    if hosts.first():
        report(out, line, facts.run_facts(config, task.metrics))
    print(f"quantized model: {out / MODEL}; result: {out / LINES}; all in one page: {out / REPORT}")


def report(out: Path, line: dict, about: dict) -> None:
    """Writes the report of one line."""
    found = results_of_line(json.loads(json.dumps(line)))
    metrics = facts.metrics_of(about, found)
    cells = [result.cell for result in found]
    write_report(out / REPORT, f"{out.name}, {found[1].cell.row}", result_tables(cells, found, metrics), found, about)


if __name__ == "__main__":
    common.run(main)
