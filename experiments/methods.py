"""The options of every method, as beacon_jax declares them: nothing here knows any method's options."""

import dataclasses
import inspect
import types
import typing

from beacon_jax import METHODS

_SPEED_ONLY = ("block_size", "channel_chunk")


@dataclasses.dataclass(frozen=True)
class MethodOption:
    """An option's type, and whether it decides the result (or only speed and memory)."""

    type: type
    decides_result: bool


def method_options() -> dict[str, dict[str, MethodOption]]:
    """{method: {option: …}}."""
    found = {}
    for method, solve in METHODS.items():
        keywords = [p for p in inspect.signature(solve).parameters.values() if p.kind is p.KEYWORD_ONLY]
        found[method] = {p.name: MethodOption(_kind(p.annotation), p.name not in _SPEED_ONLY) for p in keywords}
    return found


def _kind(annotation) -> type:
    """int for int and for int | None."""
    return typing.get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation
