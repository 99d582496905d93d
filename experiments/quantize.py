"""Quantizes one model with one spec: python -m experiments.quantize --config=configs/digits.py

Prints a report per layer and the accuracy before and after; writes the packed model to
{config.out}/quantized.safetensors and appends the result as a JSON line to {config.out}/quantize.jsonl.
"""

import dataclasses
import json
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from beacon_jax import QuantSpec, evaluate, quantize_model, save_quantized
from experiments import common

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
    spec = QuantSpec.from_dict(config.quant.to_dict())
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    model, params = common.load_model(config)
    predict = common.predictor(model)
    with tqdm(desc="layers", unit="layer") as bar:

        def on_layer(report, _matrix, total):
            bar.total = total
            bar.update()
            bar.set_postfix(layer=report.layer, error=f"{report.output_error:.2g}")

        result = quantize_model(model, params, common.calibration_batches(config), spec, on_layer=on_layer)
    before = evaluate(predict(params), common.test_batches(config))
    after = evaluate(predict(result.params), common.test_batches(config), reference=predict(params))
    reports = [dataclasses.asdict(report) for report in result.reports]
    print(tabulate([[r[c] for c in _COLUMNS] for r in reports], headers=_COLUMNS, floatfmt=".4g"))
    print(f"top-1 {before.top1:.2f} % -> {after.top1:.2f} % of {after.count} test images")
    save_quantized(out / "quantized.safetensors", result.params, result.layers)
    evaluations = dict(before=dataclasses.asdict(before), after=dataclasses.asdict(after))
    line = dict(config=config.to_dict(), **evaluations, layers=reports)
    with (out / "quantize.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"quantized model: {out / 'quantized.safetensors'}; result: {out / 'quantize.jsonl'}")


if __name__ == "__main__":
    common.run(main)
