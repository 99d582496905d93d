import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from beacon_jax import QuantSpec, quantize
from beacon_jax.frameworks import as_function

SPEC = QuantSpec(method="rtn", alphabet="4")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def test_an_nnx_module_itself(rng):
    net, x = Net(nnx.Rngs(0)), rng.normal(size=(20, 4)).astype(np.float32)
    net.eval()
    before = np.asarray(net(x))
    result = quantize(net, None, [x], SPEC)
    assert list(result.layers) == ["first", "last"]
    np.testing.assert_array_equal(net(x), before)  # the module is left as it is
    nnx.update(net, result.params)
    np.testing.assert_array_equal(net.first.kernel[...], result.layers["first"].dequantize())
    assert not np.array_equal(net(x), before)


def test_an_nnx_module_in_training_mode(rng):
    net, x = Net(nnx.Rngs(0)), rng.normal(size=(20, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=r"the NNX module changes its batch statistics, .*call its eval\(\) first"):
        quantize(net, None, [x], SPEC)


def test_an_nnx_module_whose_dropout_is_on(rng):
    class Dropping(nnx.Module):
        def __init__(self, rngs):
            self.one, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.one(x))

    net, x = Dropping(nnx.Rngs(0)), rng.normal(size=(20, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=r"draws for dropout, so it is in training mode; call its eval\(\) first"):
        quantize(net, None, [x], SPEC)
    net.eval()
    apply, params = as_function(net, None)
    np.testing.assert_allclose(apply(params, x), net(x), rtol=1e-6)


def test_batch_statistics_that_pass_through_jit(rng):
    class Jitted(Net):
        def __call__(self, x):
            return nnx.jit(lambda net, x: Net.__call__(net, x))(self, x)

    net, x = Jitted(nnx.Rngs(0)), rng.normal(size=(20, 4)).astype(np.float32)
    net.eval()
    apply, params = as_function(net, None)
    assert jax.eval_shape(apply, params, x).shape == (20, 3)


def test_a_linen_module_itself(rng):
    net, x = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)]), rng.normal(size=(20, 4)).astype(np.float32)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    apply, same = as_function(net, params)
    assert same is params
    np.testing.assert_array_equal(apply(params, x), net.apply({"params": params}, x))


def test_a_linen_module_with_batch_statistics():
    net, x = nn.BatchNorm(use_running_average=True), np.ones((20, 4), np.float32)
    variables = net.init(jax.random.key(0), x)
    apply, params = as_function(net, variables["params"])
    with pytest.raises(ValueError, match=r"reads variables that are not among its parameters.*batch_stats"):
        apply(params, x)


def test_mistakes(rng):
    net = Net(nnx.Rngs(0))
    with pytest.raises(ValueError, match="an NNX module holds its own parameters; pass params=None"):
        as_function(net, {})
    with pytest.raises(ValueError, match="params is None, which only an NNX module takes; got a function"):
        as_function(lambda p, x: x, None)
    with pytest.raises(ValueError, match='params holds the collection "params" itself'):
        as_function(nn.Dense(3), {"params": {}})
