"""How often levels are used."""

import types

import numpy as np
import pytest

from experiments.code_counts import code_counts, entropy, read_counts
from experiments.results import Result
from tests.made_results import result


def test_counts_have_a_number_for_each_level():
    matrix = types.SimpleNamespace(codes=np.array([[0, 2, 2], [0, 0, 0]], np.uint8), alphabet=np.arange(4.0))
    assert code_counts(types.SimpleNamespace(layers={"fc": matrix})) == {"fc": (4, 0, 2, 0)}


def test_entropy_by_hand():
    assert entropy((3, 3, 3, 3)) == 2 and entropy((0, 5)) == 0
    assert entropy((2, 1, 1, 0)) == pytest.approx(1.5)


def test_lines_from_before_there_were_counts_are_read():
    assert read_counts(None) == {} and read_counts({"fc": [1, 2]}) == {"fc": (1, 2)}
    line = result("RTN", "2", 90.0).line()
    del line["codes"]
    assert Result.of_line(line).codes == {}
