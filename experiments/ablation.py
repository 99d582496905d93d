"""What each step of beacon_plus brings, on test data: python -m experiments.ablation --config=configs/digits.py

For every alphabet of --alphabets and every seed, quantizes with the other methods at their best, with Beacon, and with
each step of beacon_plus on top of the one before, once with error correction and once without, and measures the mean
of the layers' relative output errors on the task's test data and the task's metrics there. Appends one JSON line for
each to {config.out}/ablation.jsonl, so that a stopped run goes on, and writes {config.out}/ablation.md.
"""

import functools
import operator

import numpy as np
from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from beacon_jax import FloatStats, quantize
from beacon_jax.batches import example_count, take
from beacon_jax.disk import replace_text
from beacon_jax.layer_errors import layer_errors
from experiments import common, hosts
from experiments.experiment import Experiment
from experiments.grid import check_once
from experiments.lines import read_lines
from experiments.mixed import spec_of
from experiments.provenance import taken
from experiments.run_folder import RunFolder
from experiments.task import identity_of, make_task

_ALPHABETS = flags.DEFINE_list("alphabets", ["1.58", "2", "3", "4"], "The alphabets.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the calibration examples.")
_STEPS = flags.DEFINE_list("steps", [], "Numbers of the rows to run, from 0; all by default.")
_ONLY = flags.DEFINE_enum("only", "", ["", "float", "both"], "Only without (float) or with (both) error correction.")
_HELD_OUT = flags.DEFINE_integer("held_out", 512, "Test examples to measure the layers' errors on.")

PLAIN = dict(effort="fast", start="greedy", bias=False, ridge=0.0, beam=0)
# (title, method, options, other fields of config.quant)
ROWS = (
    ("RTN, least-squares scale", "rtn", dict(scale="lsq"), {}),
    ("GPTQ, act_order", "gptq", dict(act_order=True), {}),
    ("GPTQ, act_order, bias", "gptq", dict(act_order=True, bias=True), {}),
    ("GPTQ, least-squares scale, act_order, bias", "gptq", dict(scale="lsq", act_order=True, bias=True), {}),
    ("COMQ", "comq", {}, {}),
    ("COMQ, least-squares scale", "comq", dict(scale="lsq"), {}),
    ("Beacon", "beacon", {}, {}),
    ("+ bias", "beacon_plus", {**PLAIN, "bias": True}, {}),
    ("+ ridge", "beacon_plus", {**PLAIN, "bias": True, "ridge": None}, {}),
    ("+ decoded start (fast)", "beacon_plus", dict(effort="fast"), {}),
    ("+ decoded again", "beacon_plus", dict(effort="fast", redecode=True), {}),
    ("+ beam (default)", "beacon_plus", dict(effort="default"), {}),
    ("+ pairs, wider beam (thorough)", "beacon_plus", dict(effort="thorough"), {}),
    ("+ row scales", "beacon_plus", dict(effort="thorough"), dict(balance_rows=True)),
    ("default + row scales", "beacon_plus", dict(effort="default"), dict(balance_rows=True)),
    ("default + offset", "beacon_plus", dict(effort="default", offset=True), {}),
    ("default + influence", "beacon_plus", dict(effort="default"), dict(row_weights="influence")),
    ("default + residual stream", "beacon_plus", dict(effort="default", residual=0.5), {}),
    (
        "default + influence + residual stream",
        "beacon_plus",
        dict(effort="default", residual=0.5),
        dict(row_weights="influence"),
    ),
)
BASE = "Beacon"
LINES, TABLE = "ablation.jsonl", "ablation.md"
SAID = {"float": "without error correction", "both": "with error correction"}


def first_examples(batches, count):
    """The first `count` examples of batches."""
    for batch in batches:
        yield take(batch, 0, min(count, example_count(batch)))
        count -= example_count(batch)
        if count <= 0:
            return


class Ablation:
    """A task's float model and data."""

    def __init__(self, config, folder: RunFolder):
        self.config, self.task = config, make_task(config)
        self.experiment = Experiment(config, self.task, folder)
        self.held_out = list(first_examples(self.task.test, _HELD_OUT.value))
        self.shared: dict = {}

    def quant(self, method, options, more, calibrate_on, alphabet) -> dict:
        """The fields of config.quant."""
        own = dict(method=method, options=options, calibrate_on=calibrate_on, alphabet=alphabet, **more)
        return {**self.config.quant.to_dict(), **own}

    def made_with(self, method, options, more, calibrate_on, alphabet, seed) -> dict[str, str]:
        """See provenance.py."""
        quant = self.quant(method, options, more, calibrate_on, alphabet)
        return self.experiment.provenance.of(quant, self.config.data.calibration_images, seed)

    def run(self, method, options, more, calibrate_on, alphabet, seed) -> dict:
        """One line: the mean error of the layers, and the metrics."""
        quant, task = self.quant(method, options, more, calibrate_on, alphabet), self.task
        spec = spec_of(quant)
        batches = self.experiment.drawn(self.config.data.calibration_images, seed)
        params = self.experiment.float_params(quant, batches)
        stats = self.shared.setdefault((seed, quant["balance_rows"], spec.row_weights), FloatStats())
        given = dict(weights=task.weights, execution=self.experiment.execution)
        done = quantize(task.apply, params, batches, spec, float_stats=stats, **given)
        errors = layer_errors(task.apply, params, done, self.held_out, streams=calibrate_on, **given)
        measured = self.experiment.evaluate(done.params)
        return {
            "error": float(np.mean(list(errors.values()))),
            "layers": errors,
            "calibration_error": float(np.mean([report.output_error for report in done.reports])),
            "seconds": sum(report.solve_seconds for report in done.reports),
            "metrics": {name: [m.value, m.stderr] for name, m in measured.items()},
        }


class Lines:
    """The lines of one stream, by place."""

    def __init__(self, lines: list[dict], calibrate_on: str):
        self.lines = [line for line in lines if line["calibrate_on"] == calibrate_on]
        self.alphabets = list(dict.fromkeys(line["alphabet"] for line in self.lines))
        self.titles = [row[0] for row in ROWS if any(line["title"] == row[0] for line in self.lines)]

    def at(self, title: str, alphabet: str, *keys) -> dict[int, float]:
        """{seed: a number of that place's line}."""
        found = {}
        for line in self.lines:
            if (line["title"], line["alphabet"]) == (title, alphabet):
                found[line["seed"]] = functools.reduce(operator.getitem, keys, line)
        return found

    def table(self, show) -> str:
        """A table of show(title, alphabet)."""
        body = [[title, *(show(title, alphabet) for alphabet in self.alphabets)] for title in self.titles]
        headers = ["step", *(f"{alphabet} bit" for alphabet in self.alphabets)]
        return tabulate(body, headers, tablefmt="github", disable_numparse=True)

    def error(self, title: str, alphabet: str) -> str:
        """The mean over the seeds, and how it compares with Beacon's of the same seeds."""
        own, base = self.at(title, alphabet, "error"), self.at(BASE, alphabet, "error")
        ratios = [100 * own[seed] / base[seed] - 100 for seed in own if seed in base]
        spread = f" ± {_standard_error(ratios):.1f}" if len(ratios) > 1 and title != BASE else ""
        change = f" ({np.mean(ratios):+.0f}{spread} %)" if ratios else ""
        return f"{np.mean(list(own.values())):.5f}{change}" if own else "–"

    def number(self, title: str, alphabet: str, *keys, form: str) -> str:
        """The mean over the seeds; with several its standard error, and in brackets the mean difference from Beacon's
        of the same seeds with the standard error of that.
        """
        own, base = self.at(title, alphabet, *keys), self.at(BASE, alphabet, *keys)
        if not own:
            return "–"
        values = list(own.values())
        if len(values) == 1:
            return f"{values[0]:{form}}"
        change = [own[seed] - base[seed] for seed in own if seed in base]
        paired = f" ({np.mean(change):+{form}} ± {_standard_error(change):{form}})" if len(change) > 1 else ""
        return f"{np.mean(values):{form}} ± {_standard_error(values):{form}}{'' if title == BASE else paired}"


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def markdown(lines: list[dict], metrics) -> str:
    """Tables for each stream: the layers' errors and how they compare with Beacon's, each metric, and the seconds."""
    parts = []
    for calibrate_on, said in SAID.items():
        here = Lines(lines, calibrate_on)
        if not here.lines:
            continue
        parts.append(f"Mean error of the layers on test data, {said}\n\n{here.table(here.error)}\n")
        for name, metric in metrics.items():
            show = functools.partial(_number, here, ("metrics", name, 0), metric.shown)
            parts.append(f"{metric.title or name}, {said}\n\n{here.table(show)}\n")
        show = functools.partial(_number, here, ("seconds",), ".1f")
        parts.append(f"Seconds to solve all layers, {said}, compilation included\n\n{here.table(show)}\n")
    return "\n".join(parts)


def _number(lines, keys, form, title, alphabet):
    return lines.number(title, alphabet, *keys, form=form)


def cells(rows, alphabets, seeds, streams) -> list[tuple]:
    """(row, what its line says of its place) of everything to run. ValueError on what is there twice."""
    for flag, values in (("steps", [row[0] for row in rows]), ("alphabets", alphabets), ("seeds", seeds)):
        check_once(f"--{flag}", values)
    return [
        (row, dict(title=row[0], calibrate_on=on, alphabet=alphabet, seed=seed))
        for seed in seeds
        for on in streams
        for alphabet in alphabets
        for row in rows
        if on == "both" or "residual" not in row[2]  # which differs from the float one by error correction alone
    ]


def _checked(line: dict) -> tuple:
    """(settings, facts, line), KeyError where it is none of this script."""
    return line["settings"], line["made_with"], line


def main(_):
    config = common.get_config()
    rows = [ROWS[int(i)] for i in _STEPS.value] or ROWS
    todo = cells(rows, _ALPHABETS.value, [int(seed) for seed in _SEEDS.value], [_ONLY.value] if _ONLY.value else SAID)
    with RunFolder(config.out) as folder:
        print(run(config, folder, todo))
    print(f"lines: {folder.path / LINES}\ntable: {folder.path / TABLE}")


def run(config, folder: RunFolder, todo: list[tuple]) -> str:
    """Runs what is missing in the folder's lines; returns the tables."""
    folder.try_files(LINES, TABLE)
    found = read_lines(folder.path / LINES, _checked)
    ablation = Ablation(config, folder)
    about = dict(identity=ablation.task.fingerprint(), dtype=config.execution.forward_dtype)
    about |= dict(examples=config.data.calibration_images, held_out=_HELD_OUT.value)
    common_fields = {
        name: config.quant[name] for name in ("balance_rows", "row_weights", "rows_per_example", "rows_seed")
    }
    asked = []
    for (_, method, options, more), cell in todo:
        settings = identity_of(**about, **cell, method=method, options=options, **{**common_fields, **more})
        made_with = ablation.made_with(method, options, more, cell["calibrate_on"], cell["alphabet"], cell["seed"])
        asked.append((settings, made_with))
    there = taken(asked, found, config.reuse, f"results in {folder.path / LINES}")
    shown = []
    for ((_, method, options, more), cell), (settings, made_with), line in tqdm(
        list(zip(todo, asked, there, strict=True)), desc="cells", unit="cell", disable=None
    ):
        if line is None:
            result = ablation.run(method, options, more, cell["calibrate_on"], cell["alphabet"], cell["seed"])
            line = dict(settings=settings, made_with=made_with, **cell, **result)
            folder.append(LINES, line)
            logging.info("%s, %s, %s bit: %.5f", cell["title"], cell["calibrate_on"], cell["alphabet"], line["error"])
        shown.append(line)
        if hosts.first():
            replace_text(folder.path / TABLE, markdown(shown, ablation.task.metrics))
    return markdown(shown, ablation.task.metrics)


if __name__ == "__main__":
    common.run(main)
