import re

import numpy as np

from experiments.figures import MEASURED, SERIES, error_against_bits, objective, read_tables


def test_tables_are_read_back(tmp_path):
    path = tmp_path / "tables.md"
    path.write_text(
        "Some error\n\n| row | 2 bit | 3 bit |\n|---|---|---|\n| A | 1.5e-2 ± 2e-3 | – |\n| B | -3 | 4.25 |\n",
        encoding="utf-8",
    )
    assert read_tables(path) == {
        "Some error": {"A": {"2 bit": (0.015, 0.002)}, "B": {"2 bit": (-3.0, 0.0), "3 bit": (4.25, 0.0)}}
    }


def test_error_against_bits_draws_what_was_measured():
    figure = error_against_bits(MEASURED / "ablation_digits_draws.md", "title")
    table = read_tables(MEASURED / "ablation_digits_draws.md")[
        "KL divergence from the float model in nats, with error correction"
    ]
    lines = {bar.get_label(): bar.lines[0] for bar in figure.axes[1].containers}
    assert set(lines) == {label for label, _, _ in SERIES.values()}
    for row, (label, _, _) in SERIES.items():
        np.testing.assert_array_equal(lines[label].get_ydata(), [value for value, _ in table[row].values()])


def test_the_objective():
    """Beacon's ray is the nearest of all; the best of the levels is next to the stationary point."""
    plane, levels = objective().axes
    errors = dict(re.findall(r"of (\w+): ([\d.]+) % error", " ".join(plane.get_legend_handles_labels()[1])))
    assert float(errors["Beacon"]) < float(errors["rounding"])
    dots = next(line for line in plane.lines if "possible codes" in str(line.get_label()))
    target = np.array(next(text for text in plane.texts if text.get_text() == "").xy)
    outputs = np.stack(dots.get_data(), axis=1)
    cosines = outputs @ target / np.linalg.norm(outputs, axis=1) / np.linalg.norm(target)
    np.testing.assert_allclose(float(errors["Beacon"]) / 100, 1 - cosines.max() ** 2, atol=0.01)
    curve, points, stationary = levels.lines
    best = points.get_xdata()[points.get_ydata().argmax()]
    assert abs(best - stationary.get_xdata()[0]) < 1
    assert points.get_ydata().max() <= curve.get_ydata().max() + 1e-9
