"""The check of the shapes and dtypes in annotations, which conftest.py puts around the package's functions."""

import sys
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

# What holds, takes and gives arrays with shapes in its annotations.
MODULES = ("beacon_jax.quant",)


def checked(function: Callable) -> Callable:
    """The function with the arrays among its arguments, and its result, checked at every call.

    Other annotations are for mypy: a value of another type is the function's own to refuse, in its own words.
    """
    hints = {name: hint if _has_shape(hint) else Any for name, hint in function.__annotations__.items()}
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    own = beartype.beartype(function)
    return _unless_by_jax(function, own) if function.__name__ == "__init__" else own


def _has_shape(hint) -> bool:
    array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return array or any(map(_has_shape, typing.get_args(hint)))


def _unless_by_jax(function, own):
    """JAX fills dataclasses that are pytrees with whatever it likes: placeholders, shardings, truth values."""

    def check(*args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("jaxtyping."):
            frame = frame.f_back
        by_jax = frame.f_globals["__name__"].split(".")[0] == "jax"
        return (function if by_jax else own)(*args, **kwargs)

    return check
