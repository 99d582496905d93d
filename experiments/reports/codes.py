"""Histograms of codes: how often each level is used."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, FixedTicker, HoverTool, LayoutDOM, NoOverlap, Select
from bokeh.plotting import figure

from experiments.reports.page import WIDTH


def code_plot(
    levels: Mapping[str, Sequence[float]], counts: Mapping[str, Mapping[str, Mapping[str, tuple]]]
) -> LayoutDOM:
    """A histogram of the codes of the row, alphabet and layer chosen.

    Args:
      levels: {alphabet: its levels}.
      counts: {row: {alphabet: {layer: (alphabet of the layer, number of codes at each of its levels)}}}.
    """
    title = next(iter(counts))
    alphabet = next(iter(counts[title]))
    layers = list(dict.fromkeys(layer for found in counts.values() for by in found.values() for layer in by))
    chosen = [title, alphabet, layers[0]]
    alphabets = list(dict.fromkeys(a for found in counts.values() for a in found))
    source = ColumnDataSource(_bars(levels, *counts[title][alphabet][layers[0]]))
    plot = figure(width=min(WIDTH, 760), height=300, tools="save", x_axis_label="level", y_axis_label="codes")
    plot.toolbar.logo = None
    plot.y_range.start = 0
    plot.left[0].formatter.use_scientific = False
    ticker = FixedTicker(ticks=source.data["level"])
    plot.xaxis.ticker, plot.xaxis.major_label_policy, plot.xgrid.visible = ticker, NoOverlap(), False
    bars = plot.vbar("level", "width", "count", source=source, fill_color="#4c84bd", line_color=None)
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("level", "@level"), ("codes", "@count{0,0}")]))
    options = dict(zip(("method", "alphabet (bits)", "layer"), (list(counts), alphabets, layers), strict=True))
    selects = [
        Select(title=name, options=names, value=value, width=280)
        for (name, names), value in zip(options.items(), chosen, strict=True)
    ]
    code = """
        const [name, count] = ((JSON.parse(counts)[row.value] ?? {})[alphabet.value] ?? {})[layer.value] ?? ["", []];
        const level = levels[name] ?? [];
        source.data = {level, count, width: level.map(() => widths[name])};
        ticker.ticks = level;
    """
    args = dict(zip(("row", "alphabet", "layer"), selects, strict=True), source=source, ticker=ticker)
    # As text, through which Bokeh does not search for models.
    args |= dict(counts=json.dumps(counts), levels=levels, widths={name: _width(own) for name, own in levels.items()})
    for select in selects:
        select.js_on_change("value", CustomJS(args=args, code=code))
    return column(row(*selects), plot)


def _bars(levels: Mapping[str, Sequence[float]], name: str, counts: Sequence[int]) -> dict[str, list]:
    return dict(level=list(levels[name]), count=list(counts), width=[_width(levels[name])] * len(counts))


def _width(levels: Sequence[float]) -> float:
    return 0.85 * float(np.diff(levels).min())
