"""What to quantize and how: QuantSpec, its rules, and the plan they make for the layers of a model."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from beacon_jax.models.stages import FORWARD_DTYPES
from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.streams import STORAGES

CALIBRATE_ON = ("float", "quantized", "both")
FLOAT_INPUTS = ("recomputed", "kept")


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """An exception for the layers whose whole name matches the regular expression `layers`.

    What is None stays as in the QuantSpec. `skip` leaves the layers in float.
    """

    layers: str
    method: str | None = None
    alphabet: str | float | Sequence[float] | None = None
    options: Mapping[str, Any] | None = None
    skip: bool = False


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """How to quantize a model.

    Attributes:
      method: a key of METHODS.
      alphabet: an alphabet's name or its levels (see `make_alphabet`).
      layers: regular expression; layers whose whole name matches are quantized.
      calibrate_on: what a layer's inputs are taken from. "float": the float model (X̃ = X; Beacon without error
        correction). "quantized": the model whose earlier layers are quantized, for the output as well. "both": the
        float model's output from the quantized model's inputs (error correction).
      options: keyword arguments of the method.
      rules: exceptions, LayerRule or dicts of its fields; a rule's layers are quantized even where `layers` does not
        match, and of several matching rules the last counts.
      activations: where calibration activations wait between stages: "disk" (constant memory) or "memory".
      float_inputs: with calibrate_on "both", whether the float model's layer inputs are "recomputed" for each layer
        input of a stage, or "kept" in `activations` from one pass: less arithmetic, more reading and writing (seven
        times as much for a transformer's block), the same result.
      forward_dtype: of the calibration's forward passes: "float32" (the parameters' own type, with true float32
        products on every backend) or "bfloat16"; Gram matrices and solvers are float32 with both. "float64" takes all
        of it, Gram matrices and solvers too, in double precision, so that the codes are the same on any number of
        devices; it needs jax_enable_x64.
      allow_few_rows: accept fewer calibration rows than a layer has inputs (a rank-deficient Gram matrix).

    Raises:
      ValueError: unknown method, alphabet, option, calibrate_on, activations, float_inputs or forward_dtype; bad
        regular expression; float64 without jax_enable_x64.
    """

    method: str = "beacon"
    alphabet: str | float | Sequence[float] = "2"
    layers: str = r"blocks_\d+/.*"
    calibrate_on: str = "both"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: Sequence[LayerRule | Mapping[str, Any]] = ()
    activations: str = "disk"
    float_inputs: str = "recomputed"
    forward_dtype: str = "float32"
    allow_few_rows: bool = False

    def __post_init__(self):
        _check_choice("calibrate_on", self.calibrate_on, CALIBRATE_ON)
        _check_choice("activations", self.activations, STORAGES)
        _check_choice("float_inputs", self.float_inputs, FLOAT_INPUTS)
        _check_choice("forward_dtype", self.forward_dtype, FORWARD_DTYPES)
        if self.forward_dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError("forward_dtype='float64' needs double precision in JAX: set JAX_ENABLE_X64=1")
        if isinstance(self.rules, (str, Mapping)):
            raise ValueError(f"rules is a list of LayerRule or of dicts, got {self.rules!r}")
        rules = tuple(rule if isinstance(rule, LayerRule) else _from_dict(LayerRule, rule) for rule in self.rules)
        object.__setattr__(self, "rules", rules)
        for rule in (self, *rules):
            try:
                re.compile(rule.layers)
            except re.error as error:
                raise ValueError(f"layers={rule.layers!r} is not a regular expression: {error}") from error
            self._plan_layer(None if rule is self else rule)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "QuantSpec":
        """A spec from a config's keys; options that are None are left to the method. ValueError on an unknown key."""
        options = {k: v for k, v in fields.get("options", {}).items() if v is not None}
        return _from_dict(cls, {**fields, "options": options})

    def plan(self, layers: Sequence[str]) -> dict[str, "LayerPlan"]:
        """The layers to quantize, in the order given, and how. ValueError if a pattern matches none of `layers`."""
        for pattern in (self.layers, *(rule.layers for rule in self.rules)):
            if not any(re.fullmatch(pattern, name) for name in layers):
                raise ValueError(f"no layer matches {pattern!r}; the nn.Dense layers are {', '.join(layers) or 'none'}")
        plan = {}
        for name in layers:
            rule = next((r for r in reversed(self.rules) if re.fullmatch(r.layers, name)), None)
            if (rule or re.fullmatch(self.layers, name)) and not (rule and rule.skip):
                plan[name] = self._plan_layer(rule)
        if not plan:
            raise ValueError("the rules skip every layer: nothing to quantize")
        return plan

    def _plan_layer(self, rule: LayerRule | None) -> "LayerPlan":
        def own(field):
            value = getattr(rule, field) if rule else None
            return getattr(self, field) if value is None else value

        method = own("method")
        _check_choice("method", method, METHODS)
        # Options belong to a method, so a rule that changes the method starts from that method's defaults.
        options = dict((rule.options or {}) if rule and rule.method else own("options"))
        METHODS[method].check(**options)
        alphabet = own("alphabet")
        return LayerPlan(method, str(alphabet), make_alphabet(alphabet), options)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized: method, the alphabet's name and levels, the method's options."""

    method: str
    alphabet_name: str
    alphabet: np.ndarray
    options: dict[str, Any]


def _check_choice(what: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")


def _from_dict(cls, fields: Mapping[str, Any]):
    known = [field.name for field in dataclasses.fields(cls)]
    for key in fields:
        if key not in known:
            raise ValueError(f"unknown key {key!r} of {cls.__name__}; expected one of {', '.join(known)}")
    return cls(**fields)
