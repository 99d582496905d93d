"""The figures of README and docs, from the tables in experiments/measured.

python -m experiments.figures [--out=FOLDER]
"""

import re
from pathlib import Path

from absl import app, flags, logging
from matplotlib.figure import Figure

MEASURED = Path(__file__).parent / "measured"
# Row of an ablation's table → label, colour, dashes.
SERIES = {
    "GPTQ, least-squares scale, act_order, bias": ("GPTQ, least-squares scale, act_order, bias", "tab:gray", "--"),
    "COMQ, least-squares scale": ("COMQ, least-squares scale", "tab:brown", "--"),
    "Beacon": ("Beacon (the paper's)", "tab:blue", "-"),
    "+ beam (default)": ("Beacon plus", "tab:orange", "-"),
    "default + influence + residual stream": ("Beacon plus, influence and residual stream", "tab:red", "-"),
}
PANELS = {
    "Mean error of the layers on test data": "mean relative error of the layers, test images",
    "KL divergence from the float model in nats": "KL divergence from the float model (nats)",
}


def read_tables(path: Path) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """{heading: {row: {column: (value, standard error, 0 where none is given)}}} of a file of Markdown tables."""
    tables: dict = {}
    heading, columns = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            heading, columns = line.strip() or heading, []
        elif not columns:
            columns = cells[1:]
        elif not set(cells[0]) <= set("-:"):
            found = {name: _number(cell) for name, cell in zip(columns, cells[1:], strict=True)}
            tables.setdefault(heading, {})[cells[0]] = {name: own for name, own in found.items() if own is not None}
    return tables


def _number(cell):
    match = re.match(r"([-+.\de]+)(?: ± ([-+.\de]+))?", cell)
    return None if match is None else (float(match[1]), float(match[2] or 0))


def error_against_bits(path: Path, title: str) -> Figure:
    """Layer error and KL divergence against bits, with error correction, from an ablation's tables."""
    tables = read_tables(path)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (panel, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        table = tables[f"{panel}, with error correction"]
        for row, (name, colour, dashes) in SERIES.items():
            bits = [float(column.removesuffix(" bit")) for column in table[row]]
            values, errors = zip(*table[row].values(), strict=True)
            axes.errorbar(bits, values, errors, label=name, color=colour, ls=dashes, marker="o", ms=4)
        axes.set(xlabel="bits", ylabel=label, yscale="log", xticks=bits, xticklabels=[f"{b:g}" for b in bits])
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.suptitle(title)
    return figure


_OUT = flags.DEFINE_string("out", "docs/figures", "The folder to write to.")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {' '.join(argv[1:])}")
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    figure = error_against_bits(
        MEASURED / "ablation_digits_draws.md", "DeiT on handwritten digits, mean of three draws of the calibration data"
    )
    figure.savefig(out / "error_against_bits.png", dpi=120)
    logging.info("figures in %s", out)


if __name__ == "__main__":
    app.run(main)
