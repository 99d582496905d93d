import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from beacon_jax import PackedLeaf, QuantSpec, dequantize, pack_params, quantize
from beacon_jax.graph.place import Place
from beacon_jax.packed import free_elements
from tests.small_model import apply, make_batch, make_result


def packed_leaves(params):
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, PackedLeaf))
    return [leaf for leaf in leaves if isinstance(leaf, PackedLeaf)]


def test_the_parameters_come_back_to_the_last_bit():
    result = make_result()
    packed = pack_params(result.params, result.layers, result.places)
    assert sorted(name for leaf in packed_leaves(packed) for name in leaf.layers) == sorted(result.layers)
    for leaf in packed_leaves(packed):
        leaf.check()
    for restored in (dequantize(packed), jax.jit(dequantize)(packed)):
        assert jax.tree.map(lambda a: a.dtype, restored) == jax.tree.map(lambda a: a.dtype, result.params)
        jax.tree.map(np.testing.assert_array_equal, restored, result.params)


def test_what_is_in_memory_is_what_the_coverage_counts():
    result = make_result()
    packed = pack_params(result.params, result.layers, result.places)
    arrays = jax.tree.leaves(packed)
    assert all(isinstance(a, jax.Array) for a in arrays)
    assert 8 * sum(a.nbytes for a in arrays) == sum(leaf.bits for leaf in result.coverage.leaves)


def test_outputs_are_those_of_the_model_evaluated():
    result = make_result()
    packed = pack_params(result.params, result.layers, result.places)
    run = jax.jit(lambda params, x: apply(dequantize(params), x))
    # A function of its own: of `apply` itself JAX may have kept what another file compiled with other optimizations.
    expected = jax.jit(lambda params, x: apply(params, x))(result.params, make_batch())
    np.testing.assert_array_equal(run(packed, make_batch()), expected)


class Net(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def test_linen_and_nnx(rng):
    x = rng.normal(size=(20, 6)).astype(np.float32)
    linen = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    net = Net()
    graph, _ = nnx.split(net)
    for model, params, call in (
        (linen, linen.init(jax.random.key(0), x)["params"], lambda p, x: linen.apply({"params": p}, x)),
        (net, None, lambda p, x: nnx.merge(graph, p)(x)),
    ):
        result = quantize(model, params, [x], QuantSpec(method="rtn", alphabet="2.32"))
        packed = pack_params(result.params, result.layers, result.places)
        assert len(packed_leaves(packed)) == 2
        run = jax.jit(lambda p, x, call=call: call(dequantize(p), x))
        np.testing.assert_array_equal(run(packed, x), jax.jit(call)(result.params, x))


def test_a_changed_kernel_is_named():
    result = make_result()
    kernel = result.params["stack"]["kernel"]
    for change in (1e-6, 1.0):
        other = result.params | {"stack": result.params["stack"] | {"kernel": kernel.at[2, 0, 0].add(change)}}
        with pytest.raises(ValueError, match=r"kernel of layer 'stack\[2\]' among the parameters .* changed"):
            pack_params(other, result.layers, result.places)
    # What is not quantized may change.
    free = result.params | {"stack": {"kernel": kernel.at[1].add(1.0), "bias": jnp.zeros((3, 12))}}
    packed = pack_params(free, result.layers, result.places)
    jax.tree.map(np.testing.assert_array_equal, dequantize(packed), free)
    with pytest.raises(ValueError, match=r"layer 'stack\[0\]' has no place among 0"):
        pack_params(result.params, result.layers, {})
    with pytest.raises(ValueError, match=r"layer '.*' has no parameter 'stack/kernel' in the tree"):
        pack_params({key: a for key, a in result.params.items() if key != "stack"}, result.layers, result.places)


def test_leaves_that_do_not_fit_are_refused():
    result = make_result()
    packed = pack_params(result.params, result.layers, result.places)
    leaf = packed["stack"]["kernel"]
    assert leaf.rest.shape == (144,) and leaf.layers == ("stack[0]", "stack[2]")
    kernel = leaf.kernels[0]
    far = dataclasses.replace(leaf.places[0], offset=300)
    for changed, message in (
        (dict(kernels=leaf.kernels[:1]), "not as many kernels as layers and places"),
        (dict(places=(leaf.places[0], leaf.places[0])), "overlap"),
        (dict(places=(leaf.places[0], far)), r"a kernel's place \(300 to 443\) is outside its leaf \(3, 12, 12\)"),
        (dict(rest=leaf.rest[:-1]), "leave 144"),
        (dict(rest=None), "leave 144"),
        (dict(rest=leaf.rest.astype(jnp.bfloat16)), "leave 144"),
        (dict(places=(Place.of(np.arange(6).reshape(2, 3)), leaf.places[1])), r"layer 'stack\[0\]': .* does not fit"),
        (dict(kernels=(dataclasses.replace(kernel, words=kernel.words[:-1]), leaf.kernels[1])), "does not hold"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(leaf, **changed).check()


def test_free_elements():
    place = Place.of(np.arange(12).reshape(4, 3)[:, 1:])
    np.testing.assert_array_equal(np.flatnonzero(free_elements((place,), (4, 3))), [0, 3, 6, 9])
