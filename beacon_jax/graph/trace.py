"""A JAX function as a flat list of equations.

`trace` runs `apply(params, batch)` once on shapes alone. Loops of known length are unrolled and jitted, rematerialised
and custom-derivative functions are opened, so that every product of the model is an equation of the list; equations
that no output needs are dropped, and equal ones are kept once.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from beacon_jax.graph.program import Constant, Equation, Program, Unsupported, bind, leaf_names

# Equations that only wrap a program, and the parameter that holds it.
_WRAPPERS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def trace(apply: Callable[[Any, Any], Any], params: Any, batch: Any, dtype: str | None = None) -> Program:
    """Traces a function of (params, batch), without computing anything.

    Args:
      apply: the model.
      params: pytree of arrays, or of jax.ShapeDtypeStruct.
      batch: likewise.
      dtype: None, or the floating-point type that all floating-point leaves are to be cast to beforehand.

    Raises:
      Unsupported: `apply` is no function of (params, batch), branches in Python on values, or has side effects.
    """
    check_function(apply)
    params, batch = (jax.tree.map(functools.partial(_shape, dtype=dtype), tree) for tree in (params, batch))
    precision = "default" if dtype == "bfloat16" else "highest"
    with jax.disable_jit(), jax.default_matmul_precision(precision):
        closed = _guarded(lambda: jax.make_jaxpr(apply)(params, batch))
        # Once more, wrappers opened and equal equations computed once.
        flat_avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
        closed = _guarded(lambda: jax.make_jaxpr(_Opener(closed))(*flat_avals))
    if any(isinstance(a, jax.core.Tracer) for a in closed.consts):
        raise Unsupported("the function uses a traced value that an earlier call left behind; let it keep none")
    if closed.effects:
        raise Unsupported(
            f"the function has side effects ({', '.join(sorted(map(str, closed.effects)))}); "
            "remove debug prints and callbacks from it to quantize it"
        )
    return _program(closed, leaf_names(params), jax.tree.structure(batch))


def check_function(apply: Any) -> None:
    """Raises Unsupported unless `apply` can be called with (params, batch)."""
    if not callable(apply):
        raise Unsupported(f"expected a function apply(params, batch), got {type(apply).__name__}")
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(apply, "__name__", type(apply).__name__)
        raise Unsupported(f"expected a function apply(params, batch), but {name} takes {signature}") from None


def _shape(a, dtype):
    extended = jnp.issubdtype(a.dtype, jax.dtypes.extended)
    kind = a.dtype if extended else jax.dtypes.canonicalize_dtype(a.dtype)
    if dtype is not None and jnp.issubdtype(kind, jnp.floating):
        kind = jnp.dtype(dtype)
    return jax.ShapeDtypeStruct(np.shape(a), kind)


def _guarded(run):
    try:
        return run()
    except jax.errors.UnexpectedTracerError as error:
        raise Unsupported(f"the function has side effects that keep traced values: {_first_line(error)}") from error
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise Unsupported(
            "the function decides in Python, or computes in NumPy, by values that depend on parameters or data; "
            f"use jnp.where or lax.cond instead: {_first_line(error)}"
        ) from error
    except Exception as error:
        if not _is_trace_context(error):
            raise
        raise Unsupported(
            "the function changes the state of an NNX module from outside the trace; merge the module inside it, with "
            f"nnx.merge(graph, params, rest, copy=True): {_first_line(error)}"
        ) from error


def _is_trace_context(error: Exception) -> bool:
    # Flax NNX's own error; this package does without Flax.
    return type(error).__name__ == "TraceContextError"


def _first_line(error) -> str:
    return str(error).strip().splitlines()[0].strip().rstrip(".:")


class _Opener:
    """Evaluates a Jaxpr, with wrappers opened and equal equations evaluated once."""

    def __init__(self, closed):
        self._closed = closed

    def __call__(self, *args):
        self._seen: dict[Any, Sequence[Any]] = {}
        self._kept: list[Any] = []  # so that no id is given out twice
        return self._run(self._closed.jaxpr, self._closed.consts, args)

    def _run(self, jaxpr, consts, args):
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def value(atom):
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            values = [value(a) for a in eqn.invars]
            inner = eqn.params.get(_WRAPPERS.get(eqn.primitive.name))
            if inner is not None:
                body, inner_consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                outs = self._run(body, inner_consts, values)
            else:
                outs = self._once(eqn, values)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [value(a) for a in jaxpr.outvars]

    def _once(self, eqn, values):
        if eqn.effects:
            return bind(eqn, values)
        names = tuple(
            ("literal", atom.aval, np.asarray(atom.val).tobytes()) if isinstance(atom, core.Literal) else id(v)
            for atom, v in zip(eqn.invars, values, strict=True)
        )
        key = (_eqn_key(eqn), names)
        if key not in self._seen:
            self._kept += values
            self._seen[key] = bind(eqn, values)
        return self._seen[key]


def _eqn_key(eqn):
    """All that decides what an equation computes but its inputs; equal keys mean equal functions."""
    params = tuple((name, _hashable(value)) for name, value in sorted(eqn.params.items()))
    return eqn.primitive, params, tuple((v.aval.shape, v.aval.dtype) for v in eqn.outvars)


def _hashable(value):
    if isinstance(value, core.ClosedJaxpr):
        return _Alive(value) if value.consts else str(value.jaxpr)  # the text does not show constants
    if isinstance(value, core.Jaxpr):
        return str(value)
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(v)) for key, v in sorted(value.items()))
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Alive(value)
    return value


class _Alive:
    """An object compared by identity, kept alive so that its identity stays its own."""

    def __init__(self, value):
        self._value = value

    def __hash__(self):
        return id(self._value)

    def __eq__(self, other):
        return isinstance(other, _Alive) and self._value is other._value


def _program(closed, names, structure) -> Program:
    jaxpr = closed.jaxpr
    needed = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, core.Literal))
    number = {v: i for i, v in enumerate((*jaxpr.invars, *jaxpr.constvars))}
    avals = [v.aval for v in number]

    def atom(a):
        return Constant(a.val, a.aval) if isinstance(a, core.Literal) else number[a]

    equations = []
    for eqn in reversed(kept):
        for v in eqn.outvars:
            number[v] = len(avals)
            avals.append(v.aval)
        inputs, outputs = tuple(map(atom, eqn.invars)), tuple(number[v] for v in eqn.outvars)
        equations.append(Equation(eqn, inputs, outputs, _eqn_key(eqn)))
    count = len(jaxpr.invars)
    constants = dict(zip(range(count, count + len(closed.consts)), closed.consts, strict=True))
    return Program(
        tuple(names),
        tuple(range(len(names), count)),
        constants,
        tuple(equations),
        tuple(map(atom, jaxpr.outvars)),
        tuple(avals),
        structure,
    )
