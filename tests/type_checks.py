"""The check of the shapes and dtypes in annotations, which conftest.py puts around the package's functions."""

import sys
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np

# What has shapes in its annotations.
MODULES = (
    "beacon_jax.calibration_step",
    "beacon_jax.graph.place",
    "beacon_jax.graph.row_weights",
    "beacon_jax.influence",
    "beacon_jax.metrics",
    "beacon_jax.packed",
    "beacon_jax.preprocessing",
    "beacon_jax.quant",
    "beacon_jax.row_sample",
    "beacon_jax.row_scales",
)


def checked(function: Callable) -> Callable:
    """The function with the arrays among its arguments, and its result, checked at every call.

    Other annotations are for mypy: a value of another type is the function's own to refuse, in its own words.
    """
    hints = {name: hint if _has_shape(hint) else Any for name, hint in function.__annotations__.items()}
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    own = beartype.beartype(function)
    return _of_arrays(function, own) if function.__name__ == "__init__" else own


def _has_shape(hint) -> bool:
    array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return array or any(map(_has_shape, typing.get_args(hint)))


def _of_arrays(function, own):
    """The check of a dataclass that is a pytree, where it is made of arrays.

    JAX fills them with whatever it likes (placeholders, shardings, truth values); in_axes are such trees of numbers.
    """

    def check(*args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("jaxtyping."):
            frame = frame.f_back
        by_jax = frame.f_globals["__name__"].split(".")[0] == "jax"
        some = any(isinstance(a, jax.Array | np.ndarray) for a in jax.tree.leaves((args[1:], kwargs)))
        return (own if some and not by_jax else function)(*args, **kwargs)

    return check
