"""The table of methods. To add one, write its options and its solver in a file of its own and add a row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from beacon_jax.quant.array_types import AnyArray
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods import beacon, beacon_plus, comq, gptq, rtn
from beacon_jax.quant.methods.beacon_plus_options import BeaconPlusOptions
from beacon_jax.quant.methods.options import Options
from beacon_jax.quant.precision import in_dtype
from beacon_jax.quant.problem import Found, NothingToCalibrateOn, Problem, Solution
from beacon_jax.quant.quantized import QuantizedMatrix


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to quantize a kernel: `method(kernel, stats, alphabet, **options)`.

    Fields:
      name: its key in METHODS.
      options: the frozen dataclass of its options, which checks them; `option` in methods/options.py says what its
        fields tell.
      solver: `solver(problem, options) -> Found` for a problem of one (N, C) kernel, pure and free of side effects.
      version: to be raised with every change after which the same problem gives other codes; scripts tell their results
        apart by it.
      reads_stats: whether it uses the statistics, or the kernel alone.
      unsound: what is wrong where `Found.sound` is False; a format string of the options' names and of dtype.
    """

    name: str
    options: type[Options]
    solver: Callable[[Problem, Any], Found]
    version: int = 1
    reads_stats: bool = True
    unsound: str = ""

    def __call__(self, kernel: AnyArray, stats: GramStats, alphabet: Any, **options) -> QuantizedMatrix:
        """The quantized kernel (and the change of the bias) alone; arguments and errors as `solve`."""
        return self.solve(kernel, stats, alphabet, **options).matrix

    def solve(
        self, kernel: AnyArray, stats: GramStats, alphabet: Any, *, has_bias: bool = False, **options
    ) -> Solution:
        """Quantizes a kernel, also under jax.jit and jax.vmap.

        Where the mean is so large beside the spread, of inputs or outputs, that the statistics' dtype is not enough
        (see precision.py), the solver works in float64 and the result is cast back. Inside jit or vmap the statistics'
        values are not known, so it stays with their dtype there, and checks shapes only.

        Args:
          kernel: (N, C) float, or (E, N, C) for E groups of one shape, each a problem of its own.
          stats: Gram statistics of width N (with a leading axis of E groups).
          alphabet: (K,) ascending levels, or what `make_alphabet` takes.
          has_bias: whether the layer has a bias, which methods may then change (`QuantizedMatrix.bias_change`).
          **options: the fields of `self.options`.

        Raises:
          NothingToCalibrateOn (a ValueError): inputs that are zero in all rows, for a method that reads the statistics;
            of some groups alone they are rounded to nearest, and the solution says so.
          ValueError: as `check` and `Problem.of`; a problem that the method cannot solve.
        """
        checked = self.check(**options)
        reads_means = self.reads_stats and not checked.frees_bias(has_bias)
        problem = Problem.of(kernel, stats, alphabet, has_bias=has_bias, reads_means=reads_means)
        lost = None if problem.informed is None or not self.reads_stats else ~problem.informed
        if lost is not None and lost.all():
            raise NothingToCalibrateOn(
                "the inputs are zero in every calibration row, or so small that their squares are zero in "
                f"{stats.dtype}"
            )
        with in_dtype(problem.dtype):
            found = problem.solved_by(lambda own: self.solver(own, checked))
            if lost is not None and lost.any():
                nearest = rtn.RTNOptions(scale="lsq")
                found = found.where(lost, problem.solved_by(lambda own: rtn.solve(own, nearest)))
            if found.sound is not None and not isinstance(found.sound, jax.core.Tracer) and not found.sound.all():
                raise ValueError(self.unsound.format(dtype=problem.dtype, **dataclasses.asdict(checked)))
            levels = jnp.asarray(problem.alphabet.astype(problem.dtype))
            matrix = QuantizedMatrix(found.codes, levels, found.scale, found.offset, found.info, found.bias_change)
            matrix = _cast(matrix, stats.dtype)
        return Solution(matrix, problem.dtype.name, problem.mean_over_spread, 0 if lost is None else int(lost.sum()))

    def check(self, **options) -> Options:
        """The options, checked; defaults where none are given. ValueError on an unknown one or a bad value."""
        # Those that decide the result first.
        fields = sorted(dataclasses.fields(self.options), key=lambda field: not field.metadata["decides_result"])
        known = [field.name for field in fields]
        for name in options:
            if name not in known:
                raise ValueError(f"unknown option {name!r} of {self.name}; expected one of {', '.join(known)}")
        return self.options(**options)

    @property
    def rounding_only(self) -> frozenset[str]:
        """Names of the options that change time, memory and, but for rounding, not the result (see `option`)."""
        fields = dataclasses.fields(self.options)
        return frozenset(field.name for field in fields if not field.metadata["decides_result"])


def _cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("rtn", rtn.RTNOptions, rtn.solve, version=1, reads_stats=False),
        Method(
            "gptq",
            gptq.GPTQOptions,
            gptq.solve,
            version=1,
            unsound="H + λI is not positive definite in {dtype}; damping={damping} is too small",
        ),
        Method("comq", comq.COMQOptions, comq.solve, version=1),
        Method("beacon", beacon.BeaconOptions, beacon.solve, version=1),
        Method("beacon_plus", BeaconPlusOptions, beacon_plus.solve, version=1),
    )
}
