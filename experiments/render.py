"""Tables and plots of results, for any task: its first metric is the main number."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from tabulate import tabulate

from beacon_jax.evaluate import Metric
from beacon_jax.quant.alphabets import is_symmetric, make_alphabet
from experiments import mixed
from experiments.grid import FLOAT, Cell
from experiments.results import Result

MISSING = "–"
CUT = 0.15  # of the float model's value

Places = dict[tuple[str, str], list[Result]]
Metrics = Mapping[str, Metric]


def _by_place(results: Sequence[Result]) -> Places:
    """{(row, alphabet): its results, one per seed}, the float model's under (FLOAT, "")."""
    places: Places = {}
    for result in results:
        places.setdefault((result.cell.row, result.cell.alphabet), []).append(result)
    return places


def _mean(results: list[Result], value: Callable[[Result], float]) -> float:
    return float(np.mean([value(result) for result in results]))


def _value(name: str) -> Callable[[Result], float]:
    return lambda result: result.metrics[name].value


def _with_error(results: list[Result], name: str, shown: str) -> str:
    """The value ± its standard error; for several seeds the mean ± the standard deviation over them."""
    values = [result.metrics[name].value for result in results]
    spread = np.std(values, ddof=1) if len(values) > 1 else results[0].metrics[name].stderr
    return f"{np.mean(values):{shown}} ± {spread:{shown}}"


def _github(headers: list[str], body: list[list[str]]) -> str:
    align = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True, colalign=align)


def _matrix(cells: Sequence[Cell], places: Places, show: Callable[[list[Result]], str]) -> str:
    """A table with the rows and columns of these cells."""
    rows, alphabets = (list(dict.fromkeys(getattr(c, f) for c in cells if c.quant)) for f in ("row", "alphabet"))
    body = [[row, *(show(places[row, a]) if (row, a) in places else MISSING for a in alphabets)] for row in rows]
    return _github(["method", *(f"{a} bit" for a in alphabets)], body)


def _published(published: Sequence[tuple], places: Places, name: str, shown: str) -> str:
    """Published next to measured; what was not run is a dash."""
    body = []
    for row, alphabet, value in published:
        measured, difference = MISSING, MISSING
        if results := places.get((row, alphabet)):
            measured, difference = _with_error(results, name, shown), f"{_mean(results, _value(name)) - value:+{shown}}"
        body.append([row, alphabet, f"{value:{shown}}", measured, difference])
    return _github(["method", "bits", "paper", "measured", "difference"], body)


def markdown(grid: Sequence[Cell], results: Sequence[Result], metrics: Metrics, published: Sequence[tuple] = ()) -> str:
    """The results as Markdown.

    Args:
      grid: the cells of the table, which give its rows and columns, run or not.
      results: those there are.
      metrics: the task's.
      published: (row, alphabet, value of the first metric) of the paper; row FLOAT, alphabet "" for the float model.
    """
    places, (name, metric) = _by_place(results), next(iter(metrics.items()))
    floats = places.get((FLOAT, ""), [])
    reference = _mean(floats, _value(name)) if floats else float("nan")
    seeds = max((len(found) for found in places.values()), default=1)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "± standard error"
    count = f", {floats[0].metrics[name].count} test examples" if floats else ""
    shown = (_with_error(floats, name, metric.shown) if floats else MISSING) + count
    tables = [
        (f"{_title(name, metric)}, {spread}; float model {shown}", lambda rs: _with_error(rs, name, metric.shown)),
        ("Change against the float model", lambda rs: f"{_mean(rs, _value(name)) - reference:+{metric.shown}}"),
    ]
    tables += [(_title(n, m), _shown(n, m)) for n, m in metrics.items() if n != name]
    parts = [f"{title}\n\n{_matrix(grid, places, show)}\n" for title, show in tables]
    # Of the layers alone, which norm tuning leaves as they are.
    untuned = [cell for cell in grid if cell.tuning is None]
    for title, show in (
        (
            "Relative output error ‖XW − X̃Ŵ‖²/‖XW‖², mean over the layers, each on the inputs it was calibrated on",
            lambda rs: f"{_mean(rs, lambda result: result.layer_error):.2e}",
        ),
        (
            "Seconds to solve all layers, compilation included (a row's first alphabet compiles for all)",
            lambda rs: f"{_mean(rs, lambda result: result.seconds):.1f}",
        ),
    ):
        parts.append(f"{title}\n\n{_matrix(untuned, places, show)}\n")
    if published:
        own = _published(published, places, name, metric.shown)
        parts.insert(0, f"{_title(name, metric)}, published and measured\n\n{own}\n")
    return "\n".join(parts)


def _title(name: str, metric: Metric) -> str:
    return metric.title or name


def _shown(name: str, metric: Metric) -> Callable[[list[Result]], str]:
    return lambda results: f"{_mean(results, _value(name)):{metric.shown}}"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per result; a metric's standard error beside it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = [_flat(result) for result in results]
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), restval="")
        writer.writeheader()
        writer.writerows(lines)


def _flat(result: Result) -> dict:
    cell, line = result.cell, {}
    for name in ("row", "alphabet", "seed", "calibration_images"):
        line[name] = getattr(cell, name)
    for name, measured in result.metrics.items():
        line |= {name: measured.value, f"{name}_stderr": measured.stderr}
    line["count"] = max(measured.count for measured in result.metrics.values())
    line |= {"layer_error": result.layer_error, "seconds": result.seconds}
    return line | {name: (result.coverage or {}).get(name) for name in ("quantized", "bits_per_parameter")}


def plot(results: Sequence[Result], metrics: Metrics, path: Path) -> None:
    """The first metric against the bits of the alphabet, a colour for each row, norm tuning dotted.

    What is much worse than the float model (see CUT) is off the picture, so that the rest can be told apart; where
    lower is better the axis is logarithmic instead. Lines join alphabets of one kind alone (see `_kind`).
    """
    name, metric = next(iter(metrics.items()))
    cells = [result.cell for result in results if result.cell.quant]
    alphabets, titles = (list(dict.fromkeys(getattr(c, field) for c in cells)) for field in ("alphabet", "title"))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in dict.fromkeys(cell.row for cell in cells):
        own = [result for result in results if result.cell.quant and result.cell.row == row]
        _line(axes, own, alphabets, titles.index(own[0].cell.title), _value(name))
    count = max((result.metrics[name].count for result in results), default=0)
    axes.set(xlabel="bits per weight (logarithm of the number of levels)")
    axes.set(ylabel=f"{_title(name, metric)}, {count} test examples")
    for kind in sorted({_kind(alphabet) for alphabet in alphabets}):
        label, style = KINDS[kind]
        axes.plot([], [], color="black", label=label, **style)
    if any(cell.tuning for cell in cells):
        axes.plot([], [], color="black", linestyle=":", marker=".", label="the same + norm tuning")
    for result in (result for result in results if result.cell.quant is None):
        _float_line(axes, result.metrics[name].value, metric)
    places: dict[float, list[str]] = {}
    for alphabet in alphabets:
        places.setdefault(round(_bits(alphabet), 6), []).append(alphabet)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.set_xticklabels(["\n".join(names) for names in places.values()])
    axes.grid(alpha=0.3)
    if results:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, format="png")


# Kinds of alphabets, in the order of `_kind`: what the legend calls them, and how their points are joined.
KINDS = (
    ("half-integer levels", dict(linestyle="-")),
    ("symmetric with a 0", dict(linestyle="", marker="o", markerfacecolor="none")),
    ("integer grids", dict(linestyle="--", marker="o", markerfacecolor="none")),
    ("mixed", dict(linestyle="-.")),
)


def _kind(alphabet: str) -> int:
    if alphabet.startswith(mixed.PREFIX):
        return 3
    levels = make_alphabet(alphabet)
    if not np.any(levels == 0):
        return 0
    return 1 if is_symmetric(levels) else 2


def _bits(alphabet: str) -> float:
    if alphabet.startswith(mixed.PREFIX):
        return float(alphabet.removeprefix(mixed.PREFIX))
    return math.log2(make_alphabet(alphabet).size)


def _line(axes, results: list[Result], alphabets: list[str], look: int, value) -> None:
    """One row's points, joined kind by kind."""
    cell = results[0].cell
    label = None if cell.tuning else cell.row
    for kind, (_, joined) in enumerate(KINDS):
        style = joined | dict(color=f"C{look % 10}", marker="osv^DPX*<>phd8"[look % 14], alpha=0.85)
        if cell.tuning:
            style |= dict(linestyle=":", markersize=3)
        here = sorted((a for a in alphabets if _kind(a) == kind), key=_bits)
        by_alphabet = {a: [result for result in results if result.cell.alphabet == a] for a in here}
        points = [(_bits(a), _mean(found, value)) for a, found in by_alphabet.items() if found]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
            label = None


def _float_line(axes, value: float, metric: Metric) -> None:
    """The float model's value, and the limits that it gives the picture."""
    axes.axhline(value, color="black", linestyle="--", linewidth=1, label=FLOAT)
    low, high = axes.get_ylim()
    if metric.better == "lower":
        if axes.dataLim.ymin > 0:  # the limits of the axes have a margin
            axes.set_yscale("log")
        return
    lowest = value - CUT * abs(value)
    if low < lowest:
        axes.set_ylim(lowest, high)
        axes.set_title(f"values more than {CUT:.0%} below the float model's are cut off", fontsize="small")
