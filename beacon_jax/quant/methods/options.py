"""Options of methods: fields of a frozen dataclass, each with what it means and what it may be."""

import dataclasses
import numbers
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

LARGEST = sys.float_info.max


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    decides_result: bool = True,
) -> Any:
    """A field of an options dataclass.

    Args:
      default: its value where none is given.
      help: one line for a user.
      unit: what a number counts or is a fraction of.
      choices: the strings that it may be.
      at_least, above: bounds of a number.
      decides_result: False for what changes time, memory and the order of sums alone. In double precision the codes
        stay the same; in float32 two levels that are equally good to within rounding may change places.

    All of these but the default are in the field's metadata.
    """
    limits = dict(choices=tuple(choices), at_least=at_least, above=above)
    return dataclasses.field(
        default=default, metadata=dict(help=help, unit=unit, **limits, decides_result=decides_result)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the options of all methods have in common: they are checked when they are made.

    Raises:
      ValueError: a value of another type, or one that the option may not have.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def frees_bias(self, has_bias: bool) -> bool:
        """Whether the method changes the bias of a layer that has one (or not), and so leaves the means to it."""
        return False

    @property
    def reads_residual(self) -> bool:
        """Whether the method takes the change of the residual stream into account, where it is known."""
        return False

    def deciding(self) -> dict[str, Any]:
        """The options that decide the result, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["decides_result"]}


def _check(field: dataclasses.Field, value: Any) -> None:
    union = isinstance(field.type, types.UnionType)
    kinds = typing.get_args(field.type) if union else (field.type,)
    if value is None and type(None) in kinds:
        return
    kind, limits = kinds[0], field.metadata
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{field.name} must be True or False, got {value!r}")
    if kind is str and not (isinstance(value, str) and value in limits["choices"]):
        raise ValueError(f"unknown {field.name} {value!r}; expected one of {', '.join(limits['choices'])}")
    if kind is int and not (_is_number(value, numbers.Integral) and value >= limits["at_least"]):
        raise ValueError(f"{field.name} must be an integer of at least {limits['at_least']}, got {value!r}")
    if kind is float:
        finite = _is_number(value, numbers.Real) and -LARGEST < value < LARGEST
        if limits["above"] is not None and not (finite and value > limits["above"]):
            raise ValueError(f"{field.name} must be a finite number above {limits['above']:g}, got {value!r}")
        if limits["at_least"] is not None and not (finite and value >= limits["at_least"]):
            raise ValueError(f"{field.name} must be a finite number of at least {limits['at_least']:g}, got {value!r}")


def _is_number(value, kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
