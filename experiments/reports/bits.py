"""Plots of quantities against bits, with error bars."""

from collections.abc import Sequence

from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem, Line, Range1d, Scatter, Segment, Span, Title
from bokeh.palettes import Category10, Category20
from bokeh.plotting import figure

from experiments.reports.page import WIDTH
from experiments.reports.series import CUT, Series, series_of, ticks
from experiments.reports.table import Matrix

_MARKERS = "circle square triangle diamond inverted_triangle plus x star hex asterisk".split()
_DASHES = ("solid", None, "dashed", "dotdash")  # by the kind of the alphabets
_PER_LINE = 3  # entries of the legend


def bits_plots(tables: Sequence[Matrix]):
    """A plot of each table that has numbers, and above them one legend, a click on which hides a row in all."""
    found = {table.name: series_of(table) for table in tables}
    tables = [table for table in tables if found[table.name]]
    if not tables:
        return None
    titles = list(dict.fromkeys(one.row for table in tables for one in found[table.name]))
    colours = _colours(1 + max(one.look for series in found.values() for one in series))
    drawn: dict[str, list] = {title: [] for title in titles}
    figures = [_figure(table, found[table.name], colours, drawn) for table in tables]
    looks: dict[str, Series] = {}
    for one in (one for series in found.values() for one in series):
        looks.setdefault(one.row, one)
    pairs = [row(*figures[i : i + 2]) for i in range(0, len(figures), 2)]
    return column(_legend([looks[title] for title in titles], colours, drawn), *pairs)


def _colours(count: int) -> list[str]:
    if count <= 10:
        return list(Category10[10])
    return [*Category20[20][::2], *Category20[20][1::2]] * (count // 20 + 1)


def _look(one: Series, colours: list[str]) -> tuple[dict, dict]:
    """(of the line, of the points)."""
    colour = colours[one.look]
    line = dict(line_color=colour, line_width=1.8, line_dash="dotted" if one.tuned else _DASHES[one.kind] or "solid")
    fill = "white" if one.kind else colour
    points = dict(marker=_MARKERS[one.look % len(_MARKERS)], size=5 if one.tuned else 9, line_color=colour)
    return line, points | dict(fill_color=fill, line_width=1.5)


def _figure(table: Matrix, found: list[Series], colours: list[str], drawn: dict[str, list]):
    values = [number.value for one in found for _, _, number in one.points]
    log = table.better == "lower" and min(values) > 0
    low, high = _limits(table, found, log)
    places = ticks(found)
    margin = 0.06 * (max(places) - min(places)) or 0.5
    plot = figure(
        width=WIDTH // 2 - 30,
        height=360,
        y_axis_type="log" if log else "linear",
        x_range=Range1d(min(places) - margin, max(places) + margin),
        y_range=Range1d(low, high),
        tools="pan,box_zoom,wheel_zoom,reset,save",
        x_axis_label="bits per weight (logarithm of the number of levels)",
    )
    plot.toolbar.logo = None
    plot.toolbar.active_scroll, plot.toolbar.autohide = None, True
    plot.xaxis.ticker = list(places)
    plot.xaxis.major_label_overrides = {bits: " / ".join(names) for bits, names in places.items()}
    plot.xgrid.grid_line_alpha, plot.ygrid.grid_line_alpha = 0.5, 0.5
    dots = []
    for one in found:
        drawn[one.row] += _draw(plot, one, colours, 0.5 * low if log else None)
        dots.append(drawn[one.row][-1])
    tips = [("method", "@row"), ("alphabet", "@alphabet"), ("value", "@shown"), ("±", "@error")]
    plot.add_tools(HoverTool(renderers=dots, tooltips=tips))
    if table.reference is not None and (not log or low <= table.reference.value <= high):
        plot.add_layout(Span(location=table.reference.value, dimension="width", line_dash="dashed", line_color="black"))
    notes = [f"{table.examples:,} test examples"] if table.examples else []
    if table.reference is not None:
        notes.append(f"float model {table.reference.shown}" + ("" if log else " (dashed)"))
    if table.better == "higher" and table.reference is not None and min(values) < low:
        notes.append(f"more than {CUT:.0%} below it is cut off")
    if notes:
        plot.add_layout(Title(text="; ".join(notes), text_font_style="normal", text_font_size="12px"), "above")
    plot.add_layout(Title(text=table.quantity, text_font_size="13px"), "above")
    return plot


def _draw(plot, one: Series, colours: list[str], floor: float | None) -> list:
    """The line, the points and their error bars; on a logarithmic axis the bars go down to `floor` at most."""
    line, points = _look(one, colours)
    numbers = [number for *_, number in one.points]
    errors = [number.error or 0.0 for number in numbers]
    lower = [number.value - error for number, error in zip(numbers, errors, strict=True)]
    source = ColumnDataSource(
        dict(
            bits=[bits for bits, *_ in one.points],
            value=[number.value for number in numbers],
            low=lower if floor is None else [max(value, floor) for value in lower],
            high=[number.value + error for number, error in zip(numbers, errors, strict=True)],
            row=[one.row] * len(numbers),
            alphabet=[alphabet for _, alphabet, _ in one.points],
            shown=[number.shown for number in numbers],
            error=["–" if number.error is None else f"{number.error:.2g}" for number in numbers],
        )
    )
    # Glyphs added so bring no further ones for selection and hovering, of which the file would be full.
    colour = line["line_color"]
    bars = plot.add_glyph(source, Segment(x0="bits", y0="low", x1="bits", y1="high", line_color=colour))
    joined = one.tuned or _DASHES[one.kind] is not None
    lines = [plot.add_glyph(source, Line(x="bits", y="value", **line))] if joined else []
    return [bars, *lines, plot.add_glyph(source, Scatter(x="bits", y="value", **points))]


def _limits(table: Matrix, found: list[Series], log: bool) -> tuple[float, float]:
    """Of the axis: all points; where higher is better nothing much worse than the float model (see CUT)."""
    numbers = [number for one in found for *_, number in one.points]
    low, high = min(n.value - (n.error or 0.0) for n in numbers), max(n.value + (n.error or 0.0) for n in numbers)
    if log:
        return min(number.value for number in numbers) / 1.4, 1.4 * high
    if table.reference is not None:
        value = table.reference.value
        low, high = min(low, value), max(high, value)
        if table.better == "higher":
            low = max(low, value - CUT * abs(value))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _legend(looks: list[Series], colours: list[str], drawn: dict[str, list]):
    """A plot of the legend alone, whose entries show and hide what was drawn of their rows."""
    lines = -(-len(looks) // _PER_LINE)
    plot = figure(width=WIDTH, height=26 * lines + 20, tools="", toolbar_location=None, outline_line_color=None)
    plot.xaxis.visible = plot.yaxis.visible = plot.grid.visible = False
    plot.x_range, plot.y_range = Range1d(0, 1), Range1d(0, 1)
    items, nowhere = [], ColumnDataSource(dict(x=[2.0, 3.0]))
    for one in looks:
        line, points = _look(one, colours)
        own = [
            plot.add_glyph(nowhere, Line(x="x", y="x", **line)),
            plot.add_glyph(nowhere, Scatter(x="x", y="x", **points)),
        ]
        for renderer in drawn[one.row]:
            own[0].js_link("visible", renderer, "visible")
        items.append(LegendItem(label=one.row, renderers=own))
    legend = Legend(items=items, ncols=_PER_LINE, click_policy="hide", border_line_color=None, location="top_left")
    legend.label_text_font_size, legend.spacing, legend.margin = "13px", 2, 0
    plot.add_layout(legend, "center")
    return plot
