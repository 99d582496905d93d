"""Tables that can be sorted, of the tables of results."""

import functools
import operator
from collections.abc import Sequence

import numpy as np
from bokeh.layouts import column as stacked
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJS,
    DataTable,
    GroupFilter,
    HTMLTemplateFormatter,
    LayoutDOM,
    NanCompare,
    Row,
    Select,
    StringFormatter,
    TableColumn,
)

from experiments.reports.page import WIDTH
from experiments.reports.table import Matrix, Table, text_of

_ROW, _MOST = 25, 560  # pixels: the height of a row, and of a table at most
_STYLE = """
.slick-header-columns { height: 40px; }
.slick-header .slick-header-column { height: 34px; white-space: normal; line-height: 15px; font-weight: 600; }
.slick-cell { font-size: 13px; }
"""


def data_of(table: Table) -> dict[str, Sequence]:
    """A table's columns: "v0" what is sorted, "t0" what is shown of numbers; of a Matrix "w0", its best are bold."""
    data: dict[str, Sequence] = {}
    for i in range(len(table.columns)):
        entries = [row[i] for row in table.rows]
        texts = [text_of(entry) for entry in entries]
        if any(isinstance(entry, str) for entry in entries):
            data[f"v{i}"] = texts
            continue
        data[f"t{i}"] = texts
        values = np.array([np.nan if entry is None else entry.value for entry in entries], np.float64)
        data[f"v{i}"] = values
        if isinstance(table, Matrix):
            best = {"higher": np.fmax, "lower": np.fmin}.get(table.better)
            best = best.reduce(values, initial=np.nan) if best else np.nan
            data[f"w{i}"] = ["bold" if value == best else "normal" for value in values]
    return data


def _columns(table: Table, data: dict[str, Sequence]) -> list[TableColumn]:
    columns = []
    for i, column in enumerate(table.columns):
        number = isinstance(data[f"v{i}"], np.ndarray)
        words = max(map(len, column.heading.split()), default=0)  # headings take two lines
        texts = data[f"t{i}" if number else f"v{i}"]
        widest = max([*map(len, texts), words, 0.55 * min(len(column.heading), 60)])
        weight = f";font-weight:<%- w{i} %>" if f"w{i}" in data else ""
        template = f'<div style="text-align:right{weight}"><%- t{i} %></div>'
        columns.append(
            TableColumn(
                field=f"v{i}",
                title=column.heading,
                width=max(50, int(7 * widest) + 20),
                formatter=HTMLTemplateFormatter(template=template) if number else StringFormatter(),
                **({"sorter": NanCompare(ascending_first=False)} if number else {}),
            )
        )
    return columns


def _width(columns: Sequence[TableColumn]) -> int:
    return min(WIDTH, sum(column.width for column in columns) + 20)


def _height(rows: int) -> int:
    return min(_MOST, _ROW * rows + 60)


def grid(table: Table, view: CDSView | None = None, source: ColumnDataSource | None = None) -> DataTable:
    """A table of which a click on a heading sorts the rows; numbers that are missing come last."""
    data = data_of(table)
    columns = _columns(table, data)
    return DataTable(
        source=source or ColumnDataSource(data),
        columns=columns,
        view=view or CDSView(),
        index_position=None,
        reorderable=False,
        autosize_mode="none",
        row_height=_ROW,
        width=_width(columns),
        height=_height(len(table.rows)),
        stylesheets=[_STYLE],
    )


def chosen_grid(tables: Sequence[Table], label: str = "Table") -> LayoutDOM:
    """One of several tables with the same columns, chosen by its title."""
    titles = [table.title for table in tables]
    sources = [ColumnDataSource(data_of(table)) for table in tables]
    largest = max(tables, key=lambda table: len(table.rows))
    shown = grid(largest, source=ColumnDataSource(data_of(tables[0])))
    select = Select(title=label, options=titles, value=titles[0], width=min(900, WIDTH))
    code = "shown.data = sources[titles.indexOf(cb_obj.value)].data"
    select.js_on_change("value", CustomJS(args=dict(shown=shown.source, sources=sources, titles=titles), code=code))
    return stacked(select, shown)


def filtered_grid(table: Table, keys: Sequence[str]) -> LayoutDOM:
    """The rows of a table for which the columns of `keys` have what is chosen for each."""
    source = ColumnDataSource(data_of(table))
    places = [[column.key for column in table.columns].index(key) for key in keys]
    filters, selects = [], []
    for place in places:
        options = list(dict.fromkeys(text_of(row[place]) for row in table.rows))
        filters.append(GroupFilter(column_name=f"v{place}", group=options[0]))
        selects.append(Select(title=table.columns[place].heading, options=options, value=options[0], width=280))
        selects[-1].js_link("value", filters[-1], "group")
    first = [select.value for select in selects]
    begin = [row for row in table.rows if [text_of(row[place]) for place in places] == first]
    shown = grid(table, CDSView(filter=functools.reduce(operator.and_, filters)), source)
    shown.columns = [column for i, column in enumerate(shown.columns) if i not in places]
    shown.width, shown.height = _width(shown.columns), _height(max(len(begin), 4))
    return stacked(Row(*selects), shown)
