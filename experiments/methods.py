"""The options of every method, as beacon_jax declares them: nothing here knows any method's options."""

import dataclasses
import types
import typing

from beacon_jax import METHODS


@dataclasses.dataclass(frozen=True)
class MethodOption:
    """An option's type, and whether it decides the result (or only speed and memory)."""

    type: type
    decides_result: bool


def method_options() -> dict[str, dict[str, MethodOption]]:
    """{method: {option: …}}."""
    return {
        name: {
            field.name: MethodOption(_kind(field.type), field.metadata["decides_result"])
            for field in dataclasses.fields(method.options)
        }
        for name, method in METHODS.items()
    }


def _kind(annotation) -> type:
    """int for int and for int | None."""
    return typing.get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation
