"""Layers that aim at the residual stream, too: what they are given, what comes of it, what is said of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS, Execution, QuantSpec, quantize, run
from beacon_jax.devices import make_mesh
from beacon_jax.quant.methods import rtn
from beacon_jax.quant.methods.options import Options
from beacon_jax.quant.methods.table import Method

WIDTH, HIDDEN, DEPTH = 6, 10, 3


def apply(params, x):
    for block in params:
        x = x + (jnp.tanh(x @ block["a"]) @ block["b"] + block["c"][None, :])
    return x


@pytest.fixture
def problem(rng):
    shapes = {"a": (WIDTH, HIDDEN), "b": (HIDDEN, WIDTH), "c": (WIDTH,)}
    params = [{k: 0.3 * rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(DEPTH)]
    return params, [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (600, 600, 150)]


@pytest.fixture
def seen(monkeypatch):
    """A method that rounds to nearest and keeps the statistics it was given, in order."""
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SpyOptions(Options):
        reads_residual = True

    class Spy(Method):
        def solve(self, kernel, stats, alphabet, **options):
            seen.append(stats)
            return super().solve(kernel, stats, alphabet, **options)

    def solver(problem, options):
        return rtn.solve(problem, rtn.RTNOptions())

    monkeypatch.setitem(METHODS, "spy", Spy("spy", SpyOptions, solver))
    return seen


def streams(params, x):
    """The residual stream before each addition, and the inputs of what is added."""
    found = []
    for block in params:
        inputs = jnp.tanh(x @ block["a"])
        found.append((np.asarray(x, np.float64), np.asarray(inputs, np.float64)))
        x = x + inputs @ block["b"] + block["c"][None, :]
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sums_are_those_of_both_models(problem, seen, weighted):
    params, batches = problem
    weights = (lambda x: (x[:, 0] > 0).astype(np.float32)) if weighted else None
    result = quantize(apply, params, batches, QuantSpec(method="spy", alphabet="3"), weights=weights)
    given = [stats.residual is not None for stats in seen]
    assert given == [False, True] * DEPTH
    assert [r.note for r in result.reports] == ["", run.RESIDUAL] * DEPTH
    X = np.concatenate(batches)
    X = X[X[:, 0] > 0] if weighted else X
    mixed = [dict(block) for block in params]
    for i in range(DEPTH):
        mixed[i]["a"] = result.params[i]["a"]
        (stream, _), (quantized, inputs) = streams(params, X)[i], streams(mixed, X)[i]
        expected = inputs.T @ (stream - quantized)
        np.testing.assert_allclose(seen[2 * i + 1].residual_cross(centred=False), expected, rtol=1e-3, atol=1e-2)
        mixed[i]["b"] = result.params[i]["b"]


def test_the_output_gets_better(problem):
    params, batches = problem
    X = np.concatenate(batches)
    errors = {}
    for residual in (0.0, 1.0):
        spec = QuantSpec(method="beacon_plus", alphabet="2", options=dict(effort="fast", residual=residual))
        result = quantize(apply, params, batches, spec)
        errors[residual] = np.square(apply(result.params, X) - apply(params, X)).mean()
        assert np.abs(np.asarray(result.layers["0/b"].bias_change)).max() > 0
    assert errors[1.0] < 0.9 * errors[0.0]


@pytest.mark.slow
def test_on_several_devices(problem, x64):
    params, batches = problem
    spec = QuantSpec(method="beacon_plus", options=dict(effort="fast", beam=0, residual=1.0))
    alone, spread = (
        quantize(apply, params[:2], batches, spec, execution=Execution(forward_dtype="float64", mesh=mesh))
        for mesh in (None, make_mesh(data=4, model=2))
    )
    for name, matrix in alone.layers.items():
        np.testing.assert_array_equal(matrix.codes, spread.layers[name].codes)


def test_what_is_said_where_it_cannot_be(problem, caplog):
    params, batches = problem
    spec = QuantSpec(method="beacon_plus", options=dict(effort="fast", residual=1.0))
    few = quantize(apply, params, [batches[2]], spec)
    assert few.reports[1].note == (
        "not aimed at the residual stream: 150 calibration rows are fewer than 20 for each of the 10 inputs"
    )
    plain = quantize(apply, params, [batches[2]], QuantSpec(method="beacon_plus", options=dict(effort="fast")))
    jax.tree.map(np.testing.assert_array_equal, few.params, plain.params)
    twins = quantize(
        lambda p, x: x + x @ p["u"] + jnp.tanh(x @ p["v"]).sum(),
        {"u": params[0]["a"][:, :6], "v": params[0]["a"]},
        batches,
        spec,
    )
    notes = {report.layer: report.note for report in twins.reports}
    assert notes == {"u": "not aimed at the residual stream: its inputs are also those of 1 other layers", "v": ""}
    quantize(lambda p, x: x @ p["w"], {"w": params[0]["a"]}, batches, spec)
    assert "no layer to be quantized is added to a residual stream" in caplog.text


@pytest.mark.parametrize(
    ("options", "calibrate_on", "message"),
    [
        (dict(residual=1.0), "float", "a residual stream can only be aimed at with calibrate_on='both', got 'float'"),
        (dict(residual=1.0, start="greedy"), "both", "start='greedy' knows nothing of a residual stream"),
        (dict(residual=3.0), "both", "residual must be at most 2, got 3.0"),
        (dict(residual=-1.0), "both", "residual must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_options(options, calibrate_on, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(method="beacon_plus", options=options, calibrate_on=calibrate_on)
