import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.devices import Placement, make_mesh
from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.methods.beacon import BeaconOptions
from beacon_jax.quant.methods.best_level import best_level
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.pallas_block import pallas_pass, power_of_two_block
from beacon_jax.quant.products import matmul
from beacon_jax.quant.sweep import Rule, blocked_pass, pad_rows, pad_square, take
from tests.quant.problems import gram, make_problem

UNEVEN = (-3.0, -1.0, 0.0, 0.5, 2.0)
SIZE = 16


def choose(levels, shared, rows, products, q, state):
    """Takes part in everything that a rule may read, and rounds."""
    w, h = rows
    p = best_level(levels, levels.nearest(w), state[0] + h, 1 + state[1], h, products[0], shared[0], size=1.0)
    return jnp.where(products[-1] > 0.1 * q + shared[1], p, levels.nearest(w - products[-1]))


def update(levels, shared, rows, products, old, q, state):
    return 0.5 * state[0] + (q - old) * products[-1], 0.5 * state[1] + jnp.square(q) * shared[0] + levels.step


def problem(rng, C, alphabet, N=43, count=2):
    levels = Levels.of(make_alphabet(alphabet), np.float64)
    matrices = [pad_square(jnp.asarray(rng.normal(size=(N, N)) / N), SIZE) for _ in range(count)]
    shared = pad_rows(tuple(jnp.asarray(np.abs(rng.normal(size=N))) for _ in range(2)), SIZE)
    rows = pad_rows(tuple(jnp.asarray(rng.normal(size=(N, C))) for _ in range(2)), SIZE)
    Q = pad_rows(levels.nearest(jnp.asarray(rng.normal(size=(N, C)))), SIZE)
    return matrices, levels, shared, rows, Q, tuple(jnp.asarray(rng.normal(size=C)) for _ in range(2))


@functools.partial(jax.jit, static_argnames=("rule", "kernel"))
def by_kernel(rule, matrices, *others, kernel):
    def outside(b, Q):
        return [matmul(take(M, b * SIZE, SIZE), Q) for M in matrices]

    return pallas_pass(rule, matrices, *others, block_size=SIZE, outside=outside, kernel=kernel)


def choose_simply(levels, shared, rows, products, q, state):
    return levels.nearest(rows[0] + shared[1] * products[0] - products[-1] + 0.1 * q + state[0])


SLOW = pytest.mark.slow  # eight rows written out, each with a long rule, are long to compile


@pytest.mark.parametrize(
    ("kernel", "C", "alphabet", "count", "rule"),
    [
        ("gpu", 1, "2", 2, Rule(choose, update)),
        ("gpu", 130, UNEVEN, 1, Rule(choose, update)),
        ("gpu", 3, "int3", 2, Rule(choose)),
        ("tpu", 3, "2", 2, Rule(choose_simply, update)),
        ("tpu", 130, UNEVEN, 1, Rule(choose_simply)),
        pytest.param("tpu", 1, "2", 2, Rule(choose, update), marks=SLOW),
        pytest.param("tpu", 130, UNEVEN, 1, Rule(choose, update), marks=SLOW),
    ],
)
def test_kernels_equal_the_other_form(x64, rng, kernel, C, alphabet, count, rule):
    arguments = problem(rng, C, alphabet, count=count)
    expected = jax.jit(blocked_pass, static_argnums=0, static_argnames="block_size")(rule, *arguments, block_size=SIZE)
    found = by_kernel(rule, *arguments, kernel=kernel)
    np.testing.assert_array_equal(found[0], expected[0])
    assert len(np.unique(found[0])) > 2 and not np.array_equal(found[0], arguments[4])
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ["gpu", pytest.param("tpu", marks=SLOW)])
def test_groups_are_an_axis_of_the_grid(x64, rng, kernel):
    rule = Rule(choose_simply, update)
    groups = [problem(rng, 3, "2", N=32) for _ in range(2)]
    matrices, levels, *others = zip(*groups, strict=True)
    stack = jax.tree.map(lambda *a: jnp.stack(a), *(list(zip(matrices, *others, strict=True))))
    run = functools.partial(by_kernel, kernel=kernel)
    found = jax.vmap(lambda matrices, *own: run(rule, matrices, levels[0], *own))(*stack)
    for i, group in enumerate(groups):
        alone = run(rule, *group)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[i], b), found, alone)  # noqa: B023


METHOD_CASES = [
    ("beacon", {"sweeps": 2}, "2", "mismatch"),
    ("beacon", {"sweeps": 2, "channel_chunk": 2}, "int2", "one_stream"),
    ("gptq", {"act_order": True}, "1.58", "mismatch"),
    ("comq", {"sweeps": 2}, "3", "one_stream"),
    ("beacon_plus", {"effort": "fast", "sweeps": 2}, "2", "mismatch"),
    pytest.param("beacon", {"sweeps": 6}, UNEVEN, "mismatch", marks=pytest.mark.slow),
    pytest.param("beacon_plus", {"effort": "thorough"}, "int3", "mismatch", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options", "alphabet", "kind"), METHOD_CASES, ids=str)
def test_methods_find_the_same_codes(x64, rng, name, options, alphabet, kind):
    W, X, X_tilde = make_problem(rng, "mismatch", 37, 3)
    stats = gram(X, X if kind == "one_stream" else X_tilde, jnp.float64)
    expected = METHODS[name](jnp.asarray(W), stats, alphabet, block="xla", **options)
    found = METHODS[name](jnp.asarray(W), stats, alphabet, block="pallas", **options)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-10)


def test_sizes_of_blocks():
    assert [power_of_two_block(n, 128) for n in (1, 17, 64, 65, 3072)] == [16, 32, 64, 128, 128]
    assert [power_of_two_block(768, most) for most in (1, 63, 64, 1000)] == [16, 32, 64, 256]


def test_another_size_is_an_error(x64, rng):
    with pytest.raises(ValueError, match="a kernel's block is a power of two from 16 to 256, got 24"):
        blocked_pass(Rule(choose), *problem(rng, 3, "2"), block_size=24, block="pallas")


def test_several_devices_are_an_error(rng):
    kernel = Placement(make_mesh(8, 1)).by_channels(rng.normal(size=(16, 8)).astype(np.float32))
    with pytest.raises(ValueError, match="block='pallas' is for one device, and the kernel lies on several"):
        BeaconOptions(block="pallas").sizes(kernel)


COMPILE_FOR_TPU = """
import functools
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from beacon_jax.quant.alphabets import Levels, make_alphabet
from beacon_jax.quant.methods.beacon import solve_codes

devices = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices
mesh = Mesh(np.array(devices[:1]), "x")
on_it = NamedSharding(mesh, PartitionSpec())
for alphabet in ("2", (-3.0, -1.0, 0.0, 0.5, 2.0)):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32, sharding=on_it)
    levels = jax.tree.map(lambda a: shape(a.shape), Levels.of(make_alphabet(alphabet), np.float32))
    grams = (shape((43, 43)),) * 3
    sizes = dict(room=8, both_signs=False, block_size=16, channel_chunk=None, block="pallas")
    with jax.set_mesh(mesh):
        traced = solve_codes.plain.trace(shape((43, 130)), grams, levels, 2, **sizes)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    print("kernels", text.count("tpu_custom_call"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the compiler for TPUs, libtpu")
def test_kernels_compile_for_a_tpu():
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    env |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    env |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.run([sys.executable, "-c", COMPILE_FOR_TPU], env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line for line in run.stdout.splitlines() if line.startswith("kernels")] == ["kernels 2"] * 2
