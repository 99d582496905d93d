import pytest

from experiments.reports.series import cut_below, series_of
from experiments.reports.table import Column, Matrix, Number

COLUMNS = (Column("row", "method"), Column("2", "2 bit"), Column("3", "3 bit"))


def table(values, better="higher", reference=100.0):
    rows = [(f"row {i}", *(Number(value, str(value)) for value in own)) for i, own in enumerate(values)]
    number = None if reference is None else Number(reference, str(reference))
    return Matrix("top1", "Top-1", COLUMNS, tuple(rows), "Top-1", better, number)


CASES = {
    "all near the float model": (table([(90.0, 97.0), (92.0, 99.0)]), None),
    "one far below": (table([(10.0, 97.0), (92.0, 99.0)]), 85.0),
    "most far below": (table([(57.0, 71.0), (56.0, 76.0), (72.0, 83.0), (73.0, 87.0)]), 72.0),
    "all alike, far below": (table([(50.0, 50.0)]), None),
    "lower is better": (table([(1000.0, 20.0)], "lower", 16.0), None),
    "no float model": (table([(10.0, 97.0)], reference=None), None),
    "nothing yet": (table([]), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_picture_shows_what_is_near_the_float_model_and_at_least_half_of_the_points(case):
    given, expected = CASES[case]
    assert cut_below(given, series_of(given)) == expected
