"""What to quantize: QuantSpec, its rules, and the plan they make for the layers of a model."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from beacon_jax.graph.layers import Layer
from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.row_sample import RowSample

CALIBRATE_ON = ("float", "quantized", "both")
ROW_WEIGHTS = ("uniform", "influence")
KINDS = ("dense", "grouped", "conv")
LARGEST_SEED = 2**32 - 1  # beyond it JAX drops bits where double precision is off


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """An exception for the layers whose whole name matches the regular expression `layers`, and whose kind is `kind`.

    What is None stays as in the QuantSpec. `skip` leaves the layers, and other parameters of that path, in float.
    """

    layers: str = ".*"
    kind: str | None = None  # dense, grouped (experts) or conv; None for any
    method: str | None = None
    alphabet: str | float | Sequence[float] | None = None
    options: Mapping[str, Any] | None = None
    skip: bool = False

    def __str__(self) -> str:
        return repr(self.layers) + (f" of kind {self.kind}" if self.kind else "")

    def matches(self, layer: Layer) -> bool:
        """Whether it is about a layer, by its name or its parameter's path."""
        return self.kind in (None, layer.kind) and any(re.fullmatch(self.layers, n) for n in (layer.name, layer.path))

    def names(self, path: str) -> bool:
        """Whether it leaves a parameter of this path in float."""
        return self.skip and self.kind is None and re.fullmatch(self.layers, path) is not None


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """What to quantize, and by which method.

    Attributes:
      method: a key of METHODS.
      alphabet: an alphabet's name or its levels (see `make_alphabet`).
      layers: regular expression; layers whose whole name matches are quantized.
      calibrate_on: what a layer's inputs are taken from. "float": the float model (X̃ = X; Beacon without error
        correction). "quantized": the model whose earlier layers are quantized, for the output as well. "both": the
        float model's output from the quantized model's inputs (error correction).
      row_weights: how much the rows of a layer's inputs count, beside the weights given to `quantize`. "uniform": all
        alike. "influence": half of it alike, half in proportion to the root of how much the model's outputs depend
        on them (see influence.py): the model is differentiated, which takes the memory of a backward pass of a batch.
      rows_per_example: at most so many rows of each example count, drawn with `rows_seed` (see row_sample.py), and the
        others are left out: of the tokens of an image, or the places of a convolution. None for all of them.
      rows_seed: for rows_per_example, below 2³².
      options: keyword arguments of the method.
      rules: exceptions, LayerRule or dicts of its fields; a rule's layers are quantized even where `layers` does not
        match, and of several matching rules the last counts. A kernel that the model also uses in another way, such as
        an embedding that is the output layer too, is quantized only where a rule matches it.
      allow_few_rows: accept fewer calibration rows than a layer has inputs (a rank-deficient Gram matrix).
      strict: make it an error if any parameter is left in float that no rule with `skip` names.

    Raises:
      ValueError: unknown method, alphabet, option, kind, calibrate_on or row_weights; bad regular expression;
        rows_per_example or rows_seed no such number.
    """

    method: str = "beacon"
    alphabet: str | float | Sequence[float] = "2"
    layers: str = ".*"
    calibrate_on: str = "both"
    row_weights: str = "uniform"
    rows_per_example: int | None = None
    rows_seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: Sequence[LayerRule | Mapping[str, Any]] = ()
    allow_few_rows: bool = False
    strict: bool = False

    def __post_init__(self):
        _check_choice("calibrate_on", self.calibrate_on, CALIBRATE_ON)
        for what in ("allow_few_rows", "strict"):
            _check_kind(what, getattr(self, what), bool, "True or False")
        _check_choice("row_weights", self.row_weights, ROW_WEIGHTS)
        if self.rows_per_example is not None:
            _check_count("rows_per_example", self.rows_per_example, 1)
        _check_count("rows_seed", self.rows_seed, 0, LARGEST_SEED)
        if isinstance(self.rules, (str, Mapping, LayerRule)) or not isinstance(self.rules, Iterable):
            raise ValueError(f"rules is a list of LayerRule or of dicts, got {self.rules!r}")
        for one in (given := tuple(self.rules)):
            if not (isinstance(one, LayerRule) or hasattr(one, "keys")):
                raise ValueError(f"rules is a list of LayerRule or of dicts, got {one!r} in it")
        rules = tuple(rule if isinstance(rule, LayerRule) else _from_dict(LayerRule, rule) for rule in given)
        object.__setattr__(self, "rules", rules)
        for rule in (self, *rules):
            _check_kind("layers", rule.layers, str, "a regular expression")
            for what, kind, said in (("method", str, "a name"), ("options", Mapping, "a dict")):
                if getattr(rule, what) is not None:
                    _check_kind(what, getattr(rule, what), kind, said)
            for name in rule.options or {}:
                _check_kind("the name of an option", name, str, "a string")
            try:
                re.compile(rule.layers)
            except re.error as error:
                raise ValueError(f"layers={rule.layers!r} is not a regular expression: {error}") from error
            self._plan_layer(rule if isinstance(rule, LayerRule) else None)
        for own in rules:
            _check_kind("skip", own.skip, bool, "True or False")
            if own.kind is not None:
                _check_choice("kind", own.kind, KINDS)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "QuantSpec":
        """A spec from a config's keys; options that are None are left to the method. ValueError on an unknown key."""
        options = {k: v for k, v in (fields.get("options") or {}).items() if v is not None}
        return _from_dict(cls, {**fields, "options": options})

    @property
    def layer_rules(self) -> tuple[LayerRule, ...]:
        """`rules`, of which the dicts have been made LayerRules."""
        return tuple(rule for rule in self.rules if isinstance(rule, LayerRule))

    @property
    def sample(self) -> RowSample | None:
        """Which rows of each example count; None for all."""
        return None if self.rows_per_example is None else RowSample(self.rows_per_example, self.rows_seed)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, of JSON's types, of which `from_dict` makes the same spec."""
        return _plain(dataclasses.asdict(self))

    def plan(self, layers: Sequence[Layer], others: Sequence[str] = ()) -> dict[str, "LayerPlan"]:
        """The layers to quantize, in the order given, and how.

        Args:
          layers: those of the model.
          others: paths of the parameters that are no layers, which rules with `skip` may name.

        Raises:
          ValueError: a pattern that matches nothing, or nothing to quantize.
        """
        names = ", ".join(f"{layer.name} ({layer.kind})" for layer in layers)
        for pattern in (LayerRule(self.layers), *self.layer_rules):
            found = any(pattern.matches(layer) for layer in layers)
            if not (found or any(pattern.names(path) for path in others)):
                raise ValueError(f"no layer matches {pattern}; the layers are {names}")
        plan = {}
        for layer in layers:
            rule = self._rule(layer)
            asked = rule is not None or (not layer.other_uses and LayerRule(self.layers).matches(layer))
            if asked and not (rule and rule.skip):
                plan[layer.name] = self._plan_layer(rule)
        if not plan:
            raise ValueError(f"the rules skip every layer, or only what is used in two ways is left: {names}")
        return plan

    def _rule(self, layer: Layer) -> LayerRule | None:
        """Of the rules that match a layer the last, which counts."""
        return next((rule for rule in reversed(self.layer_rules) if rule.matches(layer)), None)

    def why_left(self, layer: Layer) -> str:
        """Why a layer that is not in the plan is left in float."""
        rule = self._rule(layer)
        if rule is not None:
            return f"skipped by the rule {rule}"
        if layer.other_uses:
            return f"used in two ways: multiplied by data, and {layer.other_uses}; no rule asks for it"
        return f"not matched by layers={self.layers!r}"

    def skips(self, layer: Layer) -> bool:
        """Whether a rule leaves a layer in float."""
        rule = self._rule(layer)
        return rule is not None and rule.skip

    def names(self, path: str) -> bool:
        """Whether a rule with `skip` names a parameter that is no layer."""
        return any(rule.names(path) for rule in self.layer_rules)

    def _plan_layer(self, rule: LayerRule | None) -> "LayerPlan":
        def own(field):
            value = getattr(rule, field) if rule else None
            return getattr(self, field) if value is None else value

        method = own("method")
        _check_choice("method", method, METHODS)
        # Options belong to a method, so a rule that changes the method starts from that method's defaults.
        options = dict((rule.options or {}) if rule and rule.method else own("options"))
        if METHODS[method].check(**options).reads_residual and self.calibrate_on != "both":
            raise ValueError(
                f"a residual stream can only be aimed at with calibrate_on='both', got {self.calibrate_on!r} with "
                f"residual={options['residual']!r}"
            )
        alphabet = own("alphabet")
        return LayerPlan(method, str(alphabet), make_alphabet(alphabet), options)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized: method, the alphabet's name and levels, the method's options."""

    method: str
    alphabet_name: str
    alphabet: np.ndarray
    options: dict[str, Any]

    @property
    def reads_residual(self) -> bool:
        """Whether the method takes the change of the residual stream into account."""
        return METHODS[self.method].check(**self.options).reads_residual

    def to_dict(self) -> dict[str, Any]:
        """Its fields, of JSON's types."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    """Dicts, lists, and Python's numbers instead of other mappings, sequences and arrays."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def _check_choice(what: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; expected one of {', '.join(known)}")


def _check_kind(what: str, value: Any, kind: type, said: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{what} is {said}, got {value!r}")


def _check_count(what: str, value: Any, least: int, most: int | None = None) -> None:
    fits = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise ValueError(f"{what} is an integer, at least {least}{limit}, got {value!r}")


def _from_dict(cls, fields: Mapping[str, Any]):
    known = [field.name for field in dataclasses.fields(cls)]
    for key in fields:
        if key not in known:
            raise ValueError(f"unknown key {key!r} of {cls.__name__}; expected one of {', '.join(known)}")
    return cls(**fields)
