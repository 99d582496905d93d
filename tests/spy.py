"""A method that rounds to nearest and keeps what it is given."""

import contextlib
from typing import Any, NamedTuple

import numpy as np
import pytest

from beacon_jax import METHODS, QuantSpec, quantize
from beacon_jax.quant.methods import rtn
from beacon_jax.quant.methods.table import Method

SPY = "spy"


class Given(NamedTuple):
    """What the method was given for a layer."""

    kernel: Any
    stats: Any


@contextlib.contextmanager
def spy():
    """Makes the method "spy" known for a while; gives the list of what it is then Given."""
    seen = []

    class Spy(Method):
        def solve(self, kernel, stats, alphabet, **options):
            seen.append(Given(kernel, stats))
            return super().solve(kernel, stats, alphabet, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, SPY, Spy(SPY, rtn.RTNOptions, rtn.solve))
        yield seen


def spied(model, calibrate_on="both", **arguments):
    """(result, [(kernel, H, G, F, count) of each group that the method was given]) with 4 bit, in float64."""
    with spy() as seen:
        spec = QuantSpec(method=SPY, alphabet="4", calibrate_on=calibrate_on, allow_few_rows=True)
        result = quantize(model.apply, model.params, model.batches, spec, **arguments)
    groups = []
    for kernel, stats in seen:
        arrays = [np.asarray(a, np.float64) for a in (kernel, stats.H, stats.G, stats.F, stats.count)]
        groups.extend(zip(*arrays, strict=True) if kernel.ndim == 3 else [tuple(arrays)])
    return result, groups
