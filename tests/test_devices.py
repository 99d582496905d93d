"""A mesh of simulated devices, and two real processes."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS, Execution, GramStats, QuantSpec, quantize
from beacon_jax.devices import Placement, make_mesh
from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.methods import beacon
from beacon_jax.quant.objective import grams_of
from beacon_jax.streams import ActivationStream
from experiments import hosts
from tests.quant.problems import gram, make_problem
from tests.spy import SPY, spy
from tests.tiny_vit import MODEL, blocks

OPTIONS = {
    "beacon": {"sweeps": 2},
    "beacon_plus": {"effort": "fast", "beam": 2, "pairs": 1},
    "gptq": {"act_order": True},
    "comq": {"sweeps": 2},
    "rtn": {"scale": "lsq"},
}


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
def test_rows_come_back_in_order(rng, shape):
    placement = Placement(make_mesh(*shape))
    for count in (16, 5):  # the second cannot be divided evenly
        batch = rng.normal(size=(count, 3)).astype(np.float32)
        placed = placement.rows(batch)
        assert len(placed.sharding.device_set) == 8
        expected = shape[0] if count == 16 else 1
        assert len({str(s.index) for s in placed.addressable_shards}) == expected
        np.testing.assert_array_equal(placed, batch)
        np.testing.assert_array_equal(placement.own_rows(placed), batch)
        with ActivationStream("disk", placement) as stream:
            stream.append([batch, batch[:, 0] > 0, np.float32(3)])
            for _ in range(2):
                read = stream[0]
                np.testing.assert_array_equal(read[0], batch)
                np.testing.assert_array_equal(read[1], batch[:, 0] > 0)
                assert float(read[2]) == 3 and read[2].shape == ()
                stream.put(0, read)


def test_without_a_mesh_nothing_moves(rng):
    batch = rng.normal(size=(4, 3))
    placement = Placement(None)
    assert placement.rows(batch) is batch and placement.by_channels(batch) is batch


@pytest.mark.parametrize("shape", [(3, 1), (0, 9), (2, 2), (0, 0), (-8, 1)])
def test_meshes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"does not fit 8 devices"):
        make_mesh(*shape)


SOME = "blocks_0/mlp/fc2|head"  # 64 × 16, and 16 × 10, which 8 devices do not divide


@pytest.mark.parametrize("method", METHODS)
def test_codes_equal_those_of_one_device(x64, method):
    """In float64, where sums in another order do not reach a decision; channels and rows that 8 does not divide too."""
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(n, 8, 8, 1)) for n in (16, 16, 5)]
    shapes = MODEL.param_shapes()
    params = jax.tree.map(lambda p: jax.device_put(rng.normal(size=p.shape) * 0.3), shapes)
    layers = "head" if method == "beacon_plus" else SOME  # one is enough where each takes seconds to compile
    spec = QuantSpec(method=method, alphabet="3", layers=layers, options=OPTIONS[method])
    one = quantize(MODEL, params, batches, spec)
    many = quantize(MODEL, params, batches, spec, execution=Execution(mesh=make_mesh(2, 4)))
    assert [r.layer for r in many.reports] == layers.split("|")
    for name, matrix in one.layers.items():
        assert matrix.scale.dtype == jnp.float64
        np.testing.assert_array_equal(many.layers[name].codes, matrix.codes)
        np.testing.assert_allclose(many.layers[name].scale, matrix.scale, rtol=1e-9)
    for a, b in zip(one.reports, many.reports, strict=True):
        np.testing.assert_allclose(b.output_error, a.output_error, rtol=1e-6)
        assert a.rows == b.rows


LAST = r"blocks_\d/mlp/fc2"  # two layers of one shape, which compiles once


def float32_problem():
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(16, 8, 8, 1)).astype(np.float32) for _ in range(2)]
    shapes = MODEL.param_shapes()
    return jax.tree.map(lambda p: jax.device_put((rng.normal(size=p.shape) * 0.3).astype(np.float32)), shapes), batches


@pytest.mark.slow
@pytest.mark.parametrize(("calibrate_on", "shape"), [("float", (8, 1)), ("both", (1, 8))])
def test_float32_on_many_devices_is_as_good(calibrate_on, shape):
    """Near-ties may fall the other way there; with error correction one that does changes all layers after it."""
    params, batches = float32_problem()
    spec = blocks(alphabet="3", layers=LAST, calibrate_on=calibrate_on, options={"sweeps": 2})
    one = quantize(MODEL, params, batches, spec)
    many = quantize(MODEL, params, batches, spec, execution=Execution(mesh=make_mesh(*shape)))
    same = [np.mean(many.layers[name].codes == matrix.codes) for name, matrix in one.layers.items()]
    assert same[0] >= 0.97 and (calibrate_on == "both" or min(same) >= 0.97)  # mostly all of them
    for a, b in zip(one.reports, many.reports, strict=True):
        np.testing.assert_allclose(b.output_error, a.output_error, rtol=0.02)


def test_double_precision_makes_codes_the_same_on_any_devices(x64):
    """For a float32 model, with error correction; what comes out is float32."""
    params, batches = float32_problem()
    spec = blocks(alphabet="3", layers=LAST, options={"sweeps": 2, "centering": "mean"})
    one = quantize(MODEL, params, batches, spec, execution=Execution(forward_dtype="float64"))
    many = quantize(MODEL, params, batches, spec, execution=Execution(forward_dtype="float64", mesh=make_mesh(4, 2)))
    for name, matrix in one.layers.items():
        np.testing.assert_array_equal(many.layers[name].codes, matrix.codes)
        assert matrix.scale.dtype == matrix.offset.dtype == jnp.float32
        np.testing.assert_allclose(many.layers[name].scale, matrix.scale, rtol=1e-6)
    assert {a.dtype for a in jax.tree.leaves(one.params)} == {jnp.dtype(jnp.float32)}


def test_the_solver_exchanges_nothing_but_whether_channels_still_change(rng):
    """No communication in the loops over coordinates: of the collectives only reductions to one number are left."""
    W, X, X_tilde = make_problem(rng, "mismatch", 24, 16)
    placement = Placement(make_mesh(1, 8))
    stats = placement.everywhere(gram(X, X_tilde, dtype=jnp.float32))
    kernel = placement.by_channels(jnp.asarray(W, jnp.float32))
    levels = Levels.of(make_alphabet("2"), jnp.float32)
    options = dict(room=8, both_signs=False, block_size=8, channel_chunk=None)
    text = beacon.solve_codes.wide.lower(kernel, grams_of(stats), levels, 3, **options).compile().as_text()
    collectives = [
        line.split(" = ")[1]
        for line in text.splitlines()
        if any(f" {op}(" in line for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    ]
    assert collectives  # the loop over sweeps ends for all devices at once
    assert all(line.split("{")[0].split(" ")[0].endswith("[]") for line in collectives), collectives


class SelfAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.Dense(6, name=name)(x) for name in "qkv")
        return nn.Dense(3, name="out")(jnp.tanh(q * k) + v)


def test_layers_of_one_input_share_a_pass(rng):
    """Here q, k and v; their statistics are the very same arrays."""
    batches = [rng.normal(size=(16, 5)).astype(np.float32)]
    params = jax.jit(SelfAttention().init)(jax.random.key(0), batches[0])["params"]
    with spy() as given:
        result = quantize(SelfAttention(), params, batches, QuantSpec(method=SPY, layers=".*"))
    seen = [layer.stats for layer in given]
    assert [r.layer for r in result.reports] == ["q", "k", "v", "out"]
    assert seen[0] is seen[1] is seen[2] and seen[3].width == 6
    np.testing.assert_allclose(seen[0].H, GramStats.zeros(5).update(batches[0]).H, rtol=1e-6)


def test_bfloat16_forward_changes_little_and_sums_stay_float32(rng):
    batches = [rng.normal(size=(16, 8, 8, 1)).astype(np.float32)]
    params = jax.jit(MODEL.init)(jax.random.key(1), batches[0])["params"]
    reports = []
    for dtype in ("float32", "bfloat16"):
        spec = blocks(method="rtn", alphabet="4", layers="blocks_1/(attn/.*|mlp/fc1)", calibrate_on="float")
        result = quantize(MODEL, params, batches, spec, execution=Execution(forward_dtype=dtype))
        assert all(m.scale.dtype == jnp.float32 for m in result.layers.values())
        reports.append(result.reports)
    for exact, rough in zip(*reports, strict=True):
        assert rough.output_error != exact.output_error
        np.testing.assert_allclose(rough.output_error, exact.output_error, rtol=0.2)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    """Over 127.0.0.1, two devices each; the first process alone writes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "experiments.tables", "--config=configs/digits.py"]
    command += ["--config.data.calibration_images=16", "--config.data.test_images=90", "--config.data.batch_size=8"]
    command += ["--config.table.rows=('beacon',)", "--config.table.alphabets=('2',)"]
    command += ["--config.quant.layers=blocks_0/attn/proj", "--config.table.sweeps=(1,)"]
    together = ["--processes=2", f"--coordinator=127.0.0.1:{port}", "--join_timeout=60"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags}

    def start(*arguments, env=environment):
        return subprocess.Popen(
            [*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    runs = [
        start(*together, "--process=0", f"--config.out={tmp_path}/first"),
        start(*together, "--process=1", f"--config.out={tmp_path}/second"),
    ]
    try:
        outputs = [run.communicate(timeout=180) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert ["results computed" in printed for printed, _ in outputs] == [True, False]
    assert not (tmp_path / "second").exists()
    alone = start(f"--config.out={tmp_path}/alone", env=os.environ)
    printed = alone.communicate(timeout=180)
    assert alone.returncode == 0, printed
    lines = [(tmp_path / out / "results.jsonl").read_text().splitlines() for out in ("first", "alone")]
    assert len(lines[0]) == len(lines[1]) == 2
    for ours, theirs in zip(*lines, strict=True):
        ours, theirs = json.loads(ours), json.loads(theirs)
        assert (ours["settings"], ours["row"]) == (theirs["settings"], theirs["row"])
        assert ours["metrics"]["top1"] == theirs["metrics"]["top1"]
    np.testing.assert_allclose(ours["layer_error"], theirs["layer_error"], rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 2}, "--coordinator, --processes and --process go together"),
        ({"coordinator": "127.0.0.1:1", "processes": 2, "process": 2}, "--process=2 is not one of 2 processes"),
    ],
)
def test_processes_are_told_apart(monkeypatch, given, message):
    for name, value in ({"coordinator": "", "processes": 0, "process": -1} | given).items():
        monkeypatch.setattr(hosts, f"_{name.upper()}", SimpleNamespace(value=value))
    with pytest.raises(ValueError, match=message):
        hosts.join()
