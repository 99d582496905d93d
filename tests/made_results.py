"""Results as a run of experiments.tables writes them, with numbers of one's own."""

from beacon_jax import LayerReport
from beacon_jax.evaluate import Measured, Perplexity, Top1
from experiments.grid import TUNED, Cell
from experiments.results import Result

METRICS = {"top1": Top1(), "perplexity": Perplexity()}
LAYERS = ("blocks_0/fc1", "blocks_0/fc2")
CODES = {"2": (2, 1, 1, 0), "3": (0, 0, 1, 1, 1, 1, 0, 0), "int2": (1, 2, 0, 1)}


def result(row, alphabet, top1, error=0.1, seed=0, perplexity=3.0, made_with=None):
    """The result of a cell; its second layer has twice the error of the first, whose mean is `error`."""
    title, tuned, _ = row.partition(TUNED)
    quant = {"method": "rtn", "calibrate_on": "float", "options": {"scale": None}} if alphabet else None
    settings, tuning = f"{row} {alphabet} {seed}", {"steps": 1} if tuned else None
    cell = Cell(title, alphabet, seed, 16, quant, tuning, settings, "", made_with or {})
    layers = ()
    if quant and not tuned:
        layers = tuple(
            LayerReport(name, "dense", (2, 2), "rtn", alphabet, own, 0.9, 0.8, 0, 4, 0.0, 0.5)
            for name, own in zip(LAYERS, (error * 2 / 3, error * 4 / 3), strict=True)
        )
    return Result(
        cell,
        {"top1": Measured(top1, 0.5, 100), "perplexity": Measured(perplexity, 0.1, 100)},
        layers,
        {"quantized": 0.5, "bits_per_parameter": 4.0, "parameters": 16, "multiplications": 0.25} if layers else None,
        {"step": 1, "before": 2.0, "after": 1.0} if tuned else None,
        {},
        {name: CODES[alphabet] for name in LAYERS} if layers and alphabet in CODES else {},
    )
