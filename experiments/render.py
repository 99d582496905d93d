"""Tables and plots from results, one dict per cell as `tables.run_cell` makes them."""

import csv
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from tabulate import tabulate

MISSING = "–"


def _grid(results: list[dict]) -> tuple[list[str], list[str], dict[tuple[str, str], dict]]:
    """Row titles and alphabets in order, and {(row, alphabet): result}, without the float model."""
    quantized = [r for r in results if r["quant"] is not None]
    rows, alphabets = (list(dict.fromkeys(r[key] for r in quantized)) for key in ("row", "alphabet"))
    return rows, alphabets, {(r["row"], r["alphabet"]): r for r in quantized}


def _matrix(results: list[dict], show) -> str:
    rows, alphabets, by_cell = _grid(results)
    body = [[row] + [show(by_cell[row, a]) if (row, a) in by_cell else MISSING for a in alphabets] for row in rows]
    headers = ["method", *(f"{a} bit" for a in alphabets)]
    style = dict(tablefmt="github", disable_numparse=True, stralign="right", colalign=("left",))
    return tabulate(body, headers=headers, **style)


def markdown(results: list[dict]) -> str:
    """The results as Markdown: top-1 and its change against float, output errors, seconds."""
    reference = next(r for r in results if r["quant"] is None)
    top1 = _matrix(results, lambda r: f"{r['top1']:.2f} ({r['top1'] - reference['top1']:+.2f})")
    layers = _matrix(results, lambda r: f"{r['layer_error']:.2e}")
    logits = _matrix(results, lambda r: f"{r['logit_error']:.2e}")
    seconds = _matrix(results, lambda r: f"{r['seconds']:.1f}")
    return (
        f"Top-1 in percent on {reference['count']} test images (change against float, "
        f"{reference['top1']:.2f} ± {reference['top1_stderr']:.2f})\n\n{top1}\n\n"
        f"Relative output error ‖XW − X̃Ŵ‖²/‖XW‖², mean over the layers, each on the inputs it was calibrated on\n\n"
        f"{layers}\n\n"
        f"Relative error of the test images' logits against the float model's\n\n{logits}\n\n"
        f"Seconds to quantize, compilation included (the first alphabet of a row compiles for all)\n\n{seconds}\n"
    )


def write_csv(results: list[dict], path: Path) -> None:
    """One line per result."""
    columns = ("row", "alphabet", "top1", "top1_stderr", "top5", "count", "layer_error", "logit_error", "seconds")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(results)


def plot(results: list[dict], path: Path) -> None:
    """Top-1 against the alphabet's bits, one line per row, the float model dashed."""
    rows, alphabets, by_cell = _grid(results)
    reference = next(r for r in results if r["quant"] is None)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row, marker in zip(rows, "osv^DPX*<>phd8" * len(rows), strict=False):
        points = [(i, by_cell[row, a]["top1"]) for i, a in enumerate(alphabets) if (row, a) in by_cell]
        axes.plot(*zip(*points, strict=True), marker=marker, label=row, alpha=0.85)
    axes.axhline(reference["top1"], color="black", linestyle="--", linewidth=1, label="Float")
    axes.xaxis.set_major_locator(FixedLocator(range(len(alphabets))))
    axes.set_xticklabels(alphabets)
    axes.set(xlabel="bits per weight", ylabel=f"top-1 on {reference['count']} test images (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
