"""Plots of quantities against bits, with error bars."""

from collections.abc import Sequence

from bokeh.layouts import column, row
from bokeh.models import (
    BooleanFilter,
    CDSView,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LayoutDOM,
    Legend,
    LegendItem,
    Line,
    MultiLine,
    Range1d,
    Scatter,
    Segment,
    Span,
    Title,
)
from bokeh.palettes import Category10, Category20
from bokeh.plotting import figure

from experiments.reports.page import WIDTH
from experiments.reports.series import Series, cut_below, series_of, ticks
from experiments.reports.table import MISSING, Matrix

_MARKERS = "circle square triangle diamond inverted_triangle plus x star hex asterisk".split()
_DASHES = ("solid", None, "dashed", "dotdash")  # by the kind of the alphabets
_PER_LINE = 3  # entries of the legend


def bits_plots(tables: Sequence[Matrix]) -> LayoutDOM | None:
    """A plot of each table that has numbers, and above them one legend, a click on which hides a row in all."""
    found = {table.name: series_of(table) for table in tables}
    tables = [table for table in tables if found[table.name]]
    if not tables:
        return None
    rows: dict[str, Series] = {}
    for one in (one for table in tables for one in found[table.name]):
        rows.setdefault(one.row, one)
    colours = _colours(1 + max(one.look for one in rows.values()))
    sources: list[tuple[ColumnDataSource, BooleanFilter]] = []
    figures = [_figure(table, found[table.name], colours, sources) for table in tables]
    pairs = [row(*figures[i : i + 2]) for i in range(0, len(figures), 2)]
    return column(_legend(list(rows.values()), colours, sources), *pairs)


def _colours(count: int) -> list[str]:
    if count <= 10:
        return list(Category10[10])
    return [*Category20[20][::2], *Category20[20][1::2]] * (count // 20 + 1)


def _line(one: Series, colours: list[str]) -> dict:
    return dict(line_color=colours[one.look], line_dash="dotted" if one.tuned else _DASHES[one.kind] or "solid")


def _marks(one: Series, colours: list[str]) -> dict:
    """Filled where the alphabet has half-integer levels, smaller with norm tuning."""
    colour, marker = colours[one.look], _MARKERS[one.look % len(_MARKERS)]
    fill = "white" if one.kind else colour
    return dict(marker=marker, size=5 if one.tuned else 9, line_color=colour, fill_color=fill)


def _figure(table: Matrix, found: list[Series], colours: list[str], sources: list):
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
    _draw(plot, found, colours, 0.5 * low if log else None, sources)
    if table.reference is not None and (not log or low <= table.reference.value <= high):
        plot.add_layout(Span(location=table.reference.value, dimension="width", line_dash="dashed", line_color="black"))
    notes = [f"{table.examples:,} test examples"] if table.examples else []
    if table.reference is not None:
        notes.append(f"float model {table.reference.shown}" + ("" if log else " (dashed)"))
    lowest = cut_below(table, found)
    if lowest is not None:
        notes.append(f"values below {lowest:.4g} are cut off")
    if notes:
        plot.add_layout(Title(text="; ".join(notes), text_font_style="normal", text_font_size="12px"), "above")
    plot.add_layout(Title(text=table.quantity, text_font_size="13px"), "above")
    return plot


def _draw(plot, found: list[Series], colours: list[str], floor: float | None, sources: list) -> None:
    """Lines, points and error bars of all series; on a logarithmic axis the bars go down to `floor` at most.

    All rows share a few glyphs, since a browser takes long for hundreds of them; filters show and hide rows.
    """
    joined = [one for one in found if one.tuned or _DASHES[one.kind] is not None]
    lines = dict(row=[one.row for one in joined])
    lines["bits"] = [[bits for bits, *_ in one.points] for one in joined]
    lines["value"] = [[number.value for *_, number in one.points] for one in joined]
    points: dict[str, list] = {}
    for one in found:
        for bits, alphabet, number in one.points:
            error = number.error or 0.0
            below = number.value - error
            point = dict(row=one.row, bits=bits, alphabet=alphabet, value=number.value, shown=number.shown)
            point |= dict(low=below if floor is None else max(below, floor), high=number.value + error)
            point |= dict(error=MISSING if number.error is None else f"{number.error:.2g}") | _marks(one, colours)
            for key, value in point.items():
                points.setdefault(key, []).append(value)
    for data, looks in ((lines, [_line(one, colours) for one in joined]), (points, [])):
        for look in looks:
            for key, value in look.items():
                data.setdefault(key, []).append(value)
        sources.append((ColumnDataSource(data), BooleanFilter([True] * len(data["row"]))))
    (of_lines, some_lines), (of_points, some_points) = sources[-2:]
    if joined:
        glyph = MultiLine(xs="bits", ys="value", line_color="line_color", line_dash="line_dash", line_width=1.8)
        plot.add_glyph(of_lines, glyph, view=CDSView(filter=some_lines))
    view = CDSView(filter=some_points)
    plot.add_glyph(of_points, Segment(x0="bits", x1="bits", y0="low", y1="high", line_color="line_color"), view=view)
    marks = {key: key for key in ("marker", "size", "line_color", "fill_color")}
    dots = plot.add_glyph(of_points, Scatter(x="bits", y="value", line_width=1.5, **marks), view=view)
    tips = [("method", "@row"), ("alphabet", "@alphabet"), ("value", "@shown"), ("±", "@error")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tips))


def _limits(table: Matrix, found: list[Series], log: bool) -> tuple[float, float]:
    """Of the axis: all points; where higher is better nothing much worse than the float model (see `cut_below`)."""
    numbers = [number for one in found for *_, number in one.points]
    low, high = min(n.value - (n.error or 0.0) for n in numbers), max(n.value + (n.error or 0.0) for n in numbers)
    if log:
        return min(number.value for number in numbers) / 1.4, 1.4 * high
    if table.reference is not None:
        value = table.reference.value
        low, high = min(low, value), max(high, value)
    lowest = cut_below(table, found)
    low = low if lowest is None else lowest
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _legend(rows: list[Series], colours: list[str], sources: list):
    """A plot of the legend alone, whose entries show and hide their rows."""
    lines = -(-len(rows) // _PER_LINE)
    plot = figure(width=WIDTH, height=32 * lines + 16, tools="", toolbar_location=None, outline_line_color=None)
    plot.xaxis.visible = plot.yaxis.visible = plot.grid.visible = False
    plot.x_range, plot.y_range = Range1d(0, 1), Range1d(0, 1)
    nowhere = ColumnDataSource(dict(x=[2.0, 3.0]))
    drawn = {
        one.row: plot.add_glyph(nowhere, Line(x="x", y="x", line_width=1.8, **_line(one, colours))) for one in rows
    }
    code = """
        for (const [source, filter] of sources)
            filter.booleans = Array.from(source.data.row, row => drawn[row].visible);
    """
    change = CustomJS(args=dict(sources=[list(pair) for pair in sources], drawn=drawn), code=code)
    items = []
    for one in rows:
        drawn[one.row].js_on_change("visible", change)
        marks = plot.add_glyph(nowhere, Scatter(x="x", y="x", line_width=1.5, **_marks(one, colours)))
        items.append(LegendItem(label=one.row, renderers=[drawn[one.row], marks]))
    legend = Legend(items=items, ncols=_PER_LINE, click_policy="hide", border_line_color=None, location="top_left")
    legend.label_text_font_size, legend.spacing, legend.margin = "13px", 8, 0
    plot.add_layout(legend, "center")
    return plot
