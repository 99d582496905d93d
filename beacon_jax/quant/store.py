"""Values that a loop stores before it uses them, so that XLA's code for a CPU is fast.

XLA fuses whatever is elementwise into the loop over the elements of what it is used for. That is slow for two kinds of
values: one that several others need is computed again for each of them, and a slice whose place is found at run time
keeps the whole loop from being vectorized. A value written to a buffer and read from there is neither.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Real, Shaped

from beacon_jax.quant.sweep import put


def buffer(shape: tuple[int, ...], dtype) -> Shaped[Array, " rows *rest"]:
    """A buffer for values of this shape."""
    # One row more, or XLA sees that all of it is replaced and takes the value itself.
    return jnp.zeros((shape[0] + 1, *shape[1:]), dtype)


class Store:
    """Buffers by name, carried through a loop as `buffers`.

    Args:
      buffers: from `buffer`, or from the step before.
      number: a scalar that is no NaN, which XLA must not know; where devices share the channels it is one that each of
        them has, or they would have to ask each other.
    """

    def __init__(self, buffers: dict[str, Array], number: Real[Array, ""]):
        self.buffers = dict(buffers)
        self._zero = jnp.isnan(number).astype(int)  # unknown to XLA, so that it does not see through what is stored

    def __call__(
        self, name: str, value: Shaped[Array, " rows *rest"], start: int = 0
    ) -> Shaped[Array, " {start}+rows *rest"]:
        """What the buffer now holds up to the end of the value, which lies in it from row `start` on."""
        self.buffers[name] = put(self.buffers[name], value, self._zero + start)
        return self.buffers[name][: start + value.shape[0]]
