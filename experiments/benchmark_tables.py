"""The tables and the plot of experiments/benchmark.py."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tabulate import tabulate

from experiments.timing import PRODUCTS, SWEEPS

MOST_COST = {"fast": 4, "default": 10}  # of beacon_plus, Beacon = 1
MOST_RATIO, MOST_SPREAD = 3, 1.2  # targets: time over that of the products, 8 bit over 2 bit
MOST_APART = 1.35  # target: calibration but for the solve, over the products that it cannot do without
LEAST_FACTOR = {"2": 100, "4": 300}  # targets: the literal evaluation's time over Beacon's


def _table(rows: list[dict], columns: dict) -> str:
    """columns: {header: function of a row, or (key, format)}; what is None is a dash."""

    def cell(row, column):
        value = column(row) if callable(column) else row[column[0]]
        return "–" if value is None else value if callable(column) else format(value, column[1])

    body = [[cell(row, column) for column in columns.values()] for row in rows]
    align = ["left" if callable(column) else "right" for column in columns.values()]
    return tabulate(body, list(columns), tablefmt="github", disable_numparse=True, colalign=align)


def _shape(row: dict) -> str:
    return "{} × {}".format(*row["shape"])


def _verdict(holds: bool) -> str:
    return "met" if holds else "missed"


_TIMES = {"seconds": ("seconds", ".4f"), "products (s)": ("matmul_seconds", ".4f"), "ratio": ("ratio", ".2f")}


def _solvers(rows: list[dict]) -> str:
    columns = {"shape": _shape, "method": lambda r: r["method"], "alphabet": lambda r: r["alphabet"]} | _TIMES
    columns |= {"products (GFLOP/s)": ("gflop_per_second", ".0f")}
    columns |= {"sweeps": ("sweeps", ".2f"), "fixed points": ("fixed_points", ".0%")}
    columns |= {"compilation (s)": ("compile_seconds", ".2f")}
    beacon = [r for r in rows if r["method"] == "beacon" and not r["alphabet"].startswith("int")]
    worst = max(beacon, key=lambda r: r["ratio"])
    summary = [
        f"Worst ratio of Beacon: {worst['ratio']:.2f} ({_shape(worst)}, {worst['alphabet']} bit); target at most "
        f"{MOST_RATIO}: {_verdict(worst['ratio'] <= MOST_RATIO)}."
    ]
    seconds = {(_shape(r), r["alphabet"]): r["seconds"] for r in beacon}
    for shape in dict.fromkeys(shape for shape, _ in seconds):
        if (shape, "2") in seconds and (shape, "8") in seconds:
            spread = seconds[shape, "8"] / seconds[shape, "2"]
            summary.append(
                f"8 bit over 2 bit, {shape}: {spread:.2f}; target at most {MOST_SPREAD}: "
                f"{_verdict(spread <= MOST_SPREAD)}."
            )
    for effort, most in MOST_COST.items():
        costs = {
            _shape(r): r["seconds"] / seconds[_shape(r), "2"] for r in rows if r["method"] == f"beacon_plus, {effort}"
        }
        worst_shape = max(costs, key=costs.get)
        summary.append(
            f"beacon_plus, {effort}, over Beacon at 2 bit: at most {costs[worst_shape]:.1f} ({worst_shape}); target at "
            f"most {most}: {_verdict(costs[worst_shape] <= most)}."
        )
    summary.append(
        f"One layer of each shape at 2 bit: {sum(s for (_, alphabet), s in seconds.items() if alphabet == '2'):.2f} s. "
        "A model with several of each takes as many times that, DeiT-B 12 times that of its four shapes."
    )
    head = (
        f"## Solvers\n\nBeacon with K = {SWEEPS}; products: {PRODUCTS} plain float32 products of N × N and N × C; "
        "sweeps and fixed points: mean over the channels; compilation: the first call beyond the others, and one for "
        "all evenly spaced symmetric alphabets of a shape."
    )
    return "\n\n".join([head, _table(rows, columns), "\n".join(f"- {line}" for line in summary)])


def _dense(rows: list[dict]) -> str:
    columns = {"shape": _shape, "alphabet": lambda r: r["alphabet"], "cosines by": lambda r: r["form"]}
    columns |= {"ms per coordinate": lambda r: f"{r['coordinate_seconds'] * 1e3:.3f}"}
    columns |= {"literal (s)": ("dense_seconds", ".2f"), "Beacon (s)": ("beacon_seconds", ".4f")}
    columns |= {
        "factor": ("factor", ".0f"),
        "target": lambda r: f"≥ {LEAST_FACTOR[r['alphabet']]}: {_verdict(r['factor'] >= LEAST_FACTOR[r['alphabet']])}",
    }
    first = rows[0]
    return (
        "## Beacon and its literal evaluation\n\nLiteral: for every coordinate the candidate vectors of all levels and "
        "their cosines, in N dimensions, vmapped over the channels; the inner products as sums of elementwise products "
        f"or as matrix-vector products. Extrapolated from {first['coordinates']} coordinates of one sweep to "
        f"{first['extrapolated_to']} (start and {SWEEPS} sweeps).\n\n" + _table(rows, columns)
    )


def _gram(rows: list[dict]) -> str:
    columns = {"N": ("width", "d"), "rows": ("rows", "d"), "streams": ("streams", "d")} | _TIMES
    columns |= {"GFLOP/s": ("gflop_per_second", ".0f")}
    return (
        "## Gram statistics\n\nOne update; products: XᵀX alone for one stream, for two X̃ᵀX̃ and X̃ᵀX as well, all in "
        "full, which GFLOP/s counts; an update takes about half of those that are symmetric.\n\n"
        + _table(rows, columns)
    )


def _pipeline(part: dict) -> str:
    rows = []
    for run in part["runs"]:
        for layer in run["layers"]:
            rows.append({"name": layer["layer"], **layer})
        sums = {key: sum(r[key] for r in run["layers"]) for key in ("gram_seconds", "solve_seconds")}
        name, per_block = f"**one block, mean of {part['blocks']}**", {k: v / part["blocks"] for k, v in sums.items()}
        rows.append({"name": name, "shape": None, **per_block})
        for row in rows:
            row.setdefault("calibration", run["calibration"])
    columns = {"calibration": lambda r: r["calibration"], "layer": lambda r: r["name"]}
    columns |= {"shape": lambda r: _shape(r) if r["shape"] else ""}
    columns |= {"Gram (s)": ("gram_seconds", ".3f"), "solve (s)": ("solve_seconds", ".3f")}
    whole = [
        f"- Calibration {run['calibration']}, everything, {part['blocks']} block(s): {run['seconds']:.2f} s; the first "
        f"run takes {run['compile_seconds']:.2f} s more, for compilation."
        for run in part["runs"]
    ]
    whole += [
        f"- Calibration {run['calibration']}, everything but the solve: {run['apart_seconds']:.2f} s, the products "
        f"that it cannot do without {run['matmul_seconds']:.2f} s, ratio {run['ratio']:.2f}; "
        f"target at most {MOST_APART}: {_verdict(run['ratio'] <= MOST_APART)}. For as many images more: "
        f"{run['further_seconds']:.2f} s, ratio {run['further_ratio']:.2f}; target at most {MOST_APART}: "
        f"{_verdict(run['further_ratio'] <= MOST_APART)}."
        for run in part["runs"]
    ]
    forward = (
        f"- Float model of {part['forward_depth']} blocks, forward, batches of {part['batch']}: "
        f"{part['forward_images_per_second']:.1f} images/s."
    )
    if part["torch_images_per_second"] is not None:
        forward += f" In PyTorch, transformers' ViT of that size: {part['torch_images_per_second']:.1f} images/s."
    return (
        f"## Pipeline\n\nBeacon at 2 bit, {part['images']} calibration images, compiled before; the products that "
        "it cannot do without are a forward pass of each stream, and of the Gram matrices X̃ᵀX and half of the "
        "symmetric ones.\n\n" + _table(rows, columns) + "\n\n" + "\n".join([*whole, forward])
    )


def _growth(rows: list[dict]) -> str:
    columns = {
        "axis": lambda r: r["axis"],
        "values": lambda r: ", ".join(map(str, r["values"])),
        "seconds": lambda r: ", ".join(f"{s:.4f}" for s in r["seconds"]),
        "sweeps made": lambda r: r["sweeps_made"] and ", ".join(map(str, r["sweeps_made"])),
    }
    return (
        "## Growth\n\nExponents of power laws, by least squares in the logarithms.\n\n"
        + _table(rows, columns | {"exponent": ("exponent", ".2f")})
        + "\n\n![seconds along each axis](growth.png)"
    )


def _gib(size: int | None) -> str:
    return "not told" if size is None else f"{size / 2**30:.2f} GiB"


def _llm(row: dict) -> str:
    before, after = row["memory_before"], row["memory_after"]
    return (
        "## A large layer, 2 bit\n\n"
        + _table([row], {"shape": _shape} | _TIMES | {"compilation (s)": ("compile_seconds", ".2f")})
        + f"\n\nPeak memory before → after: process {_gib(before['process_bytes'])} → {_gib(after['process_bytes'])}, "
        f"device {_gib(before['device_bytes'])} → {_gib(after['device_bytes'])}."
    )


_SECTIONS = dict(solvers=_solvers, dense=_dense, gram=_gram, pipeline=_pipeline, growth=_growth, llm=_llm)


def markdown(result: dict, full: bool) -> str:
    """The parts that were measured, as tables; `full` tells that they are of the full sizes."""
    m = result["machine"]
    peaks = [
        f"{name} {_gib(peak['process_bytes'])} (device {_gib(peak['device_bytes'])})"
        for name, peak in result["peak_memory"].items()
    ]
    head = (
        f"# Benchmark\n\n{m['backend']} ({m['device']}), {m['cpus']} CPU cores, Python {m['python']}, jax {m['jax']}, "
        f"jaxlib {m['jaxlib']}, flax {m['flax']}. Random data; medians. Peak memory up to the end of each part: "
        f"{', '.join(peaks)}."
    )
    if not full:
        head += " The targets are meant for the full sizes, not for these."
    return "\n\n".join([head, *(_SECTIONS[name](part) for name, part in result["parts"].items())]) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """A panel for each axis of growth, measured points and fitted line."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, -(-len(rows) // 2)).flat
    for row, axes in zip(rows, panels, strict=False):  # this way round, zip takes no panel too many
        x = np.asarray(row["values"], float)
        axes.loglog(x, row["seconds"], "o", label="measured")
        axes.loglog(x, row["factor"] * x ** row["exponent"], "-", label="fitted")
        axes.set_title(f"{row['axis']}: exponent {row['exponent']:.2f}")
        axes.set(xlabel=row["axis"], ylabel="seconds")
        axes.set_xticks(x, [str(v) for v in row["values"]])
        axes.xaxis.set_minor_locator(NullLocator())
        # A decade at least, so that noise does not look like growth.
        low, high = np.log10(axes.get_ylim())
        margin = max(0.0, 1 - (high - low)) / 2
        axes.set_ylim(10 ** (low - margin), 10 ** (high + margin))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in panels:
        axes.set_axis_off()
    figure.savefig(path, dpi=120)
