"""Mixed bit widths in the scripts: a cell with a budget in bits per parameter instead of one alphabet for all layers.

The fields of such a cell are those of a QuantSpec without its alphabet, and bits_per_parameter, candidate_alphabets.
"""

import dataclasses
from typing import Any

from beacon_jax import BitPlan, LayerRule, QuantSpec
from experiments import row_scales

KEYS = ("bits_per_parameter", "candidate_alphabets")
PREFIX = "mixed "


def column(bits_per_parameter: float) -> str:
    """The name of a budget's column in a table."""
    return f"{PREFIX}{bits_per_parameter:g}"


def is_mixed(quant: dict[str, Any]) -> bool:
    """Whether a cell has a budget."""
    return quant.get("bits_per_parameter") is not None


def spec_of(quant: dict[str, Any]) -> QuantSpec:
    """The QuantSpec of a cell's fields, where they are mixed without the alphabets that are to be chosen."""
    return QuantSpec.from_dict({key: value for key, value in quant.items() if key not in (*KEYS, row_scales.KEY)})


def choice_of(plan: BitPlan, spec: QuantSpec) -> dict[str, Any]:
    """What was chosen for a spec, in a form that can be written as JSON."""
    rules = [dataclasses.asdict(rule) for rule in plan.spec.rules[len(spec.rules) :]]
    return {"rules": rules, "shown": str(plan)}


def chosen_spec(spec: QuantSpec, choice: dict[str, Any]) -> QuantSpec:
    """The spec with what was chosen for it."""
    return dataclasses.replace(spec, rules=(*spec.rules, *(LayerRule(**fields) for fields in choice["rules"])))
