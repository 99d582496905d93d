"""The report of two runs side by side, in one HTML file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, CustomJS, FactorRange, HoverTool, Select, Span
from bokeh.models.glyphs import Scatter, Segment
from bokeh.plotting import figure

from beacon_jax.disk import replace_text
from experiments.reports import facts
from experiments.reports.grids import data_of, grid
from experiments.reports.heat_map import Quantity, heat_map
from experiments.reports.page import WIDTH, Section, page
from experiments.reports.pairs import BySeed, by_seed, difference_tables, layer_ratios
from experiments.reports.table import Column, Table
from experiments.results import Result


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to compare: its folder as it was given, the latest results of each cell, and what `read_facts` gives.

    `older` counts the results of the same cells before, which are left out.
    """

    name: str
    results: Sequence[Result]
    facts: Mapping[str, Any]
    older: int = 0

    def __str__(self) -> str:
        older = f", without {self.older} earlier of the same cells" if self.older else ""
        return f"{self.name}, {len(self.results)} results{older}"


def write_comparison(path: Path, first: Run, second: Run) -> None:
    """Writes the comparison. ValueError where the runs have no cell of the same row, alphabet and seed."""
    a, b = by_seed(first.results), by_seed(second.results)
    common = {(*place, seed) for place in a if place in b for seed in a[place].keys() & b[place].keys()}
    if not common:
        raise ValueError(f"{first.name} and {second.name} have no results of the same row, alphabet and seed")
    lead = [
        f"A: {first}. B: {second}.",
        f"{len({place[:2] for place in common})} cells of the same method and alphabet with a seed in common are "
        f"compared, {_rest(a, b)}.",
    ]
    # Of what only one of them has nothing can differ.
    alike = [dataclasses.replace(run, results=_only(run.results, common)) for run in (first, second)]
    sections = [_what_differs(*alike), _differences(a, b, first, second), *_layers(a, b), _same(*alike)]
    replace_text(path, page("beacon_jax: two runs, A and B", lead, sections))


def _only(results: Sequence[Result], places: set[tuple[str, str, int]]) -> list[Result]:
    return [r for r in results if (r.cell.row, r.cell.alphabet, r.cell.seed) in places]


def _rest(a: BySeed, b: BySeed) -> str:
    only_a, only_b = (len([place for place in own if place not in other]) for own, other in ((a, b), (b, a)))
    return f"{only_a} are in A alone and {only_b} in B alone"


def _identities(run: Run) -> dict[str, dict[str, str]]:
    """{heading: {key: value}}"""
    return dict(facts.identity(run.facts, run.results))


def differing(first: Run, second: Run) -> list[Table]:
    """For each part of what identifies the runs the keys that differ; what one of them does not have is a dash."""
    ours, theirs = _identities(first), _identities(second)
    tables = []
    for title in {**ours, **theirs}:
        a, b = ours.get(title, {}), theirs.get(title, {})
        rows = tuple((key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key))
        if rows:
            tables.append(Table("differs", title, (Column("key", ""), Column("a", "A"), Column("b", "B")), rows))
    return tables


def _what_differs(first: Run, second: Run) -> Section:
    tables = differing(first, second)
    note = (
        "" if tables else "Nothing: methods, data, versions and configuration are the same, as far as they are known."
    )
    for run in (first, second):
        if not run.facts:
            note += f" {run.name} has no {facts.FILE}, so its configuration and versions are not known."
    return Section("differs", "What differs", note.strip(), facts=tuple(tables))


def _same(first: Run, second: Run) -> Section:
    ours, theirs = _identities(first), _identities(second)
    tables = []
    for title, own in ours.items():
        same = {key: value for key, value in own.items() if theirs.get(title, {}).get(key) == value}
        if same:
            tables.append(facts.facts_table(title, same))
    return Section("same", "What is the same", "", facts=tuple(tables), folded=True)


def _differences(a: BySeed, b: BySeed, first: Run, second: Run) -> Section:
    known = first.facts if first.facts else second.facts
    metrics = facts.metrics_of(known, [*first.results, *second.results])
    tables = difference_tables(a, b, metrics)
    note = "B less A. Where both have several seeds, the standard error is that of the mean of the differences seed by "
    note += (
        "seed. Where they have one in common, there are only the standard errors of each run over the test examples; "
    )
    note += "they are combined as if independent, which on the same test examples overstates the error as a rule."
    return Section("differences", "Differences", note, _chosen_differences(tables))


def _chosen_differences(tables: Sequence[Table]):
    """The differences of the quantity chosen, as a plot with error bars and as a table."""
    titles = [table.title for table in tables]
    largest = max(tables, key=lambda table: len(table.rows))
    points = [ColumnDataSource(_points(table)) for table in tables]
    rows = [ColumnDataSource(data_of(table)) for table in tables]
    dots, shown = ColumnDataSource(points[0].data), grid(largest, source=ColumnDataSource(rows[0].data))
    factors = [_place(row) for row in largest.rows]
    plot = figure(
        y_range=FactorRange(*reversed(factors)),
        width=min(WIDTH, 900),
        height=19 * len(factors) + 80,
        x_axis_label="B − A, ± its standard error",
        tools="pan,box_zoom,reset,save",
    )
    plot.toolbar.logo, plot.toolbar.autohide = None, True
    plot.add_layout(Span(location=0, dimension="height", line_color="#555555", line_dash="dashed"))
    plot.add_glyph(dots, Segment(x0="low", x1="high", y0="place", y1="place", line_color="#1f5fa8", line_width=2))
    marks = plot.add_glyph(dots, Scatter(x="value", y="place", size=8, fill_color="#1f5fa8", line_color="white"))
    tips = [("", "@place"), ("B − A", "@shown"), ("±", "@error"), ("", "@how")]
    plot.add_tools(HoverTool(renderers=[marks], tooltips=tips))
    select = Select(title="quantity", options=titles, value=titles[0], width=500)
    code = "const i = titles.indexOf(cb_obj.value); dots.data = points[i].data; shown.data = rows[i].data"
    args = dict(titles=titles, points=points, rows=rows, dots=dots, shown=shown.source)
    select.js_on_change("value", CustomJS(args=args, code=code))
    return column(select, shown, plot)


def _place(row) -> str:
    return f"{row[0]}, {row[1]} bit" if row[1] else row[0]


def _points(table: Table) -> dict[str, list]:
    differences = table.column("difference")
    errors = [number.error or 0.0 for number in differences]
    return dict(
        place=[_place(row) for row in table.rows],
        value=[number.value for number in differences],
        low=[number.value - error for number, error in zip(differences, errors, strict=True)],
        high=[number.value + error for number, error in zip(differences, errors, strict=True)],
        shown=[number.shown for number in differences],
        error=["–" if number.error is None else f"{number.error:.2g}" for number in differences],
        how=table.column("how"),
    )


def _layers(a: BySeed, b: BySeed) -> list[Section]:
    ratios = layer_ratios(a, b)
    if not ratios:
        return []
    places = [place for own in ratios.values() for place in own]
    rows, layers = list(dict.fromkeys(row for row, _ in places)), list(dict.fromkeys(layer for _, layer in places))
    title = "relative output error, B / A"
    note = "The error of each layer in B over that in A, each on the inputs it was calibrated on; blue: smaller in B, "
    note += "red: larger. Over several seeds the geometric mean."
    plot = heat_map([Quantity(title, ".3f", ratios, "ratio")], rows, layers)
    return [Section("layers", "Layer errors, B / A", note, plot)]
