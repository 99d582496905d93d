"""How many multiplications an equation takes, in products and convolutions, what it runs inside of it included."""

import math
from typing import Any

from jax.extend import core


def multiplications(eqn: core.JaxprEqn) -> int:
    """Multiplications of products and convolutions in an equation.

    Of the functions inside it each counts as often as it runs: a scan's by its length, a shard_map's on every device;
    of a cond the branch with most of them, and of a while loop, whose length is not known, one trip.
    """
    name, params = eqn.primitive.name, eqn.params
    shapes = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]
    outputs = math.prod(getattr(eqn.outvars[0].aval, "shape", ())) if eqn.outvars else 0
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        return outputs * math.prod(shapes[0][i] for i in contract)
    if name == "conv_general_dilated":
        kernel = shapes[1]
        return outputs * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if name == "ragged_dot_general":  # each row is multiplied by the kernel of its own group alone
        numbers = params["ragged_dot_dimension_numbers"]
        (_, contract), (_, batch) = numbers.dot_dimension_numbers
        shared = {*contract, *batch, *numbers.rhs_group_dimensions}
        return math.prod(shapes[0]) * math.prod(n for i, n in enumerate(shapes[1]) if i not in shared)
    inside = [sum(map(multiplications, jaxpr.eqns)) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inside)
    return _runs(name, params) * sum(inside)


def _runs(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
