"""A method that comes to give other codes must say so by its version, so that no stored result is taken for its own."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.quant.methods.table import METHODS
from tests.quant.problems import gram, make_problem

# Whoever changes a digest raises the version beside it here and in METHODS, and writes the new digest down.
WRITTEN = {
    "rtn": (1, "25183bbad983d8c7"),
    "gptq": (1, "1e6dbfe863ef0096"),
    "comq": (1, "2ae673ccbc3b1137"),
    "beacon": (1, "7e7ff4b908a8f321"),
    "beacon_plus": (1, "a9d52cd805b56530"),
}
OPTIONS = {
    "rtn": [{}, {"symmetric": False, "scale": "lsq"}],
    "gptq": [{}, {"symmetric": False, "scale": "lsq", "act_order": True}],
    "comq": [{}, {"symmetric": False, "scale": "lsq", "order": "natural"}],
    "beacon": [{}, {"centering": "mean", "sweeps": 2}],
    "beacon_plus": [{}, {"effort": "fast", "offset": True}],
}


@pytest.mark.parametrize("name", METHODS)
def test_other_codes_need_another_version(x64, name):
    """Codes alone, in double precision: they are the same on every processor."""
    kernel, X, X_tilde = make_problem(np.random.default_rng(0), "mismatch", 10, 4)
    digest = hashlib.sha256()
    for options in OPTIONS[name]:
        matrix = METHODS[name](jnp.asarray(kernel), gram(X, X_tilde), "2.58", **options)
        digest.update(np.asarray(matrix.codes, np.uint8).tobytes())
    assert (METHODS[name].version, digest.hexdigest()[:16]) == WRITTEN[name]
