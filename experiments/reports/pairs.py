"""Two runs compared cell by cell: differences of every metric, paired over the seeds that both have."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reports.facts import Described
from experiments.reports.result_tables import LAYER_ERROR
from experiments.reports.table import Column, Number, Table
from experiments.results import Result

Place = tuple[str, str]  # row, alphabet
BySeed = dict[Place, dict[int, Result]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The second run less the first, of one quantity at one place.

    Fields:
      first, second: the values, means over the common seeds.
      seeds: how many seeds both have.
      error: of the difference. Of two seeds or more: the standard deviation of the differences, seed by seed, over the
        square root of their number. Of one seed: the root of the sum of the squares of both standard errors over the
        test examples, which takes them for independent; on the same test examples the difference is usually surer than
        that. None where a quantity has no standard error of its own.
    """

    first: float
    second: float
    seeds: int
    error: float | None

    @property
    def value(self) -> float:
        """The difference."""
        return self.second - self.first

    @property
    def how(self) -> str:
        """What the error is."""
        if self.seeds > 1:
            return f"paired over {self.seeds} seeds"
        return "one seed, both standard errors combined" if self.error is not None else "one seed, no standard error"


def by_seed(results: Sequence[Result]) -> BySeed:
    """{(row, alphabet): {seed: the latest result}}; the float model's has the alphabet ""."""
    found: BySeed = {}
    for result in results:
        found.setdefault((result.cell.row, result.cell.alphabet), {})[result.cell.seed] = result
    return found


def difference(
    first: Mapping[int, Result],
    second: Mapping[int, Result],
    value: Callable[[Result], float | None],
    stderr: Callable[[Result], float | None] = lambda _: None,
) -> Difference | None:
    """Of the results by seed at one place in two runs; None where no seed has the quantity in both."""
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    pairs = [(a, b) for a, b in pairs if value(a) is not None and value(b) is not None]
    if not pairs:
        return None
    values = np.array([(value(a), value(b)) for a, b in pairs], np.float64)
    error = None
    if len(pairs) > 1:
        error = float(np.std(values[:, 1] - values[:, 0], ddof=1) / math.sqrt(len(pairs)))
    else:
        errors = [stderr(result) for result in pairs[0]]
        error = None if None in errors else math.hypot(*errors)
    return Difference(float(values[:, 0].mean()), float(values[:, 1].mean()), len(pairs), error)


def difference_tables(first: BySeed, second: BySeed, metrics: Mapping[str, Described]) -> list[Table]:
    """For each metric and the layer error a table: both values, the difference, its error, how that was found."""
    tables = []
    for name, metric in metrics.items():

        def of_metric(result, name=name, field="value"):
            measured = result.metrics.get(name)
            return None if measured is None else getattr(measured, field)

        def stderr(result, of_metric=of_metric):
            return of_metric(result, field="stderr")

        tables.append(_table(name, metric.title or name, metric.shown, first, second, of_metric, stderr))
    title = "relative output error, mean over the layers"
    tables.append(_table(LAYER_ERROR, title, ".3e", first, second, lambda result: result.layer_error))
    return [table for table in tables if table.rows]


def _table(name: str, title: str, shown: str, first: BySeed, second: BySeed, *quantity: Any) -> Table:
    rows = []
    for row, alphabet in (place for place in first if place in second):
        found = difference(first[row, alphabet], second[row, alphabet], *quantity)
        if found is None:
            continue
        ratio = found.value / found.error if found.error else None
        rows.append(
            (
                row,
                alphabet,
                Number(found.first, f"{found.first:{shown}}"),
                Number(found.second, f"{found.second:{shown}}"),
                Number(found.value, f"{found.value:+{shown}}", found.error),
                None if found.error is None else Number(found.error, f"{found.error:.2g}"),
                None if ratio is None else Number(ratio, f"{ratio:+.1f}"),
                found.how,
            )
        )
    columns = (
        Column("row", "method"),
        Column("alphabet", "bits"),
        Column("first", "A"),
        Column("second", "B"),
        Column("difference", "B − A"),
        Column("error", "standard error"),
        Column("ratio", "in standard errors"),
        Column("how", "how"),
    )
    return Table(name, title, columns, tuple(rows))


def layer_ratios(first: BySeed, second: BySeed) -> dict[str, dict[tuple[str, str], float]]:
    """{alphabet: {(row, layer): error in the second run over that in the first}}, geometric means over common seeds.

    Layers whose error is zero in either run are left out.
    """
    logs: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row, alphabet in (place for place in first if place in second):
        for seed in (s for s in first[row, alphabet] if s in second[row, alphabet]):
            a, b = ({r.layer: r.output_error for r in run[row, alphabet][seed].layers} for run in (first, second))
            for layer in (name for name in a if a[name] > 0 and b.get(name, 0) > 0):
                own = logs.setdefault(alphabet, {}).setdefault((row, layer), [])
                own.append(math.log(b[layer] / a[layer]))
    return {
        alphabet: {place: math.exp(sum(values) / len(values)) for place, values in own.items()}
        for alphabet, own in logs.items()
    }
