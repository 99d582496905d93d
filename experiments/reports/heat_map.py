"""Heat maps of what is known of each layer: methods × layers, at one alphabet at a time."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    FactorRange,
    HoverTool,
    LayoutDOM,
    LinearColorMapper,
    Select,
)
from bokeh.palettes import Blues256, RdBu11, interp_palette
from bokeh.plotting import figure
from bokeh.transform import transform

from experiments.reports.page import WIDTH
from experiments.reports.table import MISSING

LIGHT_TO_DARK = tuple(Blues256[::-1][10:150])  # as far as black text can be read on it
AROUND_ONE = tuple(interp_palette(RdBu11[2:-2], 256))  # blue for less, red for more
_MISSING_COLOUR = "#f2f2f2"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """Numbers of layers.

    Fields:
      title: in words.
      shown: their format.
      values: {alphabet: {(row, layer): number}}; what is missing is a dash.
      scale: of the colours: "linear", "log", or "ratio", around 1.
    """

    title: str
    shown: str
    values: Mapping[str, Mapping[tuple[str, str], float]]
    scale: str = "linear"


def heat_map(quantities: Sequence[Quantity], rows: Sequence[str], layers: Sequence[str]) -> LayoutDOM:
    """A coloured and written number for each row (across) and layer (down), of the quantity and alphabet chosen."""
    alphabets = list(dict.fromkeys(alphabet for q in quantities for alphabet in q.values))
    places = [(title, layer) for layer in layers for title in rows]
    data = {q.title: {a: _shown(q, q.values.get(a, {}), places) for a in alphabets} for q in quantities}
    titles = [quantity.title for quantity in quantities]
    source = ColumnDataSource(
        dict(row=[title for title, _ in places], layer=[layer for _, layer in places]) | data[titles[0]][alphabets[0]]
    )
    plot = _figure(source, rows, layers, AROUND_ONE if quantities[0].scale == "ratio" else LIGHT_TO_DARK)
    quantity = Select(title="quantity", options=titles, value=titles[0], width=380)
    alphabet = Select(title="alphabet (bits)", options=alphabets, value=alphabets[0], width=160)
    code = "source.data = {...source.data, ...JSON.parse(data)[quantity.value][alphabet.value]}"
    # As text, through which Bokeh does not search for models.
    change = CustomJS(args=dict(source=source, data=json.dumps(data), quantity=quantity, alphabet=alphabet), code=code)
    for select in (quantity, alphabet):
        select.js_on_change("value", change)
    return column(row(alphabet, quantity) if len(titles) > 1 else alphabet, plot)


def _shown(quantity: Quantity, values: Mapping[tuple[str, str], float], places) -> dict[str, list]:
    """Texts, and colours from 0 to 1 (None for a missing number)."""
    numbers = np.array([values.get(place, np.nan) for place in places], np.float64)
    texts = [MISSING if np.isnan(number) else format(number, quantity.shown) for number in numbers]
    with np.errstate(divide="ignore"):
        scaled = numbers if quantity.scale == "linear" else np.log(numbers)
    finite = scaled[np.isfinite(scaled)]
    if quantity.scale == "ratio":
        most = max(np.abs(finite).max(initial=0.0), np.log(1.05))
        low, high = -most, most
    else:
        low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    colours = np.clip((scaled - low) / (high - low), 0, 1) if high > low else np.where(np.isnan(scaled), np.nan, 0.0)
    return dict(text=texts, colour=[None if np.isnan(colour) else round(colour, 3) for colour in colours.tolist()])


def _figure(source: ColumnDataSource, rows: Sequence[str], layers: Sequence[str], palette: tuple[str, ...]):
    longest = max(map(len, layers))
    wide = min(110, max(64, (WIDTH - 8 * longest - 60) // len(rows)))
    top, right = int(30 + 4.6 * max(map(len, rows))), max(40, int(6 * len(rows[-1])))  # for slanted labels
    plot = figure(
        x_range=FactorRange(*rows),
        y_range=FactorRange(*reversed(layers)),
        x_axis_location="above",
        width=8 * longest + wide * len(rows) + right + 20,
        min_border_right=right,
        height=22 * len(layers) + top,
        tools="save",
        toolbar_location="below",
    )
    plot.toolbar.logo = None
    plot.grid.visible = False
    plot.outline_line_color = None
    plot.axis.axis_line_color, plot.axis.major_tick_line_color = None, None
    plot.xaxis.major_label_orientation, plot.axis.major_label_text_font_size = 0.5, "12px"
    mapper = LinearColorMapper(palette=palette, low=0, high=1, nan_color=_MISSING_COLOUR)
    cells = plot.rect(
        "row", "layer", 0.96, 0.92, source=source, fill_color=transform("colour", mapper), line_color=None
    )
    style = dict(text_align="center", text_baseline="middle", text_font_size="12px", text_color="#111111")
    plot.text("row", "layer", "text", source=source, **style)
    tips = [("method", "@row"), ("layer", "@layer"), ("value", "@text")]
    plot.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    return plot
