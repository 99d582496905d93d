"""Quantizes one model with one spec: python -m experiments.quantize --config=configs/digits.py

Prints a report per layer and the accuracy before and after; writes the packed model to
{config.out}/quantized.safetensors and appends the result as a JSON line to {config.out}/quantize.jsonl. With
config.norm_tuning.enabled the normalization layers are tuned afterwards. A run that was stopped keeps its layers.
"""

import dataclasses
from pathlib import Path

from tabulate import tabulate

from beacon_jax import save_quantized
from experiments import common, hosts
from experiments.experiment import Experiment
from experiments.grid import single_cell
from experiments.results import LayerStore, append_result

_COLUMNS = (
    "layer",
    "shape",
    "method",
    "alphabet",
    "output_error",
    "mean_cosine",
    "min_cosine",
    "dead",
    "solve_seconds",
)


def main(_):
    config = common.get_config()
    cell = single_cell(config, common.checkpoint_digest(config))
    experiment = Experiment(config)
    experiment.check([cell])
    out = Path(config.out)
    store = LayerStore(out / "layers" / cell.quant_key)
    quantized = experiment.quantize(cell, store)
    evaluations = dict(float=experiment.evaluate(experiment.params), quantized=experiment.evaluate(quantized.params))
    params, tuning = quantized.params, None
    if cell.tuning is not None:
        tuned = experiment.tune(cell, params)
        params, tuning = tuned.params, tuned.summary()
        evaluations["tuned"] = experiment.evaluate(params)
    reports = [dataclasses.asdict(report) for report in quantized.reports]
    print(tabulate([[r[c] for c in _COLUMNS] for r in reports], headers=_COLUMNS, floatfmt=".4g"))
    shown = ", ".join(f"{name} {e.top1:.2f} ± {e.top1_stderr:.2f} %" for name, e in evaluations.items())
    print(f"top-1 of {evaluations['float'].count} test images: {shown}")
    print(f"test data: {experiment.test.summary()}")
    if hosts.first():
        save_quantized(out / "quantized.safetensors", params, quantized.layers)
    results = {name: dataclasses.asdict(evaluation) for name, evaluation in evaluations.items()}
    line = dict(config=config.to_dict(), **results, tuning=tuning, layers=reports)
    append_result(out / "quantize.jsonl", line)
    store.clear()
    print(f"quantized model: {out / 'quantized.safetensors'}; result: {out / 'quantize.jsonl'}")


if __name__ == "__main__":
    common.run(main)
