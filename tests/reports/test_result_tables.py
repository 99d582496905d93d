"""The tables of results, and the plot of one of them."""

import csv

import pytest

from configs import digits
from experiments import grid
from experiments.grid import TUNED
from experiments.reports.png import plot
from experiments.reports.result_tables import LONG, RESULTS, result_tables
from experiments.reports.table import markdown, text_of, write_csv
from tests.made_results import METRICS, result
from tests.pictures import assert_is_a_plot


def cells_of(**table):
    config = digits.get_config()
    config.norm_tuning.enabled = table.pop("norm_tuning", False)
    config.table.update(table)
    return grid.cells(config, "digest")


def tables_of(cells, found, published=()):
    """{title: rows of texts}"""
    found = result_tables(cells, found, METRICS, published)
    return {table.title: [[text_of(entry) for entry in row] for row in table.rows] for table in found}


def test_what_was_not_run_is_a_dash():
    cells = cells_of(rows=("rtn", "comq"), alphabets=("2", "3"), norm_tuning=True)
    found = [result("Float", "", 98.0), result("RTN", "2", 90.0), result("COMQ", "3", 97.0)]
    published = [("Float", "", 98.5), ("RTN", "2", 91.25), ("RTN", "3", 95.0)]
    tables = tables_of(cells, found, published)
    title = "Top-1 in percent, ± standard error; float model 98.00 ± 0.50, 100 test examples"
    assert tables[title] == [
        ["RTN", "90.00 ± 0.50", "–"], ["RTN" + TUNED, "–", "–"],
        ["COMQ", "–", "97.00 ± 0.50"], ["COMQ" + TUNED, "–", "–"]]  # fmt: skip
    assert tables["Change against the float model"][0] == ["RTN", "-8.00", "–"]
    assert tables["Perplexity"][0] == ["RTN", "3.000", "–"]
    assert [row[0] for title, rows in tables.items() if "output error" in title for row in rows] == ["RTN", "COMQ"]
    assert tables["Top-1 in percent, published and measured"] == [
        ["Float", "", "98.50", "98.00 ± 0.50", "-0.50"],
        ["RTN", "2", "91.25", "90.00 ± 0.50", "-1.25"],
        ["RTN", "3", "95.00", "–", "–"],
    ]
    assert not any("published" in title for title in tables_of(cells, found))
    empty = tables_of(cells, [])
    assert empty["Top-1 in percent, ± standard error; float model –"][0] == ["RTN", "–", "–"]
    assert empty["Change against the float model"][0] == ["RTN", "–", "–"]


def test_several_seeds_give_mean_and_standard_deviation():
    cells = cells_of(rows=("rtn",), alphabets=("2",), seeds=(0, 1, 2))
    found = [
        result("Float", "", 98.0),
        *(result("RTN", "2", top1, seed=i) for i, top1 in enumerate((90.0, 92.0, 94.0))),
    ]
    tables = tables_of(cells, found)
    title = "Top-1 in percent, mean ± standard deviation of 3 seeds; float model 98.00 ± 0.50, 100 test examples"
    assert tables[title] == [["RTN", "92.00 ± 2.00"]]
    assert tables["Change against the float model"] == [["RTN", "-6.00"]]


def test_every_result_is_a_line_of_the_csv_and_not_of_the_markdown(tmp_path):
    found = [result("Float", "", 98.0), result("RTN", "2", 90.0), result("RTN" + TUNED, "2", 91.0)]
    tables = result_tables([one.cell for one in found], found, METRICS, [("RTN", "2", 91.25)])
    write_csv(next(table for table in tables if table.name == RESULTS), tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["row"] for row in rows] == ["Float", "RTN", "RTN" + TUNED]
    assert [row["paper_top1"] for row in rows] == ["", "91.25", ""]
    assert rows[1]["top1"] == "90.0" and rows[1]["top1_stderr"] == "0.5" and rows[1]["perplexity_stderr"] == "0.1"
    assert float(rows[1]["layer_error"]) == pytest.approx(0.1) and float(rows[1]["seconds"]) == 1
    assert rows[1]["bytes"] == "8" and rows[1]["quantized"] == "0.5" and rows[0]["bytes"] == rows[2]["bytes"] == ""
    written = markdown(table for table in tables if table.name not in LONG)
    assert "Every" not in written and "blocks_0" not in written


@pytest.mark.parametrize("metrics", [METRICS, dict(reversed(METRICS.items()))], ids=["higher", "lower"])
def test_a_plot_of_either_direction(tmp_path, metrics):
    found = [result("Float", "", 98.0), result("RTN", "2", 20.0), result("RTN", "int2", 97.0)]
    found += [result("RTN" + TUNED, "2", 91.0), result("RTN", "mixed 2.5", 91.0)]
    for results in (found, []):
        tables = result_tables([one.cell for one in found], results, metrics)
        plot(next(table for table in tables if table.name == next(iter(metrics))), tmp_path / "plot.png")
        if results:
            assert_is_a_plot(tmp_path / "plot.png")
