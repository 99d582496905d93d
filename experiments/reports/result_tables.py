"""The tables of results, for any task: its first metric is the main number."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from beacon_jax.evaluate import Metric
from experiments.code_counts import entropy
from experiments.grid import FLOAT, Cell
from experiments.reports.table import MISSING, Column, Entry, Matrix, Number, Table
from experiments.results import Result

PUBLISHED, CHANGE, LAYER_ERROR, SECONDS, RESULTS, LAYERS = "published change layer_error seconds results layers".split()
LONG = (RESULTS,)  # not for Markdown

Places = dict[tuple[str, str], list[Result]]
Metrics = Mapping[str, Metric]


def result_tables(
    grid: Sequence[Cell], results: Sequence[Result], metrics: Metrics, published: Sequence[tuple] = ()
) -> list[Table]:
    """The tables of results: published numbers if there are any, methods × alphabets, every result.

    Args:
      grid: the cells of the table, which give its rows and columns, run or not.
      results: those there are.
      metrics: the task's.
      published: (row, alphabet, value of the first metric) of the paper; row FLOAT, alphabet "" for the float model.
    """
    places = _by_place(results)
    tables: list[Table] = [*_metric_tables(grid, places, metrics), *_layer_tables(grid, places)]
    if published:
        tables.insert(0, _published(published, places, *next(iter(metrics.items()))))
    return [*tables, _every_result(results, metrics, published)]


def _by_place(results: Sequence[Result]) -> Places:
    """{(row, alphabet): its results, one per seed}, the float model's under (FLOAT, "")."""
    places: Places = {}
    for result in results:
        places.setdefault((result.cell.row, result.cell.alphabet), []).append(result)
    return places


def _measured(results: list[Result], name: str, shown: str) -> Number:
    """The value ± its standard error; for several seeds the mean ± the standard deviation over them."""
    values = [result.metrics[name].value for result in results]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else results[0].metrics[name].stderr
    mean = float(np.mean(values))
    return Number(mean, f"{mean:{shown}} ± {spread:{shown}}", spread)


def _of_layers(results: list[Result], value: Callable[[Result], float], shown: str) -> Number:
    """Their mean, with the standard deviation over several seeds."""
    values = [value(result) for result in results]
    mean = float(np.mean(values))
    return Number(mean, f"{mean:{shown}}", float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _matrix(cells: Iterable[Cell], places: Places, entry: Callable[[list[Result]], Number], **fields: Any) -> Matrix:
    """A table with the rows and columns of these cells."""
    quantized = [cell for cell in cells if cell.quant]
    names, alphabets = (list(dict.fromkeys(getattr(c, field) for c in quantized)) for field in ("row", "alphabet"))
    columns = (Column("row", "method"), *(Column(a, f"{a} bit") for a in alphabets))
    rows = tuple((row, *(entry(places[row, a]) if (row, a) in places else None for a in alphabets)) for row in names)
    return Matrix(columns=columns, rows=rows, **fields)


def title_of(name: str, metric: Metric) -> str:
    """A metric in words."""
    return metric.title or name


def _metric_tables(grid: Sequence[Cell], places: Places, metrics: Metrics) -> list[Matrix]:
    floats = places.get((FLOAT, ""), [])
    tables = []
    for name, metric in metrics.items():
        main, shown = name == next(iter(metrics)), metric.shown
        reference = _measured(floats, name, shown) if floats else None
        examples = max((result.metrics[name].count for found in places.values() for result in found), default=0)
        fields = dict(better=metric.better, reference=reference, examples=examples)
        title = title_of(name, metric)

        def entry(found, name=name, shown=shown, main=main):
            number = _measured(found, name, shown)
            return number if main else Number(number.value, f"{number.value:{shown}}", number.error)

        long = _long_title(title, places, floats, name, reference) if main else title
        tables.append(_matrix(grid, places, entry, name=name, title=long, quantity=title, **fields))
        if main:
            tables.append(_change(grid, places, name, shown, reference))
    return tables


def _long_title(title: str, places: Places, floats: list[Result], name: str, reference: Number | None) -> str:
    """The main metric's title, with what ± means and the float model's value."""
    seeds = max((len(found) for found in places.values()), default=1)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "± standard error"
    count = f", {floats[0].metrics[name].count} test examples" if floats else ""
    return f"{title}, {spread}; float model {reference.shown if reference else MISSING}{count}"


def _change(grid: Sequence[Cell], places: Places, name: str, shown: str, reference: Number | None) -> Matrix:
    def entry(found):
        if reference is None:
            return None
        change = _measured(found, name, shown).value - reference.value
        return Number(change, f"{change:+{shown}}")

    title = "Change against the float model"
    return _matrix(grid, places, entry, name=CHANGE, title=title, quantity=title)


def _layer_tables(grid: Sequence[Cell], places: Places) -> list[Matrix]:
    """Of the layers alone, which norm tuning leaves as they are."""
    untuned = [cell for cell in grid if cell.tuning is None]
    kinds = {
        LAYER_ERROR: (
            lambda result: result.layer_error,
            ".2e",
            "Relative output error ‖XW − X̃Ŵ‖²/‖XW‖², mean over the layers, each on the inputs it was calibrated on",
            "Relative output error, mean over the layers",
        ),
        SECONDS: (
            lambda result: result.seconds,
            ".1f",
            "Seconds to solve all layers, compilation included (once for all alphabets, once for asymmetric ones)",
            "Seconds to solve all layers",
        ),
    }
    tables = []
    for name, (value, shown, title, quantity) in kinds.items():
        entry = functools.partial(_of_layers, value=value, shown=shown)
        tables.append(_matrix(untuned, places, entry, name=name, title=title, quantity=quantity, better="lower"))
    return tables


def _published(published: Sequence[tuple], places: Places, name: str, metric: Metric) -> Table:
    """Published next to measured; what was not run is a dash."""
    shown, rows = metric.shown, []
    for row, alphabet, value in published:
        measured, difference = None, None
        if results := places.get((row, alphabet)):
            measured = _measured(results, name, shown)
            apart = measured.value - value
            difference = Number(apart, f"{apart:+{shown}}")
        rows.append((row, alphabet, Number(value, f"{value:{shown}}"), measured, difference))
    columns = [Column("row", "method"), Column("alphabet", "bits")]
    columns += [Column(key, key) for key in ("paper", "measured", "difference")]
    return Table(PUBLISHED, f"{title_of(name, metric)}, published and measured", tuple(columns), tuple(rows))


def _number(value: Any, shown: str, error: float | None = None) -> Number | None:
    return None if value is None else Number(value, format(value, shown), error)


def _every_result(results: Sequence[Result], metrics: Metrics, published: Sequence[tuple]) -> Table:
    """A line per result, with everything that it says of the whole model."""
    main = next(iter(metrics))
    paper = {(row, alphabet): value for row, alphabet, value in published}
    columns = [Column("row", "method"), Column("alphabet", "bits"), Column("seed", "seed")]
    columns += [Column("calibration_images", "calibration examples")]
    columns += [Column(name, title_of(name, metric)) for name, metric in metrics.items()]
    columns += [Column(f"paper_{main}", f"the paper's {title_of(main, metrics[main])}")] if paper else []
    columns += [Column("count", "test examples"), Column("layer_error", "layer error"), Column("seconds", "seconds")]
    columns += [Column("quantized", "parameters quantized"), Column("multiplications", "multiplications quantized")]
    columns += [Column("parameters", "parameters"), Column("bits_per_parameter", "bits per parameter")]
    columns += [Column("bytes", "bytes"), Column("key", "fingerprint")]
    rows = []
    for result in results:
        cell, coverage = result.cell, result.coverage or {}
        drawn = (None, None) if cell.quant is None else (cell.seed, cell.calibration_images)
        line: list[Entry] = [cell.row, cell.alphabet, *(_number(value, "d") for value in drawn)]
        for name, metric in metrics.items():
            m = result.metrics[name]
            line.append(Number(m.value, f"{m.value:{metric.shown}} ± {m.stderr:{metric.shown}}", m.stderr))
        line += [_number(paper.get((cell.row, cell.alphabet)), metrics[main].shown)] if paper else []
        line.append(_number(max(m.count for m in result.metrics.values()), "d"))
        line += [_number(result.layer_error, ".2e"), _number(result.seconds, ".1f")]
        line += [_number(coverage.get(name), ".2%") for name in ("quantized", "multiplications")]
        parameters, bits = coverage.get("parameters"), coverage.get("bits_per_parameter")
        line += [_number(parameters, ",.0f"), _number(bits, ".3f")]
        line.append(None if parameters is None or bits is None else _number(round(parameters * bits / 8), ",d"))
        line.append(cell.key)
        rows.append(tuple(line))
    return Table(RESULTS, "Every result", tuple(columns), tuple(rows))


# Column of the table of layers: heading, format.
LAYER_NUMBERS = {
    "output_error": ("relative output error", ".2e"),
    "mean_cosine": ("mean cosine", ".4f"),
    "min_cosine": ("least cosine", ".4f"),
    "sweeps": ("sweeps, mean over the channels", ".2f"),
    "fixed_points": ("channels at a fixed point", ".1%"),
    "code_entropy": ("entropy of the codes in bits", ".3f"),
    "rows": ("calibration rows", ",.0f"),
    "dead": ("inputs that are always zero", ".0f"),
    "gram_seconds": ("seconds for the Gram statistics", ".3f"),
    "solve_seconds": ("seconds to solve", ".3f"),
}


def layer_table(results: Sequence[Result]) -> Table:
    """A line per layer of each result."""
    columns = [Column("row", "method"), Column("alphabet", "bits"), Column("seed", "seed"), Column("layer", "layer")]
    columns += [Column("shape", "shape"), Column("layer_alphabet", "alphabet of the layer")]
    columns += [Column(key, heading) for key, (heading, _) in LAYER_NUMBERS.items()]
    rows = []
    for result in results:
        cell = result.cell
        for report in result.layers:
            counts = result.codes.get(report.layer)
            own = {"code_entropy": None if counts is None else entropy(counts)}
            line: list[Entry] = [cell.row, cell.alphabet, _number(cell.seed, "d"), report.layer]
            line += ["×".join(map(str, report.shape)), report.alphabet]
            for key, (_, shown) in LAYER_NUMBERS.items():
                line.append(_number(own[key] if key in own else getattr(report, key), shown))
            rows.append(tuple(line))
    return Table(LAYERS, "Every layer of every result", tuple(columns), tuple(rows))
