"""Leaves of parameters that are not simply numbers of a type that JAX has: keys of random numbers, wide types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from beacon_jax.graph.program import leaf_names

SHOWN = 6  # names in a warning


def is_key(leaf: Any) -> bool:
    """Whether it is a typed key of random numbers (of `jax.random.key`, not the older arrays of uint32)."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def key_name(key: jax.Array) -> str:
    """The name of a key's implementation, by which `as_key` makes it again; "" for one that JAX does not know."""
    name = jax.random.key_impl(key)
    return name if isinstance(name, str) else ""


def key_numbers(key: jax.Array) -> np.ndarray:
    """What a key, or an array of keys, consists of: uint32 of its shape and one more axis."""
    return np.asarray(jax.random.key_data(key))


def as_key(numbers: np.ndarray, name: str) -> jax.Array:
    """The key of `key_numbers` and `key_name`. ValueError for an unknown name, or numbers that are none of its keys."""
    try:
        return jax.random.wrap_key_data(jnp.asarray(numbers), impl=name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{numbers.dtype} {numbers.shape} is no key of the kind {name!r}") from error


def as_jax_arrays(params: Any) -> Any:
    """A pytree of arrays as JAX arrays; a warning names those that lose precision, as float64 where that is off."""
    arrays = jax.tree.map(jnp.asarray, params)
    triples = zip(leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(arrays), strict=True)
    narrowed = [f"{name} ({given.dtype} as {own.dtype})" for name, given, own in triples if given.dtype != own.dtype]
    if narrowed:
        logging.warning(
            "double precision is off in JAX, so that %d parameters lose some: %s%s; set JAX_ENABLE_X64=1 to keep it",
            len(narrowed),
            ", ".join(narrowed[:SHOWN]),
            ", …" if len(narrowed) > SHOWN else "",
        )
    return arrays
