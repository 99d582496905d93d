"""One table, as Markdown and CSV."""

from experiments.reports.table import Column, Number, Table, markdown, write_csv

TABLE = Table(
    "results",
    "Results, in percent",
    (Column("row", "method"), Column("top1", "top-1"), Column("seconds", "seconds")),
    (("RTN | x", Number(90.123456, "90.12 ± 0.50", 0.5), None), ("GPTQ, 2", None, Number(3, "3.0"))),
)


def test_markdown():
    title, head, line, *body = [line for line in markdown([TABLE]).splitlines() if line]
    assert title == "Results, in percent" and head.split() == ["|", "method", "|", "top-1", "|", "seconds", "|"]
    assert set(line) <= set("|-") and [row.split("|")[-2].strip() for row in body] == ["–", "3.0"]
    assert "90.12 ± 0.50" in body[0] and body[1].split("|")[2].strip() == "–"


def test_csv_has_all_digits_and_errors_where_there_are_any(tmp_path):
    write_csv(TABLE, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == [
        "row,top1,top1_stderr,seconds", "RTN | x,90.123456,0.5,", '"GPTQ, 2",,,3'
    ]  # fmt: skip
