"""A table of numbers as data, of which Markdown, CSV, plots and HTML are made."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured number: its value, how it is shown, and its error (of whichever kind the table's title names)."""

    value: float
    shown: str
    error: float | None = None


Entry = str | Number | None  # None was not measured


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its key (in CSV; of a column of one alphabet the alphabet's name) and its heading."""

    key: str
    heading: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under a title; every row has an entry for each column."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]

    def column(self, key: str) -> list[Entry]:
        """The entries of the column of this key."""
        place = [column.key for column in self.columns].index(key)
        return [row[place] for row in self.rows]

    def part(self, keys: Sequence[str], needing: Sequence[str] = ()) -> "Table":
        """The columns of these keys, in this order; with `needing` without rows that have nothing in any of those."""
        columns = {column.key: column for column in self.columns}
        rows = zip(*(self.column(key) for key in keys), strict=True)
        there = zip(*(self.column(key) for key in needing), strict=True) if needing else [(True,)] * len(self.rows)
        kept = tuple(row for row, own in zip(rows, there, strict=True) if any(entry is not None for entry in own))
        return Table(self.name, self.title, tuple(columns[key] for key in keys), kept)


@dataclasses.dataclass(frozen=True)
class Matrix(Table):
    """A quantity of methods (the first column) at alphabets (the others).

    Fields:
      quantity: what its numbers are, with the unit.
      better: "higher", "lower" or, where that is not known, "".
      reference: the float model's number, None where there is none.
      examples: the test examples that the numbers are of, 0 where they are of none.
    """

    quantity: str = ""
    better: str = ""
    reference: Number | None = None
    examples: int = 0

    @property
    def alphabets(self) -> list[str]:
        """Of its columns."""
        return [column.key for column in self.columns[1:]]


def text_of(entry: Entry) -> str:
    """An entry as it is shown."""
    return MISSING if entry is None else entry.shown if isinstance(entry, Number) else entry


def markdown(tables: Iterable[Table]) -> str:
    """The tables under each other, each below its title."""
    return "\n".join(f"{table.title}\n\n{_github(table)}\n" for table in tables)


def _github(table: Table) -> str:
    align = ("left",) + ("right",) * (len(table.columns) - 1)
    body = [[text_of(entry) for entry in row] for row in table.rows]
    headings = [column.heading for column in table.columns]
    return tabulate(body, headers=headings, tablefmt="github", disable_numparse=True, colalign=align)


def write_csv(table: Table, path: Path) -> None:
    """A line per row, all digits of every number, and its error beside it; empty where nothing was measured."""
    with_error = {
        column.key
        for i, column in enumerate(table.columns)
        if any(isinstance(row[i], Number) and row[i].error is not None for row in table.rows)
    }
    keys = [column.key for column in table.columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([name for key in keys for name in ([key, f"{key}_stderr"] if key in with_error else [key])])
        for row in table.rows:
            line: list = []
            for key, entry in zip(keys, row, strict=True):
                number = isinstance(entry, Number)
                line.append(entry.value if number else entry)
                if key in with_error:
                    line.append(entry.error if number else None)
            writer.writerow(line)
