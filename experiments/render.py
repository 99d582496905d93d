"""Tables and plots from results, one dict per cell as experiments/tables.py writes them."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from tabulate import tabulate

from experiments.grid import TUNED

MISSING = "–"
CUT = 12  # percentage points


def _by_place(results: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(row, alphabet): its results, one per seed}, without the float model."""
    places: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        if result["quant"] is not None:
            places.setdefault((result["row"], result["alphabet"]), []).append(result)
    return places


def _mean(results: list[dict], field: str) -> float:
    return float(np.mean([r[field] for r in results]))


def _top1(results: list[dict]) -> str:
    """Top-1 ± its binomial standard error; for several seeds the mean ± the standard deviation over them."""
    values = [r["top1"] for r in results]
    spread = np.std(values, ddof=1) if len(values) > 1 else results[0]["top1_stderr"]
    return f"{np.mean(values):.2f} ± {spread:.2f}"


def _github(headers: list[str], body: list[list[str]]) -> str:
    align = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True, colalign=align)


def _matrix(grid: list, places, show, field: str) -> str:
    rows, alphabets = (list(dict.fromkeys(getattr(c, f) for c in grid if c.quant)) for f in ("row", "alphabet"))
    if field in ("layer_error", "seconds"):  # of the layers alone, which norm tuning leaves as they are
        rows = [row for row in rows if not row.endswith(TUNED)]
    body = [[row, *(show(places[row, a]) if (row, a) in places else MISSING for a in alphabets)] for row in rows]
    return _github(["method", *(f"{a} bit" for a in alphabets)], body)


def _published(published: list[tuple], places) -> str:
    """Published next to measured; what was not run is a dash."""
    body = []
    for row, alphabet, value in published:
        measured, difference = MISSING, MISSING
        if results := places.get((row, alphabet)):
            measured, difference = _top1(results), f"{_mean(results, 'top1') - value:+.2f}"
        body.append([row, alphabet, f"{value:.2f}", measured, difference])
    return _github(["method", "bits", "paper", "measured", "difference"], body)


def markdown(grid: list, results: list[dict], published: list[tuple] = ()) -> str:
    """The results as Markdown.

    Args:
      grid: the cells of the table (row, alphabet, quant), which give its rows and columns, run or not.
      results: those there are.
      published: (row, alphabet, top-1) of the paper, in percent; alphabet "" for the float model.
    """
    places = _by_place(results)
    floats = [r for r in results if r["quant"] is None]
    reference = floats[0]["top1"] if floats else float("nan")
    seeds = max(map(len, places.values()), default=1)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "± binomial standard error"
    shown = f"{_top1(floats)}, {floats[0]['count']} test images" if floats else MISSING
    tables = [
        (f"Top-1 in percent, {spread}; float model {shown}", "top1", _top1),
        ("Change of top-1 against the float model", "top1", lambda rs: f"{_mean(rs, 'top1') - reference:+.2f}"),
        (
            "Agreement: percentage of the test images with the float model's most likely class",
            "agreement",
            lambda rs: f"{_mean(rs, 'agreement'):.2f}",
        ),
        (
            "Relative output error ‖XW − X̃Ŵ‖²/‖XW‖², mean over the layers, each on the inputs it was calibrated on",
            "layer_error",
            lambda rs: f"{_mean(rs, 'layer_error'):.2e}",
        ),
        (
            "Relative error of the test images' logits against the float model's",
            "logit_error",
            lambda rs: f"{_mean(rs, 'logit_error'):.2e}",
        ),
        (
            "Seconds to solve all layers, compilation included (a row's first alphabet compiles for all)",
            "seconds",
            lambda rs: f"{_mean(rs, 'seconds'):.1f}",
        ),
    ]
    parts = [f"{title}\n\n{_matrix(grid, places, show, field)}\n" for title, field, show in tables]
    if published:
        parts.insert(0, f"Top-1, published and measured\n\n{_published(published, places | {('Float', ''): floats})}\n")
    return "\n".join(parts)


def write_csv(results: list[dict], path: Path) -> None:
    """One line per result."""
    columns = ["row", "alphabet", "seed", "calibration_images", "top1", "top1_stderr", "top5", "count"]
    columns += ["agreement", "layer_error", "logit_error", "seconds"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(results)


def plot(results: list[dict], path: Path) -> None:
    """Top-1 against the alphabet, one line per row, the float model dashed, norm tuning dotted.

    More than CUT points below the float model is off the picture, so that the rest can be told apart. The lines break
    between the symmetric alphabets and the integer grids, which are no continuation of one another.
    """
    places = _by_place(results)
    rows, alphabets = (list(dict.fromkeys(place[i] for place in places)) for i in (0, 1))
    families = [[a for a in alphabets if a.startswith("int") == integer] for integer in (False, True)]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    bases = list(dict.fromkeys(row.removesuffix(TUNED) for row in rows))
    for row in rows:
        look = bases.index(row.removesuffix(TUNED))
        style = dict(color=f"C{look % 10}", marker="osv^DPX*<>phd8"[look % 14], alpha=0.85)
        style |= dict(linestyle=":", markersize=3) if row.endswith(TUNED) else dict(linestyle="-")
        label = None if row.endswith(TUNED) else row
        for family in families:
            points = [(alphabets.index(a), _mean(places[row, a], "top1")) for a in family if (row, a) in places]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
                label = None
    count = max((r["count"] for r in results), default=0)
    axes.set(xlabel="bits per weight", ylabel=f"top-1 on {count} test images (%)")
    if any(row.endswith(TUNED) for row in rows):
        axes.plot([], [], color="black", linestyle=":", marker=".", label="the same + norm tuning")
    for reference in (r for r in results if r["quant"] is None):
        axes.axhline(reference["top1"], color="black", linestyle="--", linewidth=1, label="Float")
        low, high = axes.get_ylim()
        if low < reference["top1"] - CUT:
            axes.set_ylim(reference["top1"] - CUT, high)
            axes.set_title(f"values more than {CUT} points below the float model are cut off", fontsize="small")
    axes.xaxis.set_major_locator(FixedLocator(range(len(alphabets))))
    axes.set_xticklabels(alphabets)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
