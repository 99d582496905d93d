"""A pipeline that comes to give other codes says so by RESULTS_VERSION, so that no stored result is taken for its own.

The methods have versions of their own (tests/quant/methods/test_versions.py), which are in the results, too.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import Execution, QuantSpec, balance_rows, choose_alphabets, quantize
from experiments.grid import RESULTS_VERSION

# Whoever changes a digest raises RESULTS_VERSION, here and in experiments/grid.py, and writes the new digests down.
WRITTEN = (
    6,
    {
        "float": "810fb576f4dc018a",
        "quantized": "0c97334faeb1d9ec",
        "both, weighted": "8487264a1f60b8bc",
        "influence": "6c0e42a0c05d4b96",
        "residual stream": "a9dcdb5bb980dc43",
        "row scales": "879dc92daded29e6",
        "budget": "e4a1f1db3b74d6a1",
    },
)
# Enough inputs that Beacon finds no channel with codes of one size alone, of which one is as good as another.
INPUTS, WIDTH, HIDDEN = 8, 6, 9


def apply(params, batch):
    """A residual block of a norm and two layers, between an embedding and a head; a convolution along positions."""
    x = batch["x"] @ params["embed"]["kernel"] + params["embed"]["bias"]
    dims = ("NHC", "HIO", "NHC")
    x = x + jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1,), "SAME", dimension_numbers=dims)
    y = params["norm"]["scale"] * x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3)
    y = jax.nn.gelu(y @ params["up"]["kernel"] + params["up"]["bias"]) @ params["down"]["kernel"]
    return jnp.tanh(x + y + params["down"]["bias"]) @ params["head"]["kernel"]


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"embed": (INPUTS, WIDTH), "conv": (3, WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    params = {name: {"kernel": rng.normal(size=shape) / shape[-2] ** 0.5} for name, shape in shapes.items()}
    for name in ("embed", "up", "down"):
        params[name]["bias"] = 0.1 * rng.normal(size=(1, 1, shapes[name][-1]))
    params["norm"] = {"scale": np.exp(rng.normal(size=(1, 1, WIDTH)))}
    params["head"] = {"kernel": rng.normal(size=(WIDTH, 4))}
    return jax.tree.map(jnp.asarray, params)


def make_batches():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(24, 4, INPUTS)) + 0.3, "mask": rng.random((24, 4)) < 0.8} for _ in range(2)]


def codes_of(case):
    """What `quantize` makes of the model: {layer: codes}."""
    params, batches, fields, weights = make_params(), make_batches(), dict(calibrate_on="both"), None
    if case in ("float", "quantized"):
        fields = dict(calibrate_on=case, rules=[{"layers": "head", "alphabet": "4"}, {"layers": "conv", "skip": True}])
    elif case == "both, weighted":
        weights = lambda batch: batch["mask"]  # noqa: E731
    elif case == "influence":
        fields["row_weights"] = "influence"
    elif case == "residual stream":
        fields |= dict(method="beacon_plus", options=dict(effort="fast", residual=0.5))
    elif case == "row scales":
        params = balance_rows(apply, params, batches[0]).params
    spec = QuantSpec(**dict(method="comq", alphabet="2") | fields)
    given = dict(weights=weights, execution=Execution(forward_dtype="float64", activations="memory"))
    if case == "budget":
        spec = choose_alphabets(apply, params, batches, spec, ("1.58", "2", "4"), 9.5, **given).spec
    done = quantize(apply, params, batches, spec, **given)
    return {name: np.asarray(matrix.codes, np.uint8) for name, matrix in done.layers.items()}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in ("float", "both, weighted") else pytest.mark.slow) for c in WRITTEN[1]],
)
def test_other_codes_need_another_version(x64, case):
    """Codes alone, in double precision: they are the same on every processor."""
    digest = hashlib.sha256()
    for name, codes in codes_of(case).items():
        digest.update(f"{name}{codes.shape}".encode() + codes.tobytes())
    version, written = WRITTEN
    assert (RESULTS_VERSION, digest.hexdigest()[:16]) == (version, written[case]), (
        "the pipeline gives other codes: raise RESULTS_VERSION in experiments/grid.py, so that results stored before "
        "are not taken for its own, and write it and the digests down here (where a method changed, raise its version)"
    )
