"""The ablation script: its lines, that it goes on where it was, and its tables."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import ablation


def line(title, seed, error, value, calibrate_on="float", alphabet="2"):
    place = dict(title=title, seed=seed, calibrate_on=calibrate_on, alphabet=alphabet)
    return dict(place, error=error, seconds=1.0, metrics={"top1": [value, 0.5]})


def test_tables_pair_seeds():
    lines = [
        line("Beacon", 0, 0.2, 90.0),
        line("Beacon", 1, 0.4, 92.0),
        line("+ bias", 0, 0.1, 91.0),
        line("+ bias", 1, 0.3, 95.0),
    ]
    here = ablation.Lines(lines, "float")
    assert here.error("+ bias", "2") == "0.20000 (-38 ± 12.5 %)"  # the mean of one half and three quarters
    assert here.number("+ bias", "2", "metrics", "top1", 0, form=".2f") == "93.00 ± 2.00 (+2.00 ± 1.00)"
    assert here.number("Beacon", "2", "metrics", "top1", 0, form=".2f") == "91.00 ± 1.00"
    assert here.error("COMQ", "2") == here.number("COMQ", "2", "seconds", form=".1f") == "–"
    assert here.titles == ["Beacon", "+ bias"] and not ablation.Lines(lines, "both").lines


def test_the_first_examples():
    batches = [{"x": np.arange(4), "y": np.ones((4, 2))}, {"x": np.arange(4, 8), "y": np.ones((4, 2))}]
    taken = list(ablation.first_examples(batches, 6))
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in taken]), np.arange(6))
    assert [len(batch["y"]) for batch in taken] == [4, 2]


def test_what_is_to_be_run_is_there_once():
    rows = ablation.ROWS[:2]
    assert len(ablation.cells(rows, ["2", "3"], [0, 1], ["float", "both"])) == 16
    for chosen, alphabets, seeds, message in (
        (ablation.ROWS[:1] * 2, ["2"], [0], "--steps has 'RTN, least-squares scale' twice"),
        (rows, ["2", "2"], [0], "--alphabets has '2' twice; each may be there once"),
        (rows, ["2"], [0, 0], "--seeds has 0 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            ablation.cells(chosen, alphabets, seeds, ["float"])


def run(*arguments):
    command = [sys.executable, "-m", "experiments.ablation", "--config=configs/digits.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


@pytest.mark.slow
def test_a_run_and_its_continuation(tmp_path):
    arguments = ["--alphabets=2", "--steps=0,6", "--only=float", "--held_out=40", f"--config.out={tmp_path}"]
    arguments += [f"--config.data.{key}" for key in ("calibration_images=16", "test_images=60", "batch_size=20")]
    first = run(*arguments)
    lines = [json.loads(text) for text in (tmp_path / "ablation.jsonl").read_text().splitlines()]
    assert [text["title"] for text in lines] == ["RTN, least-squares scale", "Beacon"]
    assert 0 < lines[1]["error"] < 0.7 * lines[0]["error"] < 0.7
    layers = list(lines[1]["layers"].values())
    assert len(layers) == 16 and np.mean(layers) == pytest.approx(lines[1]["error"])
    assert f"{lines[1]['error']:.5f} (+0 %)" in first
    before = (tmp_path / "ablation.jsonl").read_bytes()
    assert run(*arguments) == first
    assert (tmp_path / "ablation.jsonl").read_bytes() == before
