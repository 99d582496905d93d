import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from beacon_jax import QuantSpec, quantize
from beacon_jax.graph.multiplications import multiplications

M, N = 6, 4
KERNEL = jnp.ones((N, N))
GROUPS = jnp.ones((3, N, 5))
SIZES = jnp.asarray([1, 2, 3])
MESH = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
ROWS = jax.sharding.PartitionSpec("rows")
CONTRACTED = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
ONCE = M * N * N  # of the rows by the kernel


def product(x):
    return x @ KERNEL


CASES = {
    "product": (product, ONCE),
    "convolution": (lambda x: lax.conv_general_dilated(x[None, :, :, None], jnp.ones((2, 3, 1, 7)), (1, 1), "VALID",
                                                       dimension_numbers=("NHWC", "HWIO", "NHWC")), 5 * 2 * 7 * 6),
    "ragged": (lambda x: lax.ragged_dot(x, GROUPS, SIZES), M * N * 5),
    "ragged, contracted": (lambda x: lax.ragged_dot_general(x, x, SIZES, CONTRACTED), M * N * N),
    "scan": (lambda x: lax.scan(lambda y, _: (product(y), None), x, None, length=3)[0], 3 * ONCE),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, lambda y: product(product(y)), product, x), 2 * ONCE),
    "while": (lambda x: lax.while_loop(lambda y: jnp.sum(y) < 1, product, x), ONCE),
    "shard_map": (jax.shard_map(product, mesh=MESH, in_specs=ROWS, out_specs=ROWS), ONCE),
    "jit": (jax.jit(lambda x: product(x) + x), ONCE),
    "none": (jnp.tanh, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_counted_by_hand(case):
    function, expected = CASES[case]
    found = jax.make_jaxpr(function)(jnp.ones((M, N))).eqns
    assert sum(map(multiplications, found)) == expected


def test_what_no_layer_has_counts_in_the_coverage(rng):
    """A kernel in a branch and experts of ragged groups stay in float: their share is not said to be quantized."""
    shapes = {"first": (N, N), "branch": (N, N), "experts": (3, N, 5)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def apply(p, x):
        x = jnp.tanh(x @ p["first"])
        x = lax.cond(x[0, 0] > 0, lambda y: y @ p["branch"], lambda y: y, x)
        return lax.ragged_dot(x, p["experts"], SIZES)

    batches = [rng.normal(size=(M, N)).astype(np.float32)]
    coverage = quantize(apply, params, batches, QuantSpec(method="rtn", alphabet="int4")).coverage
    assert coverage.multiplications == ONCE / (2 * ONCE + M * N * 5)
    assert {leaf.path: leaf.reason for leaf in coverage.leaves} == {
        "branch": "used inside a cond",
        "experts": "multiplied by groups of rows whose sizes depend on data (ragged_dot_general)",
        "first": "",
    }
