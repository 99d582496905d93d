"""What a user hands over to calibrate on, checked before it is used: batches, and weights of their rows."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.graph.program import Unsupported


def checked_batch(batch: Any, i: int) -> list[np.ndarray]:
    """The leaves of calibration batch number i as host arrays, float64 as float32 where JAX has no float64.

    Raises ValueError on what is no array, empty or not finite.
    """
    leaves = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        where = f"calibration batch {i}" + (f" at {jax.tree_util.keystr(path)}" if path else "")
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            raise ValueError(f"{where} is no array but a {type(leaf).__name__}; batches are pytrees of arrays")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(f"{where} is a key of random numbers; pass jax.random.key_data(key), and wrap it inside")
        leaf = np.asarray(leaf)
        if leaf.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            with np.errstate(over="ignore"):
                leaf = leaf.astype(np.float32)
        if leaf.size == 0:
            raise ValueError(f"{where} is empty, of shape {leaf.shape}")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf).all():
            raise ValueError(f"{where} holds NaN or infinity")
        leaves.append(leaf)
    if not leaves:
        raise ValueError(f"calibration batch {i} holds no arrays")
    return leaves


def checked_weights(weights: Any, leaves: list[np.ndarray], i: int) -> np.ndarray:
    """Row weights of a calibration batch with these leaves, as float32 of the shape given.

    Raises ValueError on what is no number, negative or not finite, or fits the first axes of no leaf.
    """
    weights = np.asarray(weights)
    if not (jnp.issubdtype(weights.dtype, jnp.number) or weights.dtype == bool):
        raise ValueError(f"weights of batch {i} are not numbers but {weights.dtype}")
    weights = weights.astype(np.float32)
    if weights.ndim == 0 or not any(a.shape[: weights.ndim] == weights.shape for a in leaves):
        shapes = ", ".join(str(a.shape) for a in leaves)
        raise ValueError(f"weights of batch {i} have shape {weights.shape}, the first axes of none of {shapes}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights of batch {i} must be finite and not negative")
    return weights


@contextlib.contextmanager
def shapes_told(i: int, shapes: Sequence[tuple[int, ...]], first: Sequence[tuple[int, ...]]) -> Iterator[None]:
    """Around reading the model for the i-th batch: whatever it raises for arrays that are not as the first batch's.

    Arrays that differ in their first axis alone, the examples, are as those. ValueError with the shapes of both.
    """
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:  # whatever a model raises
        if len(shapes) != len(first) or [shape[1:] for shape in shapes] == [shape[1:] for shape in first]:
            raise
        given, expected = (", ".join(map(str, own)) for own in (shapes, first))
        said = " ".join([f"{type(error).__name__}:", *str(error).strip().split("\n")[0].split()])
        raise ValueError(
            f"the model does not take calibration batch {i} of shape {given}, where the first was of {expected}: {said}"
        ) from error
