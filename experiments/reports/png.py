"""A picture of a table: its quantity against bits."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.grid import FLOAT
from experiments.reports.series import KINDS, cut_below, series_of, ticks
from experiments.reports.table import Matrix

# How points at alphabets of each kind are joined.
_JOINED = (
    dict(linestyle="-"),
    dict(linestyle="", marker="o", markerfacecolor="none"),
    dict(linestyle="--", marker="o", markerfacecolor="none"),
    dict(linestyle="-."),
)


def plot(table: Matrix, path: Path) -> None:
    """The quantity against the bits of the alphabet, a colour for each row, norm tuning dotted.

    What is much worse than the float model is off the picture (see `series.cut_below`); where lower is better the axis
    is logarithmic instead. Lines join alphabets of one kind alone (see `series.kind_of`).
    """
    found = series_of(table)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    named = set()
    for one in found:
        style = _JOINED[one.kind] | dict(color=f"C{one.look % 10}", marker="osv^DPX*<>phd8"[one.look % 14], alpha=0.85)
        if one.tuned:
            style |= dict(linestyle=":", markersize=3)
        label = None if one.tuned or one.row in named else one.row
        named.add(one.row)
        axes.plot([p[0] for p in one.points], [p[2].value for p in one.points], label=label, **style)
    axes.set(xlabel="bits per weight (logarithm of the number of levels)")
    axes.set(ylabel=f"{table.quantity}, {table.examples} test examples")
    for kind in sorted({one.kind for one in found}):
        axes.plot([], [], color="black", label=KINDS[kind], **_JOINED[kind])
    if any(one.tuned for one in found):
        axes.plot([], [], color="black", linestyle=":", marker=".", label="the same + norm tuning")
    if table.reference is not None:
        axes.axhline(table.reference.value, color="black", linestyle="--", linewidth=1, label=FLOAT)
        if table.better == "lower" and axes.dataLim.ymin > 0:  # the limits of the axes have a margin
            axes.set_yscale("log")
    lowest = cut_below(table, found)
    if lowest is not None:
        high = axes.get_ylim()[1]
        axes.set_ylim(lowest - 0.03 * (high - lowest), high)
        axes.set_title(f"values below {lowest:.4g} are cut off", fontsize="small")
    places = ticks(found)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.set_xticklabels(["\n".join(names) for names in places.values()])
    axes.grid(alpha=0.3)
    if found or table.reference is not None:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, format="png")
