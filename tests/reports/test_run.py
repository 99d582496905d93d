"""The report of a run: what is in the file, and that it asks no network."""

import json
import re

import pytest

from experiments.grid import TUNED
from experiments.reports import facts
from experiments.reports.result_tables import result_tables
from experiments.reports.run import write_report
from tests.made_results import METRICS, result
from tests.reports.pages import columns, external

FACTS = {
    "config": {"model": {"name": "<tiny>"}, "data": {"name": "digits"}, "task": "a:b", "table": {"seeds": [0]}},
    "metrics": {},
    "versions": {"jax": "0.0.1"},
}


def written(folder, results, published=(), missing=0):
    tables = result_tables([one.cell for one in results], results, METRICS, published)
    write_report(folder / "report.html", "tiny", tables, results, FACTS, missing)
    return (folder / "report.html").read_text(encoding="utf-8")


RESULTS = [
    result("Float", "", 98.0, made_with={"jax": "0.0.1"}),
    result("RTN", "2", 90.0, error=0.3, made_with={"jax": "0.0.1"}),
    result("RTN", "3", 95.0, error=0.06, made_with={"jax": "0.0.2"}),
    result("<b>COMQ", "2", 93.0, error=0.1, made_with={"jax": "0.0.1"}),
    result("RTN" + TUNED, "2", 91.0, made_with={"jax": "0.0.1"}),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), RESULTS, [("RTN", "2", 91.25)], missing=3)


def test_a_report_has_everything_inside(page):
    assert external(page) == []
    assert "5 results, 3 not computed yet; 2 layers quantized; 100 test examples." in page
    assert "Float model: Top-1 in percent 98.00 ± 0.50." in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Methods and bits", "Beside the paper&#39;s numbers", "Against bits", "Every result", "Sizes and seconds",
        "Norm tuning", "Layers", "Layers of one method", "Codes", "What identifies this run"]  # fmt: skip
    assert "0.0.1 (Float, RTN, &lt;b&gt;COMQ, RTN + norm tuning); 0.0.2 (RTN)" in page  # of which jax
    assert "&lt;tiny&gt;" in page and "<tiny>" not in page and "<b>COMQ" not in re.sub(r"<script.*?</script>", "", page)


def test_numbers_of_a_report(page):
    data = columns(page)
    matrix = next(own for own in data if own.get("t1") == ["90.00 ± 0.50", "93.00 ± 0.50", "91.00 ± 0.50"])
    assert matrix["t2"] == ["95.00 ± 0.50", "–", "–"] and matrix["w1"] == ["normal", "bold", "normal"]
    paper = next(own for own in data if own.get("t2") == ["91.25"])
    assert paper["v0"] == ["RTN"] and paper["t3"] == ["90.00 ± 0.50"] and paper["t4"] == ["-1.25"]
    points = next(own for own in data if "shown" in own and own["shown"][0] == "90.00 ± 0.50")
    assert points["row"][:2] == ["RTN", "RTN"] and points["bits"][:2] == [2, 3]
    assert points["low"][:2] == [89.5, 94.5] and points["high"][:2] == [90.5, 95.5]
    heat = next(own for own in data if "colour" in own)
    places = list(zip(heat["row"], heat["layer"], heat["text"], strict=True))
    assert places == [
        ("RTN", "blocks_0/fc1", "2.00e-01"), ("<b>COMQ", "blocks_0/fc1", "6.67e-02"),
        ("RTN", "blocks_0/fc2", "4.00e-01"), ("<b>COMQ", "blocks_0/fc2", "1.33e-01")]  # fmt: skip
    assert heat["colour"] == [0.613, 0, 1, 0.387]  # logarithms
    codes = next(own for own in data if "count" in own)
    assert codes["level"] == [-1.5, -0.5, 0.5, 1.5] and codes["count"] == [4, 2, 2, 0]  # both layers together


def test_a_report_of_little(tmp_path):
    """One result, and no more than the float model."""
    assert "Against bits" not in written(tmp_path, [RESULTS[1]])
    page = written(tmp_path, [RESULTS[0]])
    assert "<h2>Layers" not in page and "<h2>Codes" not in page and "<h2>Every result" in page


def test_facts_are_read_as_they_were_written(tmp_path):
    assert facts.read_facts(tmp_path) == {}
    (tmp_path / facts.FILE).write_text(json.dumps(FACTS), encoding="utf-8")
    assert facts.read_facts(tmp_path) == FACTS
    (tmp_path / facts.FILE).write_text('{"config": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged, or of another version"):
        facts.read_facts(tmp_path)
