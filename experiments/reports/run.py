"""The report of one run: its tables, plots, layers, codes, and what identifies it, in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beacon_jax.disk import replace_text
from beacon_jax.quant.alphabets import make_alphabet
from experiments.reports import facts as run_facts
from experiments.reports.bits import bits_plots
from experiments.reports.codes import code_plot
from experiments.reports.grids import chosen_grid, filtered_grid, grid
from experiments.reports.heat_map import Quantity, heat_map
from experiments.reports.page import Section, page
from experiments.reports.result_tables import (
    CHANGE,
    LAYER_NUMBERS,
    PUBLISHED,
    RESULTS,
    SECONDS,
    layer_table,
)
from experiments.reports.table import Column, Matrix, Number, Table
from experiments.results import Result

ALL_LAYERS = "all layers"
_SIZES = "quantized multiplications parameters bits_per_parameter bytes seconds".split()  # columns of RESULTS


def write_report(
    path: Path,
    name: str,
    tables: Sequence[Table],
    results: Sequence[Result],
    facts: Mapping[str, Any],
    missing: int = 0,
) -> None:
    """Writes the report of a run.

    Args:
      path: the file.
      name: of the run, for the title.
      tables: what `result_tables` makes of the results.
      results: those that are shown.
      facts: what `facts.run_facts` or `facts.read_facts` gives.
      missing: how many results of the table there are not.
    """
    replace_text(
        path, page(f"beacon_jax: {name}", _lead(tables, results, facts, missing), _sections(tables, results, facts))
    )


def _lead(tables: Sequence[Table], results: Sequence[Result], facts: Mapping[str, Any], missing: int) -> list[str]:
    main = next(table for table in tables if isinstance(table, Matrix))
    layers = dict.fromkeys(layer.layer for result in results for layer in result.layers)
    count = f"{len(results)} results" + (f", {missing} not computed yet" if missing else "")
    lines = [f"{count}; {len(layers)} layers quantized; {main.examples:,} test examples."]
    config = facts.get("config", {})
    if name := config.get("model", {}).get("name"):
        lines.append(f"Model {name}, data {config.get('data', {}).get('name')}, task {config.get('task')}.")
    if main.reference is not None:
        lines.append(f"Float model: {main.quantity} {main.reference.shown}.")
    return lines


def _sections(tables: Sequence[Table], results: Sequence[Result], facts: Mapping[str, Any]) -> list[Section]:
    matrices = [table for table in tables if isinstance(table, Matrix) and table.rows]
    by_name = {table.name: table for table in tables}
    sections = []
    if matrices:
        note = "Choose the quantity; a click on a heading sorts. The best number of each column is bold."
        sections.append(Section("table", "Methods and bits", note, chosen_grid(matrices, "quantity")))
    if PUBLISHED in by_name:
        note = "The column paper has the published numbers; difference is measured less published."
        sections.append(Section("paper", "Beside the paper's numbers", note, grid(by_name[PUBLISHED])))
    plots = bits_plots([table for table in matrices if table.name not in (CHANGE, SECONDS)])
    if plots is not None and any(len(table.alphabets) > 1 for table in matrices):
        sections.append(Section("bits", "Against bits", _bits_note(results), plots))
    whole = by_name[RESULTS]
    measured = whole.part([column.key for column in whole.columns if column.key not in _SIZES])
    note = "Standard errors are over the test examples. The fingerprint is that of the line in the file of results."
    sections.append(Section("results", "Every result", note, grid(measured)))
    if (sizes := whole.part(("row", "alphabet", "seed", *_SIZES), needing=_SIZES)).rows:
        note = "Bytes are of the whole model: codes, scales, offsets, and what stays as it is. Seconds are to solve all"
        sections.append(Section("sizes", "Sizes and seconds", note + " layers, compilation included.", grid(sizes)))
    if tuned := _tuning(results):
        sections.append(Section("tuning", "Norm tuning", "The loss that it lowers, on held-out examples.", grid(tuned)))
    return [*sections, *_layer_sections(layer_table(results)), *_code_section(results), _identity(facts, results)]


def _bits_note(results: Sequence[Result]) -> str:
    seeds = {result.cell.seed for result in results if result.cell.quant}
    bars = "standard errors over the test examples"
    bars = f"standard deviations over the seeds, of one seed {bars}" if len(seeds) > 1 else bars
    text = f"Error bars: {bars}. Filled points: half-integer levels; hollow: alphabets with a 0, of which symmetric"
    text += " ones are not joined. A click on a method in the legend hides it everywhere."
    return text + (" Dotted: with norm tuning." if any(result.cell.tuning for result in results) else "")


def _tuning(results: Sequence[Result]) -> Table | None:
    rows = []
    for result in (result for result in results if result.tuned):
        numbers = [Number(value, f"{value:.4g}") for value in result.tuned.values()]
        rows.append((result.cell.row, result.cell.alphabet, Number(result.cell.seed, str(result.cell.seed)), *numbers))
    if not rows:
        return None
    names = next(list(result.tuned) for result in results if result.tuned)
    columns = [Column("row", "method"), Column("alphabet", "bits"), Column("seed", "seed")]
    return Table("tuning", "Norm tuning", tuple(columns + [Column(name, name) for name in names]), tuple(rows))


def layer_values(table: Table, key: str) -> dict[str, dict[tuple[str, str], float]]:
    """{alphabet: {(row, layer): mean over the seeds}} of a column of the table of layers, without what is missing."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    columns = [table.column(name) for name in ("row", "alphabet", "layer", key)]
    for title, alphabet, layer, number in zip(*columns, strict=True):
        own = found.setdefault(alphabet, {})
        if number is not None:
            own.setdefault((title, layer), []).append(number.value)
    return {a: {place: float(np.mean(values)) for place, values in own.items()} for a, own in found.items()}


def _layer_sections(table: Table) -> list[Section]:
    if not table.rows:
        return []
    quantities = []
    for key, (heading, shown) in LAYER_NUMBERS.items():
        values = layer_values(table, key)
        if any(values.values()):
            scale = "log" if key in ("output_error", "gram_seconds", "solve_seconds") else "linear"
            quantities.append(Quantity(heading, shown, values, scale))
    rows, layers = (list(dict.fromkeys(table.column(key))) for key in ("row", "layer"))
    note = (
        "Colours run from the smallest (light) to the largest number shown, of errors and seconds by their logarithms."
    )
    note += " Sweeps are those needed, mean over the channels, for the methods that report them."
    several = len({number.value for number in table.column("seed")}) > 1
    note += " Numbers are means over the seeds." if several else ""
    return [
        Section("layers", "Layers", note, heat_map(quantities, rows, layers)),
        Section("layer-table", "Layers of one method", "", filtered_grid(table, ("row", "alphabet"))),
    ]


def _code_section(results: Sequence[Result]) -> list[Section]:
    """Codes of the first seed; those of all layers together where these have one alphabet."""
    counts: dict[str, dict[str, dict[str, tuple]]] = {}
    for result in results:
        alphabets = {layer.layer: layer.alphabet for layer in result.layers}
        own = {name: (alphabets[name], found) for name, found in result.codes.items() if name in alphabets}
        by_alphabet = counts.setdefault(result.cell.row, {})
        if not own or result.cell.alphabet in by_alphabet:
            continue
        total = {}
        if len({alphabet for alphabet, _ in own.values()}) == 1:
            alphabet = next(iter(own.values()))[0]
            total[ALL_LAYERS] = alphabet, np.sum([found for _, found in own.values()], axis=0).tolist()
        by_alphabet[result.cell.alphabet] = total | own
    counts = {title: own for title, own in counts.items() if own}
    if not counts:
        return []
    names = {alphabet for own in counts.values() for by in own.values() for alphabet, _ in by.values()}
    levels = {name: make_alphabet(name).tolist() for name in names}
    note = "How many codes there are of each level."
    note += " Of the first seed." if len({result.cell.seed for result in results if result.codes}) > 1 else ""
    return [Section("codes", "Codes", note, code_plot(levels, counts))]


def _identity(facts: Mapping[str, Any], results: Sequence[Result]) -> Section:
    shown = [run_facts.facts_table(title, own) for title, own in run_facts.identity(facts, results) if own]
    note = "Versions and configuration are those of the latest run that wrote to the folder."
    return Section("run", "What identifies this run", note if facts else "", facts=tuple(shown), folded=True)
