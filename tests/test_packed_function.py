import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import QuantSpec, pack_params, quantize, run_packed
from tests.small_model import apply, make_batch, make_result

SIDE, DEPTH = 64, 8


@pytest.fixture(autouse=True)
def compiled_as_users_compile():
    """Without optimizations a product can be rounded in another way where its kernel is made beside it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def chain():
    """A chain of matrices, quantized and packed."""
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=(SIDE, SIDE)), jnp.float32) for _ in range(DEPTH)]
    x = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
    result = quantize(run_chain, params, [x], QuantSpec(method="rtn", alphabet="1.58", allow_few_rows=True))
    return result.params, pack_params(result.params, result.layers, result.places), x


def run_chain(params, x):
    for kernel in params:
        x = jnp.tanh(x @ kernel.T) * 2
    return x


def test_outputs_are_those_of_the_model_evaluated():
    result = make_result()
    packed = pack_params(result.params, result.layers, result.places)
    outputs = jax.jit(run_packed(apply))(packed, make_batch())
    # A function of its own: of `apply` itself JAX may have kept what another file compiled without optimizations.
    expected = jax.jit(lambda params, x: apply(params, x))(result.params, make_batch())
    np.testing.assert_array_equal(outputs, expected)


def test_few_kernels_are_float_at_once(chain):
    params, packed, x = chain
    compiled = jax.jit(run_packed(run_chain)).lower(packed, x).compile()
    np.testing.assert_array_equal(compiled(packed, x), jax.jit(run_chain)(params, x))
    memory = compiled.memory_analysis()
    kernels = sum(a.nbytes for a in params)
    assert memory.argument_size_in_bytes < kernels / 10 + x.nbytes + 8 * 1024
    # Three kernels and three activations, all of one size here, where eight kernels would be there at once.
    assert memory.temp_size_in_bytes < 6 * kernels / DEPTH + 8 * 1024 < kernels


def test_loops_jits_unused_and_returned_parameters(chain):
    params, packed, x = chain

    def odd(params, batch):
        x = jax.lax.scan(lambda x, _: (x @ params[0], x.sum()), batch["x"], None, length=2)[0]  # one output unused
        x = jax.jit(lambda x, kernel: x @ kernel)(x, params[1])
        return {"x": x + batch["n"], "kernel": params[2].T, "both": params[3] @ params[4], "none": None}

    batch = {"x": x, "n": np.int32(2)}
    found, expected = jax.jit(run_packed(odd))(packed, batch), jax.jit(odd)(params, batch)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_data_that_are_no_usual_numbers_change_nothing(chain):
    params, packed, x = chain
    run, expected = jax.jit(run_packed(run_chain)), jax.jit(run_chain)
    for first in (np.nan, np.inf, -np.inf):
        own = x.copy()
        own[0, 0] = first
        np.testing.assert_array_equal(run(packed, own), expected(params, own))


def test_float_parameters_run_as_they_are(chain):
    params, _, x = chain
    np.testing.assert_array_equal(run_packed(run_chain)(params, x), run_chain(params, x))
