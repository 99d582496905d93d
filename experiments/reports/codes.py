"""Histograms of codes: how often each level is used."""

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
    data = {
        title: {a: {layer: _bars(levels[own], n) for layer, (own, n) in by.items()} for a, by in found.items()}
        for title, found in counts.items()
    }
    title = next(iter(data))
    alphabet = next(iter(data[title]))
    layers = list(dict.fromkeys(layer for found in data.values() for by in found.values() for layer in by))
    chosen = [title, alphabet, layers[0]]
    alphabets = list(dict.fromkeys(a for found in data.values() for a in found))
    source = ColumnDataSource(data[title][alphabet][layers[0]])
    plot = figure(width=min(WIDTH, 760), height=300, tools="save", x_axis_label="level", y_axis_label="codes")
    plot.toolbar.logo = None
    plot.y_range.start = 0
    plot.left[0].formatter.use_scientific = False
    ticker = FixedTicker(ticks=source.data["level"])
    plot.xaxis.ticker, plot.xaxis.major_label_policy, plot.xgrid.visible = ticker, NoOverlap(), False
    bars = plot.vbar("level", "width", "count", source=source, fill_color="#4c84bd", line_color=None)
    plot.add_tools(
        HoverTool(renderers=[bars], tooltips=[("level", "@level"), ("codes", "@count{0,0}"), ("", "@share")])
    )
    options = dict(zip(("method", "alphabet (bits)", "layer"), (list(data), alphabets, layers), strict=True))
    selects = [
        Select(title=name, options=names, value=value, width=280)
        for (name, names), value in zip(options.items(), chosen, strict=True)
    ]
    code = """
        const found = ((data[row.value] ?? {})[alphabet.value] ?? {})[layer.value];
        source.data = found ?? {level: [], width: [], count: [], share: []};
        ticker.ticks = source.data.level;
    """
    args = dict(data=data, source=source, ticker=ticker, row=selects[0], alphabet=selects[1], layer=selects[2])
    for select in selects:
        select.js_on_change("value", CustomJS(args=args, code=code))
    return column(row(*selects), plot)


def _bars(levels: Sequence[float], counts: Sequence[int]) -> dict[str, list]:
    gap = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    total = max(sum(counts), 1)
    return dict(
        level=list(levels),
        width=[0.85 * gap] * len(counts),
        count=list(counts),
        share=[f"{count / total:.2%}" for count in counts],
    )
