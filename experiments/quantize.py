"""Quantizes one model with one spec: python -m experiments.quantize --config=configs/digits.py

Prints a report per layer, what of the model is quantized, and the task's metrics before and after; writes the packed
model to {config.out}/quantized.safetensors and appends the result as a JSON line to {config.out}/quantize.jsonl. With
config.norm_tuning.enabled the normalization layers are tuned afterwards. A run that was stopped keeps its layers.
"""

import dataclasses
from pathlib import Path

from tabulate import tabulate

from beacon_jax import save_quantized
from experiments import common, hosts, mixed
from experiments.experiment import Experiment
from experiments.grid import single_cell
from experiments.results import LayerStore, append_line
from experiments.task import make_task

_COLUMNS = "layer kind shape method alphabet output_error mean_cosine min_cosine dead rows solve_seconds".split()


def main(_):
    config = common.get_config()
    task = make_task(config)
    cell = single_cell(config, task.fingerprint())
    experiment = Experiment(config, task)
    experiment.check([cell])
    out = Path(config.out)
    store = LayerStore(out / "layers" / cell.quant_key)
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
        save_quantized(out / "quantized.safetensors", quantized, params=params, **about)
    results = {
        which: {name: dataclasses.asdict(measured) for name, measured in evaluation.items()}
        for which, evaluation in evaluations.items()
    }
    line = dict(config=config.to_dict(), **results, tuning=tuning, layers=reports)
    append_line(out / "quantize.jsonl", line)
    store.clear()
    print(f"quantized model: {out / 'quantized.safetensors'}; result: {out / 'quantize.jsonl'}")


if __name__ == "__main__":
    common.run(main)
