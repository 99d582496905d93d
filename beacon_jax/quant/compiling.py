"""How the solvers are compiled: jax.jit, and on CPUs with vectors as wide as they have."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# XLA stays at 256 bits of its own accord. The solvers' loops are elementwise over the channels and gain from 512; CPUs
# without such vectors use what they have.
_CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


class Solver:
    """A jitted function in two compiled forms.

    Attributes:
      wide: for CPUs.
      plain: for other backends, and for calls from within another jitted function, which takes no options of its own.
    """

    def __init__(self, function: Callable, static_argnames: Sequence[str]):
        functools.update_wrapper(self, function)
        self.plain = jax.jit(function, static_argnames=static_argnames)
        self.wide = jax.jit(function, static_argnames=static_argnames, compiler_options=_CPU_OPTIONS)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The function's result, of the form that fits."""
        traced = any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(args))
        return (self.plain if traced or jax.default_backend() != "cpu" else self.wide)(*args, **options)


def jit_solver(*static_argnames: str) -> Callable[[Callable], Solver]:
    """A decorator like jax.jit with these static arguments, whose arrays are positional arguments."""
    return functools.partial(Solver, static_argnames=static_argnames)
