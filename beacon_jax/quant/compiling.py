"""How the solvers are compiled: jax.jit, and on CPUs with vectors as wide as they have."""

import functools
from collections.abc import Callable

import jax

# XLA stays at 256 bits of its own accord. The solvers' loops are elementwise over the channels and gain from 512; CPUs
# without such vectors use what they have.
_CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


def jit_solver(*static_argnames: str) -> Callable[[Callable], Callable]:
    """A decorator like jax.jit with these static arguments, whose arrays are positional arguments.

    The result holds the two compiled forms: `wide`, for CPUs, and `plain`, for other backends and for calls from within
    another jitted function, which takes no options of its own.
    """

    def decorate(function: Callable) -> Callable:
        plain = jax.jit(function, static_argnames=static_argnames)
        wide = jax.jit(function, static_argnames=static_argnames, compiler_options=_CPU_OPTIONS)

        @functools.wraps(function)
        def run(*args, **options):
            traced = any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(args))
            return (plain if traced or jax.default_backend() != "cpu" else wide)(*args, **options)

        run.plain, run.wide = plain, wide
        return run

    return decorate
