"""A program: a flat list of equations, what they compute and what depends on what."""

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


class Unsupported(ValueError):
    """The function cannot be read as a list of equations; the message says why, in one sentence."""


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A scalar written into an equation; equal to one of the same type and value, bit for bit."""

    value: Any
    aval: Any

    @functools.cached_property
    def key(self) -> tuple:
        """What two equal constants share."""
        return self.aval.shape, self.aval.dtype, bool(self.aval.weak_type), np.asarray(self.value).tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive operation; `inputs` are variables (int) or constants, `outputs` are variables.

    Variables are numbered in the order in which they come to be: parameter leaves, batch leaves, closed-over arrays,
    then the outputs of the equations. `key` holds all that decides what it computes but its inputs.
    """

    eqn: core.JaxprEqn
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    key: Any

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's parameters."""
        return self.eqn.params

    @property
    def reads(self) -> tuple[int, ...]:
        """The variables among its inputs."""
        return tuple(a for a in self.inputs if isinstance(a, int))

    def run(self, *values: jax.Array) -> Sequence[jax.Array]:
        """The outputs for the values of its inputs, constants included."""
        return bind(self.eqn, values)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What a function computes.

    Attributes:
      leaves: names of the parameter leaves, variables 0 … len(leaves) − 1.
      inputs: the batch's leaves, the variables that follow.
      constants: values of the closed-over arrays, by variable.
      equations: in the order in which they run.
      outputs: the function's outputs, flat: variables or constants.
      avals: shape and dtype of every variable.
      structure: the batch's tree structure.
    """

    leaves: tuple[str, ...]
    inputs: tuple[int, ...]
    constants: dict[int, jax.Array]
    equations: tuple[Equation, ...]
    outputs: tuple[Any, ...]
    avals: tuple[Any, ...]
    structure: Any

    @functools.cached_property
    def depends(self) -> tuple[list[frozenset[int]], list[bool]]:
        """For every variable: the parameter leaves that it depends on, and whether it depends on the batch."""
        count = len(self.avals)
        leaves: list[frozenset[int]] = [frozenset()] * count
        data = [False] * count
        for i in range(len(self.leaves)):
            leaves[i] = frozenset((i,))
        for i in self.inputs:
            data[i] = True
        for equation in self.equations:
            own = frozenset().union(*(leaves[v] for v in equation.reads))
            fed = any(data[v] for v in equation.reads)
            for v in equation.outputs:
                leaves[v], data[v] = own, fed
        return leaves, data

    @functools.cached_property
    def made_by(self) -> dict[int, int]:
        """The position of the equation that makes a variable; leaves, inputs and constants have none."""
        return {v: position for position, equation in enumerate(self.equations) for v in equation.outputs}

    @functools.cached_property
    def readers(self) -> dict[int, list[int]]:
        """{variable: positions of the equations that read it}, once for each operand that it is; [] for none."""
        found: dict[int, list[int]] = defaultdict(list)
        for position, equation in enumerate(self.equations):
            for v in equation.reads:
                found[v].append(position)
        return found

    def nbytes(self, variable: int) -> int:
        """Size of a variable's value; out of all proportion for keys of random numbers, which do not wait on disk."""
        aval = self.avals[variable]
        return 2**50 if jnp.issubdtype(aval.dtype, jax.dtypes.extended) else aval.size * aval.dtype.itemsize

    def text(self) -> str:
        """All that decides what is computed but the values of parameters, batch and constants, as text."""
        lines = [f"{aval.dtype}{aval.shape}" for aval in self.avals]
        for e in self.equations:
            inputs = [a if isinstance(a, int) else a.key for a in e.inputs]
            params = re.sub("0x[0-9a-f]+", "", repr(sorted(e.params.items(), key=lambda item: item[0])))
            lines.append(f"{e.outputs} = {e.name} {params} {inputs}")
        return "\n".join([*lines, f"{self.outputs}" if all(isinstance(v, int) for v in self.outputs) else ""])


def leaf_names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """A name such as blocks_0/attn/qkv/kernel for every leaf, in the order of jax.tree.leaves."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]
    siblings = Counter(path[:-1] for path in paths)
    return ["/".join(_path(path, siblings[path[:-1]] == 1)) or "params" for path in paths]


def _path(keys, alone):
    # The box around a single array (nn.Partitioned, nnx.Param) is no part of its name.
    if alone and keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name in ("value", "raw_value"):
        keys = keys[:-1]
    for key in keys:
        field = next((f for f in ("key", "name", "idx") if hasattr(key, f)), None)
        yield str(key if field is None else getattr(key, field))


def bind(eqn: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """An equation's outputs for these inputs. Raises Unsupported where the primitive takes functions, as shard_map."""
    try:
        out = eqn.primitive.bind(*values, **eqn.params)
    except TypeError as error:
        if any(True for _ in core.jaxprs_in_params(eqn.params)):
            raise Unsupported(f"{eqn.primitive.name} inside the function is not supported") from error
        raise
    return out if eqn.primitive.multiple_results else [out]
