"""What experiments.tables writes of results: nothing where there are none, a report also of a run that is stopped."""

import types

import pytest

from configs import digits
from experiments import table_files, tables
from experiments.lines import append_line
from experiments.run_folder import RunFolder
from tests.made_results import METRICS, result

RESULTS = [result("Float", "", 98.0), result("RTN", "2", 90.0)]
GRID = [*(one.cell for one in RESULTS), result("RTN", "3", 95.0).cell]
TASK = types.SimpleNamespace(metrics=METRICS, main="top1", fingerprint=lambda: "digest")


@pytest.fixture
def config(tmp_path):
    config = digits.get_config()
    config.out = str(tmp_path)
    return config


def test_of_a_stopped_run_there_is_a_report(tmp_path, config):
    results = {one.cell.key: one for one in RESULTS}
    with (
        RunFolder(tmp_path) as folder,
        pytest.raises(KeyboardInterrupt),
        table_files.reported_when_stopped(GRID, results, config, folder, TASK),
    ):
        raise KeyboardInterrupt
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 results, 1 not computed yet; 2 layers quantized; 100 test examples." in page
    assert "90.00" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_what_there_is_so_far_is_shown_in_a_tenth_of_the_time(config, monkeypatch):
    now, shown = [0.0], []

    def rendered(*given):
        shown.append((now[0], *given))
        now[0] += 2

    monkeypatch.setattr(table_files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(table_files, "render_all", rendered)
    so_far = table_files.SoFar(GRID, {}, config, TASK)
    for now[0] in (0, 3, 21, 22, 41, 50):
        so_far.update()
    assert shown == [(time, GRID, {}, config, TASK) for time in (0, 22, 50)]


def test_what_stopped_a_run_is_said_first(tmp_path, config, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(table_files, "write_report", full)
    results = {one.cell.key: one for one in RESULTS}
    with (
        caplog.at_level("WARNING", logger="absl"),
        RunFolder(tmp_path) as folder,
        pytest.raises(RuntimeError, match="out of memory"),
        table_files.reported_when_stopped(GRID, results, config, folder, TASK),
    ):
        raise RuntimeError("out of memory")
    assert caplog.messages == ["there is no report of what was computed: no space left"]


def test_where_there_are_no_results_what_was_shown_stays(tmp_path, config, monkeypatch):
    """As after a change of RESULTS_VERSION: the lines are there, and are of other settings."""
    append_line(tmp_path / "results.jsonl", result("RTN", "2", 90.0).line())
    (tmp_path / "table.md").write_text("the table of before", encoding="utf-8")
    experiment = types.SimpleNamespace(provenance=types.SimpleNamespace(add_to=lambda cells: cells))
    for flag, value in (("_RENDER_ONLY", True), ("_SHARED", False)):
        monkeypatch.setattr(tables, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(tables.plan, "DRY_RUN", types.SimpleNamespace(value=False))
    monkeypatch.setattr(tables.common, "get_config", lambda: config)
    monkeypatch.setattr(tables, "make_task", lambda _: TASK)
    monkeypatch.setattr(tables, "Experiment", lambda *_: experiment)
    with pytest.raises(ValueError, match=r"results\.jsonl has no results of these settings and this version"):
        tables.main(["tables"])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "the table of before"
    assert not (tmp_path / "report.html").exists()
