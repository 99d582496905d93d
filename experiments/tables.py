"""The table of methods and bit widths: python -m experiments.tables --config=configs/digits.py

Runs every row of config.table at every alphabet, appends one JSON line per result to {config.out}/results.jsonl, and
renders table.md, table.csv and top1.png beside it. A run that was stopped goes on where it was: results in the file
from the same config and checkpoint are not computed again, nor are the layers that were finished. --render_only shows
what is there.
"""

import json
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments import common, render
from experiments.experiment import Experiment
from experiments.grid import Cell, cells
from experiments.results import LayerStore, read_results

_RENDER_ONLY = flags.DEFINE_bool("render_only", False, "Compute nothing; show the results that are there.")


def render_all(grid: list[Cell], results: dict[str, dict], config) -> str:
    """Writes the table, its CSV and the plot of the results that are there; returns the table."""
    out = Path(config.out)
    here = [{**results[cell.key], "row": cell.row} for cell in grid if cell.key in results]
    markdown = render.markdown(grid, here, [tuple(number) for number in config.table.published])
    (out / "table.md").write_text(markdown)
    render.write_csv(here, out / "table.csv")
    render.plot(here, out / "top1.png")
    return markdown


def main(_):
    config = common.get_config()
    experiment = Experiment(config)
    grid = cells(config, experiment.checkpoint)
    experiment.check(grid)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(out / "results.jsonl")
    groups: dict[str, list[Cell]] = {}
    for cell in {cell.key: cell for cell in grid if cell.key not in results}.values():
        groups.setdefault(cell.quant_key, []).append(cell)
    if _RENDER_ONLY.value:
        groups = {}
    todo = sum(map(len, groups.values()))
    with tqdm(desc="results", unit="result", total=todo) as bar, (out / "results.jsonl").open("a") as file:
        for quant_key, group in groups.items():
            bar.set_postfix_str(f"{group[0].row}, {group[0].alphabet} bit" if group[0].alphabet else "Float")
            store = LayerStore(out / "layers" / quant_key)
            for result in experiment.results(group, store):
                results[result["key"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                render_all(grid, results, config)
                bar.update()
            store.clear()
    missing = sum(cell.key not in results for cell in grid)
    print(f"{todo} of {len(grid)} results computed, {len(grid) - todo - missing} were there already, {missing} missing")
    print(render_all(grid, results, config))
    if todo:
        print(f"test:  {experiment.test.summary()}")
    print(f"table: {out / 'table.md'} and {out / 'table.csv'}")
    print(f"plot:  {out / 'top1.png'}")
    print(f"lines: {out / 'results.jsonl'}")


if __name__ == "__main__":
    common.run(main)
