"""Two runs side by side: differences and their standard errors against numbers found by hand."""

import math

import numpy as np
import pytest

from experiments import report
from experiments.grid import TUNED
from experiments.lines import append_line
from experiments.reports.facts import Described
from experiments.reports.pairs import by_seed, difference_tables, layer_ratios
from tests.made_results import result
from tests.reports.pages import columns, external

METRICS = {"top1": Described("Top-1 in percent", ".2f", "higher")}
# RTN of three seeds in both runs and a fourth in the second; COMQ of one seed, at another alphabet in the first alone.
FIRST = [
    result("Float", "", 98.0),
    *(result("RTN", "2", top1, error, seed) for seed, (top1, error) in enumerate([(90, 0.2), (92, 0.1), (91, 0.3)])),
    result("COMQ", "2", 95.0, 0.1),
    result("COMQ", "3", 97.0, 0.1),
    result("COMQ" + TUNED, "2", 96.0),
]
SECOND = [
    result("Float", "", 98.0),
    *(
        result("RTN", "2", top1, error, seed)
        for seed, (top1, error) in enumerate([(91, 0.1), (94, 0.1), (94, 0.1), (50, 0.9)])
    ),
    result("COMQ", "2", 94.0, 0.2, made_with={"jax": "0.0.2"}),
    result("COMQ" + TUNED, "2", 96.0),
]


def test_differences_by_hand():
    tables = {table.name: table for table in difference_tables(by_seed(FIRST), by_seed(SECOND), METRICS)}
    top1 = {row[:2]: row[2:] for row in tables["top1"].rows}
    assert list(top1) == [("Float", ""), ("RTN", "2"), ("COMQ", "2"), ("COMQ" + TUNED, "2")]
    a, b, change, error, ratio, how = top1["RTN", "2"]
    # Differences 1, 2, 3: mean 2, standard deviation 1.
    assert (a.value, b.value, change.value, how) == (91, 93, 2, "paired over 3 seeds")
    assert error.value == change.error == pytest.approx(1 / math.sqrt(3)) and ratio.value == pytest.approx(12**0.5)
    assert (change.shown, error.shown, ratio.shown) == ("+2.00", "0.58", "+3.5")
    a, b, change, error, ratio, how = top1["COMQ", "2"]
    assert (change.value, how) == (-1, "one seed, both standard errors combined")
    assert error.value == pytest.approx(math.sqrt(0.5**2 + 0.5**2)) and ratio.shown == "-1.4"
    layers = {row[:2]: row[2:] for row in tables["layer_error"].rows}
    assert list(layers) == [("RTN", "2"), ("COMQ", "2")]
    # Differences −0.1, 0, −0.2.
    assert layers["RTN", "2"][2].value == pytest.approx(-0.1)
    assert layers["RTN", "2"][3].value == pytest.approx(0.1 / math.sqrt(3))
    *_, error, ratio, how = layers["COMQ", "2"]
    assert error is None and ratio is None and how == "one seed, no standard error"


def test_layer_ratios_are_geometric_means():
    ratios = layer_ratios(by_seed(FIRST), by_seed(SECOND))
    assert list(ratios) == ["2"]
    expected = {"RTN": (0.5 * 1 / 3) ** (1 / 3), "COMQ": 2.0}
    assert ratios["2"].keys() == {(row, f"blocks_0/{layer}") for row in expected for layer in ("fc1", "fc2")}
    for (row, _), ratio in ratios["2"].items():
        np.testing.assert_allclose(ratio, expected[row])


@pytest.fixture
def folders(tmp_path):
    for name, results in (("a", FIRST), ("b", SECOND)):
        (tmp_path / name).mkdir()
        # An older result of a cell, which does not count.
        for one in [result("COMQ", "2", 1.0), *results]:
            append_line(tmp_path / name / "results.jsonl", one.line())
    return [str(tmp_path / name) for name in "ab"]


def test_a_comparison_has_everything_inside(folders, capsys):
    path = report.write(folders)
    assert path.name == "comparison.html"
    assert "a, 7 results, without 1 earlier of the same cells\n" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    assert external(page) == []
    assert "4 cells of the same method and alphabet with a seed in common are compared, 1 are in A alone" in page
    assert "0.0.2 (COMQ)" not in page and "<td>jax</td><td>–</td><td>0.0.2</td>" in page
    data = columns(page)
    points = next(own for own in data if "place" in own)
    assert points["place"] == ["Float", "RTN, 2 bit", "COMQ, 2 bit", "COMQ + norm tuning, 2 bit"]
    assert points["value"] == [0, 2, -1, 0] and points["shown"] == ["+0", "+2", "-1", "+0"]
    heat = next(own for own in data if "colour" in own)
    assert heat["text"] == ["0.550", "2.000"] * 2 and heat["colour"] == [0.069, 1] * 2


def test_a_report_of_a_folder(folders):
    path = report.write(folders[:1])
    assert path.name == "report.html" and "<h2>Layers</h2>" in path.read_text(encoding="utf-8")


def test_mistakes(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=r"has neither results\.jsonl nor quantize\.jsonl"):
        report.write([str(tmp_path)])
    with pytest.raises(ValueError, match="takes one or two output folders, got 3"):
        report.main(["report", *folders, folders[0]])
    other = tmp_path / "other"
    other.mkdir()
    append_line(other / "results.jsonl", result("GPTQ", "4", 1.0).line())
    with pytest.raises(ValueError, match="have no results of the same row, alphabet and seed"):
        report.write([folders[0], str(other)])
