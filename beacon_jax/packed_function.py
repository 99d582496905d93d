"""Runs a function on packed parameters so that a kernel is float only while it is used."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from beacon_jax.packed import PackedLeaf, is_packed


def run_packed(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The function (params, batch) → outputs of parameters some of which are a PackedLeaf, for use under jit.

    The outputs are those of `apply(dequantize(params), batch)`: to the last bit as far as the kernels decide it, while
    compilers may fuse what lies between them in another way, and so round it otherwise. There they are free to work all
    kernels out at the start, so that all are float in memory at once; here each waits for the data that it is
    multiplied with. What is inside a loop or a jit of the function's own gets its kernels before that starts.

    Args:
      apply: (params, batch) → outputs; any JAX function of arrays.
    """

    def run(params: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten(params, is_leaf=is_packed)
        if not any(map(is_packed, leaves)):
            return apply(params, batch)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_packed(leaf) else leaf for leaf in leaves]
        trace = jax.make_jaxpr(
            lambda leaves, batch: apply(jax.tree.unflatten(structure, leaves), batch), return_shape=True
        )
        closed, out = trace(shapes, batch)
        outputs = _evaluate(closed, [*leaves, *jax.tree.leaves(batch)])
        return jax.tree.unflatten(jax.tree.structure(out), outputs)

    return run


@dataclasses.dataclass
class _Waiting:
    """A value that follows from packed leaves alone; `make` gives it, once data is there that it is to wait for."""

    make: Callable[[jax.Array | None], Any]


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """The outputs, each equation that needs packed leaves alone being left until one needs data too."""
    jaxpr = closed.jaxpr
    used = {v for atoms in (jaxpr.outvars, *(e.invars for e in jaxpr.eqns)) for v in atoms if isinstance(v, core.Var)}
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    for variable, value in zip(jaxpr.invars, arguments, strict=True):
        known[variable] = _Waiting(functools.partial(_dequantized, value)) if is_packed(value) else value

    def there(variable, data):
        """The value of a variable, which has waited for these data."""
        if isinstance(known[variable], _Waiting):
            known[variable] = known[variable].make(data)
        return known[variable]

    def follow(equation, variables, data):
        outputs = [v for v in equation.outvars if v in used]
        alone = core.Jaxpr((), variables, outputs, [equation], equation.effects, jaxpr.debug_info)
        values = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*(there(v, data) for v in variables))
        return dict(zip(outputs, values, strict=True))

    def follow_one(equation, variables, out, data):
        return follow(equation, variables, data)[out]

    for equation in jaxpr.eqns:
        variables = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, core.Literal)))
        data = [known[v] for v in variables if not isinstance(known[v], _Waiting)]
        if variables and not data and len(equation.outvars) == 1 and not equation.effects:
            (out,) = equation.outvars
            known[out] = _Waiting(functools.partial(follow_one, equation, variables, out))
            continue
        known |= follow(equation, variables, next((a for a in data if jnp.size(a)), None))
    return [v.val if isinstance(v, core.Literal) else there(v, None) for v in jaxpr.outvars]


def _dequantized(leaf: PackedLeaf, data: jax.Array | None) -> jax.Array:
    """The leaf, not to be had before `data`."""
    zero = None if data is None else _zero_of(data)
    if zero is None:
        return leaf.dequantize()
    kernels = tuple(dataclasses.replace(kernel, words=kernel.words | zero) for kernel in leaf.kernels)
    return dataclasses.replace(leaf, kernels=kernels).dequantize()


def _zero_of(data: jax.Array) -> jax.Array | None:
    """A uint8 0 that compilers take to depend on the data; None for data that are no numbers."""
    data = jnp.asarray(data)
    if not (jnp.issubdtype(data.dtype, jnp.number) or data.dtype == bool):
        return None
    first = jnp.real(data.reshape(math.prod(data.shape))[0]).astype(jnp.float32)
    return jnp.where(jnp.isnan(first), 0.0, jnp.minimum(jnp.abs(first), 0.0)).astype(jnp.uint8)
