"""The figures of README and docs: from the tables in experiments/measured, and Beacon's objective drawn in the plane.

python -m experiments.figures [--out=FOLDER]
"""

import itertools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beacon_jax import METHODS, GramStats, make_alphabet

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


def objective() -> Figure:
    """What Beacon maximises: a cosine, over rays in the plane of two inputs, and over the levels of one coordinate."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    plane, levels = figure.subplots(1, 2)
    rows = np.random.default_rng(0).normal(size=(512, 2)) @ np.array([[1.0, 0.9], [0.0, 0.55]])
    _draw_rays(plane, rows / np.sqrt(len(rows)), np.array([[-0.9], [1.4]]))
    rng = np.random.default_rng(1)
    _draw_levels(levels, rng.normal(size=(256, 16)) @ rng.normal(size=(16, 16)) / 16, rng.normal(size=16))
    return figure


def _draw_rays(axes: Axes, X: np.ndarray, w: np.ndarray) -> None:
    """Xw of a kernel (2, 1), the rays of all Xq, and the projections on those of Beacon and of rounding."""
    _, R = np.linalg.qr(X)
    R *= np.sign(np.diag(R))[:, None]  # ‖Xv‖ = ‖Rv‖: the plane of all outputs, with its lengths and angles
    alphabet = make_alphabet("2")
    stats = GramStats.zeros(2).update(jnp.asarray(X, jnp.float32))
    target = (R @ w)[:, 0]
    outputs = np.array([R @ q for q in itertools.product(alphabet, repeat=2)])
    for output in outputs:
        axes.axline((0, 0), output, color="0.85", lw=0.8, zorder=0)
    axes.plot(*outputs.T, ".", color="0.5", ms=5, label="$Xq$ of the possible codes $q$")
    axes.annotate("", target, (0, 0), arrowprops=dict(arrowstyle="->", lw=1.6, shrinkA=0, shrinkB=0))
    axes.text(*target + 0.06, "$Xw$")
    for name, label, colour in (("rtn", "rounding", "tab:gray"), ("beacon", "Beacon", "tab:blue")):
        options = {"scale": "lsq"} if name == "rtn" else {}
        matrix = METHODS[name](jnp.asarray(w, jnp.float32), stats, "2", **options)
        output = R @ alphabet[np.asarray(matrix.codes)[:, 0]]
        foot = output * (output @ target) / (output @ output)
        axes.axline((0, 0), output, color=colour, lw=1)
        axes.plot(*zip(target, foot, strict=True), color=colour, ls=":", lw=1.5)
        error = np.square(target - foot).sum() / np.square(target).sum()
        axes.plot(*foot, "o", color=colour, label=f"$c\\,Xq$ of {label}: {100 * error:.2g} % error")
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
    axes.set_title("the scale is a projection, so the ray decides", fontsize="medium")
    axes.legend(fontsize="small", loc="lower left")


def _draw_levels(axes: Axes, X: np.ndarray, w: np.ndarray) -> None:
    """f(p), the cosine by the level of the first coordinate, the others rounded to nearest; levels of four bits."""
    alphabet = make_alphabet("4")
    q = alphabet[np.abs(w[:, None] * alphabet.max() / np.abs(w).max() - alphabet).argmin(1)]
    target, rest = X @ w, X[:, 1:] @ q[1:]

    def cosine(p):
        outputs = rest[:, None] + X[:, :1] * p
        return target @ outputs / np.linalg.norm(target) / np.linalg.norm(outputs, axis=0)

    a, b = target @ rest, rest @ rest
    h, d, H = X[:, 0] @ target, X[:, 0] @ rest, X[:, 0] @ X[:, 0]
    stationary = (h * b - a * d) / (a * H - h * d)
    p = np.linspace(alphabet.min() - 1, alphabet.max() + 1, 400)
    axes.plot(p, cosine(p), color="tab:blue", label="$f(p)$")
    axes.plot(alphabet, cosine(alphabet), "o", color="tab:blue", ms=4, label="the 16 levels of 4 bits")
    axes.axvline(stationary, color="0.5", ls=":", label="where $f'(p) = 0$")
    axes.set(xlabel="level $p$ of one coordinate", ylabel="cosine to the float output")
    axes.set_title("one stationary point, so two levels are looked at", fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


_FOLDER = flags.DEFINE_string("folder", "docs/figures", "The folder to write to.")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {' '.join(argv[1:])}")
    out = Path(_FOLDER.value)
    out.mkdir(parents=True, exist_ok=True)
    figure = error_against_bits(
        MEASURED / "ablation_digits_draws.md", "DeiT on handwritten digits, mean of three draws of the calibration data"
    )
    figure.savefig(out / "error_against_bits.png", dpi=120)
    objective().savefig(out / "objective.png", dpi=120)
    logging.info("figures in %s", out)


if __name__ == "__main__":
    app.run(main)
