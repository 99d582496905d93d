"""The results that a line of experiments.quantize holds: the float model, the quantized one, and the tuned one."""

from collections.abc import Mapping
from typing import Any

from beacon_jax.evaluate import Measured
from experiments import mixed
from experiments.code_counts import read_counts
from experiments.grid import FLOAT, Cell, alphabet_name
from experiments.results import Result, read_report


def results_of_line(line: Mapping[str, Any]) -> list[Result]:
    """The float model, quantized and, where the line has it, tuned. KeyError or TypeError of what is no such line."""
    config, quant = line["config"], line["config"]["quant"]
    budget = quant["bits_per_parameter"]
    alphabet = alphabet_name(quant["alphabet"]) if budget is None else mixed.column(budget)
    examples, key = config["data"]["calibration_images"], line["quant_key"]
    tuning = dict(config["norm_tuning"]) if "tuned" in line else None

    def result(which, title, alphabet, seed, examples, quant, tuning, **about):
        cell = Cell(title, alphabet, seed, examples, quant, tuning, line["key"], key, line["made_with"])
        return Result(cell, {name: Measured(**fields) for name, fields in line[which].items()}, **about)

    place = quant["method"], alphabet, config["seed"], examples, quant
    layers = tuple(read_report(fields) for fields in line["layers"])
    about = dict(layers=layers, coverage=line.get("coverage"), codes=read_counts(line.get("codes")))
    found = [
        result("float", FLOAT, "", 0, 0, None, None),
        result("quantized", *place, None, **about),
    ]
    if tuning is not None:
        found.append(result("tuned", *place, tuning, tuned=line["tuning"]))
    return found
