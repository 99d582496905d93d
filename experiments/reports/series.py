"""What plots against bits draw: the points of each row, joined where their alphabets are of one kind."""

import dataclasses
import math
import statistics

import numpy as np

from beacon_jax.quant.alphabets import is_symmetric, make_alphabet
from experiments import mixed
from experiments.grid import TUNED
from experiments.reports.table import Matrix, Number

CUT = 0.15  # of the float model's value, see `cut_below`
# Kinds of alphabets, by `kind_of`.
KINDS = ("half-integer levels", "symmetric with a 0", "integer grids", "mixed")


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one row at alphabets of one kind, in the order of their bits.

    Fields:
      row: its title.
      look: which colour and marker, the same with and without norm tuning.
      tuned: whether with norm tuning.
      kind: of its alphabets, an index of KINDS.
      points: (bits, alphabet, number).
    """

    row: str
    look: int
    tuned: bool
    kind: int
    points: tuple[tuple[float, str, Number], ...]


def kind_of(alphabet: str) -> int:
    """Which of KINDS an alphabet, or a budget's column, is of."""
    if alphabet.startswith(mixed.PREFIX):
        return 3
    levels = make_alphabet(alphabet)
    if not np.any(levels == 0):
        return 0
    return 1 if is_symmetric(levels) else 2


def bits_of(alphabet: str) -> float:
    """The logarithm of the number of levels, to base 2; of a budget's column the budget."""
    if alphabet.startswith(mixed.PREFIX):
        return float(alphabet.removeprefix(mixed.PREFIX))
    return math.log2(make_alphabet(alphabet).size)


def series_of(table: Matrix) -> list[Series]:
    """All that the numbers of a table give, row by row."""
    looks = {title: i for i, title in enumerate(dict.fromkeys(row[0].removesuffix(TUNED) for row in table.rows))}
    found = []
    for title, *numbers in table.rows:
        points = [(bits_of(a), a, n) for a, n in zip(table.alphabets, numbers, strict=True) if n is not None]
        look, tuned = looks[title.removesuffix(TUNED)], title.endswith(TUNED)
        for kind in range(len(KINDS)):
            own = sorted((p for p in points if kind_of(p[1]) == kind), key=lambda point: point[:2])
            if own:
                found.append(Series(title, look, tuned, kind, tuple(own)))
    return found


def ticks(found: list[Series]) -> dict[float, list[str]]:
    """{bits: the alphabets there} of all points, in ascending order."""
    places: dict[float, dict[str, None]] = {}
    for bits, alphabet in sorted({(p[0], p[1]) for one in found for p in one.points}):
        places.setdefault(round(bits, 6), {})[alphabet] = None
    return {bits: list(names) for bits, names in places.items()}


def cut_below(table: Matrix, found: list[Series]) -> float | None:
    """The value below which points are off the picture, so that the rest can be told apart; None where all are on it.

    Where higher is better that is CUT below the float model's value, and less where half of the points would be off.
    """
    values = [number.value for one in found for *_, number in one.points]
    if table.better != "higher" or table.reference is None or not values:
        return None
    value = table.reference.value
    lowest = min(value - CUT * abs(value), statistics.median_low(values))
    return lowest if min(values) < lowest else None
