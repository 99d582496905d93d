"""Flax Linen: convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.linen_basic import initial
from tests.zoo.registry import arrays, biases, conv, dense, drawn, grouped, model, norms


@model(
    {"conv1": conv(9 * 3, 6, 8 * 36), "conv2": conv(9 * 6, 8, 8 * 9), "head": dense(8, 5, 8)},
    {**biases("conv2", "head"), **norms("norm1", "norm2")},
)
def linen_cnn_with_batch_norm(rng):
    """The running statistics are no parameters: the function holds them."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(6, (3, 3), use_bias=False, name="conv1")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm1")(x))
            x = nn.Conv(8, (3, 3), strides=2, padding="SAME", name="conv2")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm2")(x))
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    net = Net()
    batches = arrays(rng, (4, 6, 6, 3), (4, 6, 6, 3))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), batches[0], train=False))
    statistics = jax.tree.map(jnp.exp, drawn(variables["batch_stats"], rng))

    def apply(p, x):
        return net.apply({"params": p, "batch_stats": statistics}, x, train=False)

    return apply, drawn(variables["params"], rng), batches


@model(
    {"dilated": conv(6 * 2, 5, 4 * 2 * 3), "circular": conv(3 * 5, 4, 4 * 6), "causal": conv(2 * 4, 4, 4 * 6)},
    biases("dilated", "circular", "causal"),
)
def linen_conv_paddings(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):  # (B, 6, 7, 2)
            x = nn.tanh(nn.Conv(5, (3, 2), strides=(1, 2), kernel_dilation=(2, 1), padding="VALID", name="dilated")(x))
            x = x.reshape(len(x), -1, 5)
            x = nn.tanh(nn.Conv(4, (3,), padding="CIRCULAR", name="circular")(x))
            return nn.Conv(4, (2,), padding="CAUSAL", name="causal")(x)

    net = Net()
    batches = arrays(rng, (2, 6, 7, 2), (2, 6, 7, 2))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"grouped": conv(9 * 2, 3, 4 * 25, groups=2), "depthwise": conv(9, 2, 4 * 9, groups=6), "point": conv(12, 4, 36)},
    biases("grouped", "depthwise", "point"),
)
def linen_grouped_and_depthwise_conv(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(x))
            x = nn.tanh(nn.Conv(12, (3, 3), strides=2, feature_group_count=6, name="depthwise")(x))
            return nn.Conv(4, (1, 1), name="point")(x)

    net = Net()
    batches = arrays(rng, (2, 5, 5, 4), (2, 5, 5, 4))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({"up": conv(9 * 3, 4, 4 * 64), "flipped": conv(9 * 4, 2, 4 * 64)}, biases("up", "flipped"))
def linen_conv_transpose(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="up")(x))
            return nn.ConvTranspose(2, (3, 3), transpose_kernel=True, name="flipped")(x)

    net = Net()
    batches = arrays(rng, (2, 4, 4, 3), (2, 4, 4, 3))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({"local": grouped(4 * 4, 9 * 2, 3, 10), "head": dense(48, 2, 10)}, biases("local", "head"))
def linen_conv_local(rng):
    """A kernel of its own for each position: position and group are the same thing."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.ConvLocal(3, (3, 3), name="local")(x))
            return nn.Dense(2, name="head")(x.reshape(len(x), -1))

    net = Net()
    batches = arrays(rng, (5, 4, 4, 2), (5, 4, 4, 2))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches
