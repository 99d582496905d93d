"""The table of methods and bit widths: python -m experiments.tables --config=configs/digits.py

Runs every row of config.table at every alphabet, appends one JSON line per result to {config.out}/results.jsonl, and
renders table.md, table.csv and top1.png beside it. Results already in the file, from the same config and checkpoint,
are not computed again.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from beacon_jax import QuantSpec, evaluate, quantize_model
from experiments import common, render


def cells(config: ConfigDict) -> list[dict]:
    """Every cell of the table: its row's title, its alphabet and the fields of its QuantSpec; the float model first."""
    grid = [dict(row="Float", alphabet="", quant=None)]
    for name in config.table.rows:
        if name not in config.rows:
            raise ValueError(f"unknown row {name!r} in config.table.rows; expected some of {', '.join(config.rows)}")
        row = config.rows[name].to_dict()
        title = row.pop("title")
        for alphabet in config.table.alphabets:
            alphabet = str(alphabet) if np.isscalar(alphabet) else ",".join(f"{level:g}" for level in alphabet)
            quant = {**config.quant.to_dict(), **row, "alphabet": alphabet}
            QuantSpec.from_dict(quant)  # every mistake is found before the first cell runs
            grid.append(dict(row=title, alphabet=alphabet, quant=quant))
    return grid


def cell_key(config: ConfigDict, checkpoint: str, cell: dict) -> str:
    """A fingerprint of all that decides a cell's result; `checkpoint` is the digest of the float parameters' file."""
    decides = dict(seed=config.seed, data=config.data.to_dict(), model=config.model.name, params=checkpoint, **cell)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def read_results(path: Path) -> dict[str, dict]:
    """{cell key: result} from the JSON lines. A last line cut short by an interruption is dropped from the file."""
    if not path.exists():
        return {}
    *complete, rest = path.read_text().split("\n")
    if rest:
        logging.warning("%s ends in an unfinished line, which is dropped", path)
        repaired = path.with_name(path.name + ".partial")
        repaired.write_text("".join(line + "\n" for line in complete))
        repaired.replace(path)
    results = {}
    for number, line in enumerate(complete, 1):
        try:
            result = json.loads(line)
            results[result["key"]] = result
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is not a result of this script; remove it to go on") from error
    return results


def run_cell(config, cell, model, params, predict, on_layer) -> dict:
    """Quantizes and evaluates one cell, which has its key already."""
    result, quantized = dict(cell), params
    if cell["quant"] is not None:
        spec = QuantSpec.from_dict(cell["quant"])
        start = time.perf_counter()
        done = quantize_model(model, params, common.calibration_batches(config), spec, on_layer=on_layer)
        quantized = done.params
        result["seconds"] = time.perf_counter() - start
        result["layers"] = [dataclasses.asdict(report) for report in done.reports]
        result["layer_error"] = float(np.mean([report.output_error for report in done.reports]))
    evaluation = evaluate(predict(quantized), common.test_batches(config), reference=predict(params))
    return {**result, **dataclasses.asdict(evaluation), "top1_stderr": evaluation.top1_stderr}


def main(_):
    config = common.get_config()
    grid = cells(config)
    model, params = common.load_model(config)
    predict = common.predictor(model)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(config.model.checkpoint, "rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    grid = [{**cell, "key": cell_key(config, checkpoint, cell)} for cell in grid]
    results = read_results(out / "results.jsonl")
    todo = [cell for cell in grid if cell["key"] not in results]
    with tqdm(desc="layers", unit="layer") as bar, (out / "results.jsonl").open("a") as file:
        for cell in todo:

            def on_layer(report, _matrix, total, cell=cell):
                bar.total = total * sum(c["quant"] is not None for c in todo)
                bar.update()
                bar.set_postfix_str(f"{cell['row']}, {cell['alphabet']} bit, {report.layer}")

            result = run_cell(config, cell, model, params, predict, on_layer)
            results[result["key"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
    print(f"{len(todo)} of {len(grid)} results computed, the others were there already")
    chosen = [results[cell["key"]] for cell in grid]
    markdown = render.markdown(chosen)
    (out / "table.md").write_text(markdown)
    render.write_csv(chosen, out / "table.csv")
    render.plot(chosen, out / "top1.png")
    print(markdown)
    print(f"table: {out / 'table.md'} and {out / 'table.csv'}")
    print(f"plot:  {out / 'top1.png'}")
    print(f"lines: {out / 'results.jsonl'}")


if __name__ == "__main__":
    common.run(main)
