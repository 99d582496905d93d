"""The options of every method, as beacon_jax declares them: the scripts know none by name but the number of sweeps."""

import dataclasses
import typing

from beacon_jax import METHODS


def method_options() -> dict[str, dict[str, dataclasses.Field]]:
    """{method: {option: its field, whose metadata says what it is for and whether it decides the result}}."""
    return {name: {f.name: f for f in dataclasses.fields(method.options)} for name, method in METHODS.items()}


def option_types() -> dict[str, type]:
    """{option of any method: its type}, without None."""
    fields = [field for known in method_options().values() for field in known.values()]
    return {field.name: (typing.get_args(field.type) or (field.type,))[0] for field in fields}


def rounding_only() -> set[str]:
    """The options that change time, memory and, but for rounding, not the result."""
    return set().union(*(method.rounding_only for method in METHODS.values()))
