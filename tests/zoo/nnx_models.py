"""Flax NNX: the module is split into graph, parameters and the rest, and merged inside the function."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.zoo.linen_recurrent import ROWS
from tests.zoo.registry import (
    COMPUTED,
    LOOKED_UP,
    TWO_WAYS,
    arrays,
    biases,
    conv,
    dense,
    drawn,
    grouped,
    model,
    norms,
)


def split(module, rng):
    """(apply, params) of a module with one input."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), drawn(params, rng)


def key():
    return nnx.Rngs(0)


@model({"fc1": dense(12, 20, 60), "fc2": dense(20, 5, 60)}, {**biases("fc1", "fc2"), **norms("norm")})
def nnx_mlp(rng):
    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(12, rngs=rngs)
            self.fc1, self.fc2 = nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 5, rngs=rngs)

        def __call__(self, x):
            return self.fc2(nnx.relu(self.fc1(self.norm(x))))

    graph, params, rest = nnx.split(Mlp(key()), nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), drawn(params, rng), arrays(rng, (30, 12), (30, 12))


@model(
    {"stem/layers/0": dense(6, 8, 60), "blocks/0": dense(8, 8, 60), "blocks/1": dense(8, 8, 60)},
    {**biases("stem/layers/0", "blocks/0", "blocks/1"), "stem/layers/1/scale": "mul"},
)
def nnx_list_and_sequential(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs), nnx.gelu)
            self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + nnx.tanh(block(x))
            return x

    return *split(Net(key()), rng), arrays(rng, (30, 6), (30, 6))


@model(
    {"split": dense(12, 2 * 6, 64), "join": dense(2 * 6, 8, 64), "mix": dense(8, 3 * 2, 64)},
    biases("split", "join", "mix"),
)
def nnx_linear_general_and_einsum(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.split = nnx.LinearGeneral(12, (2, 6), rngs=rngs)
            self.join = nnx.LinearGeneral((2, 6), 8, axis=(-2, -1), rngs=rngs)
            self.mix = nnx.Einsum("btd,dhf->bthf", (8, 3, 2), (3, 2), rngs=rngs)

        def __call__(self, x):
            return self.mix(nnx.relu(self.join(nnx.relu(self.split(x)))))

    return *split(Net(key()), rng), arrays(rng, (4, 8, 12), (4, 8, 12))


@model(
    {"conv": conv(9 * 3, 6, 4 * 9), "depthwise": conv(9, 1, 4 * 9, groups=6), "up": conv(4 * 6, 4, 4 * 36)},
    {**biases("conv", "depthwise", "up"), **norms("norm")},
)
def nnx_cnn_with_batch_norm(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
            self.depthwise = nnx.Conv(6, 6, (3, 3), feature_group_count=6, padding="CIRCULAR", rngs=rngs)
            self.up = nnx.ConvTranspose(6, 4, (2, 2), strides=2, rngs=rngs)

        def __call__(self, x):
            return self.up(nnx.relu(self.depthwise(nnx.relu(self.norm(self.conv(x))))))

    net = Net(key())
    net.norm.mean[...] = jnp.asarray(rng.normal(size=6), jnp.float32)
    net.norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32)
    return *split(net, rng), arrays(rng, (2, 6, 6, 3), (2, 6, 6, 3))


NAMES = ("query", "key", "value", "out")


@model({name: dense(8, 8, 36) for name in NAMES}, biases(*NAMES))
def nnx_multi_head_attention(rng):
    net = nnx.MultiHeadAttention(2, 8, dropout_rate=0.1, deterministic=True, decode=False, rngs=key())
    return *split(net, rng), arrays(rng, (3, 6, 8), (3, 6, 8))


@model({"fc": dense(8, 8, 64), "head": dense(8, 20, 64)}, {"embed/embedding": LOOKED_UP, **biases("fc", "head")})
def nnx_embed(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(20, 8, rngs=rngs)
            self.fc, self.head = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 20, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, deterministic=True)

        def __call__(self, ids):
            return self.head(self.dropout(nnx.tanh(self.fc(self.embed(ids)))))

    return *split(Net(key()), rng), [rng.integers(0, 20, (4, 8)) for _ in range(2)]


@model({"fc": dense(8, 8, 64)}, {"embed/embedding": TWO_WAYS, **biases("fc")})
def nnx_tied_embedding(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.fc = nnx.Embed(20, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, ids):
            return self.embed.attend(nnx.tanh(self.fc(self.embed(ids))))

    return *split(Net(key()), rng), [rng.integers(0, 20, (4, 8)) for _ in range(2)]


LSTM = {
    f"cell/{name}": dense(4 if name.startswith("i") else 6, 6, ROWS)
    for name in ("ii", "hi", "if_", "hf", "ig", "hg", "io", "ho")
}


def under_rnn(cell, rng):
    graph, params, rest = nnx.split(nnx.RNN(cell), nnx.Param, ...)

    def apply(p, x):
        # The cell counts the random numbers that it draws for its first state: in a copy, or jit would refuse it.
        return nnx.merge(graph, p, rest, copy=True)(x)

    return apply, drawn(params, rng), arrays(rng, (4, 3, 4), (4, 3, 4))


@model(LSTM, biases("cell/hi", "cell/hf", "cell/hg", "cell/ho"))
def nnx_lstm(rng):
    return under_rnn(nnx.LSTMCell(4, 6, rngs=key()), rng)


@model({"cell/dense_i": dense(4, 24, ROWS), "cell/dense_h": dense(6, 24, ROWS)}, biases("cell/dense_h"))
def nnx_optimized_lstm(rng):
    return under_rnn(nnx.OptimizedLSTMCell(4, 6, rngs=key()), rng)


@model({"cell/dense_i": dense(4, 18, ROWS), "cell/dense_h": dense(6, 18, ROWS)}, biases("cell/dense_i"))
def nnx_gru(rng):
    return under_rnn(nnx.GRUCell(4, 6, rngs=key()), rng)


@model({"shared": dense(12, 12, 120), "out": dense(12, 4, 40)}, biases("shared", "out"))
def nnx_shared_linear_three_times(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.shared, self.out = nnx.Linear(12, 12, rngs=rngs), nnx.Linear(12, 4, rngs=rngs)

        def __call__(self, x):
            for _ in range(3):
                x = nnx.tanh(self.shared(x))
            return self.out(x)

    return *split(Net(key()), rng), arrays(rng, (20, 12), (20, 12))


@model({"lora_a": dense(12, 2, 60), "lora_b": dense(2, 6, 60), "base_module": dense(12, 6, 60)}, biases("base_module"))
def nnx_lora(rng):
    base = nnx.Linear(12, 6, rngs=key())
    return *split(nnx.LoRA(12, 2, 6, base_module=base, rngs=key()), rng), arrays(rng, (30, 12), (30, 12))


@model(
    {"out": dense(8, 4, 60)},
    {"normed/layer_instance/kernel": COMPUTED, **biases("normed/layer_instance", "out")},
)
def nnx_weight_norm(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.normed = nnx.WeightNorm(nnx.Linear(12, 8, rngs=rngs), use_scale=False, rngs=rngs)
            self.out = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.normed(x)))

    return *split(Net(key()), rng), arrays(rng, (30, 12), (30, 12))


STACK = {
    f"blocks/{name}[{i}]": layer
    for i in range(3)
    for name, layer in (("fc1", dense(8, 14, 40)), ("fc2", dense(14, 8, 40)))
}


def stacked(body, rng):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.fc1, self.fc2 = nnx.Linear(8, 14, rngs=rngs), nnx.Linear(14, 8, rngs=rngs)

        def __call__(self, x):
            return x + self.fc2(nnx.gelu(self.fc1(x)))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.vmap(Block)(rngs.split(3))

        def __call__(self, x):
            return body(x, self.blocks)

    return *split(Net(key()), rng), arrays(rng, (20, 8), (20, 8))


@model(STACK, biases("blocks/fc1", "blocks/fc2"))
def nnx_scan(rng):
    scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return stacked(scan, rng)


@model(STACK, biases("blocks/fc1", "blocks/fc2"))
def nnx_scan_of_remat(rng):
    scan = nnx.scan(nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return stacked(scan, rng)


@model({"blocks/fc1": dense(8, 3 * 14, 40), "blocks/fc2": grouped(3, 14, 8, 40)}, biases("blocks/fc1", "blocks/fc2"))
def nnx_vmap_over_experts(rng):
    return stacked(nnx.vmap(lambda x, block: block(x), in_axes=(None, 0)), rng)


@model({"fc1": dense(12, 20, 60), "fc2": dense(20, 5, 60)}, biases("fc1", "fc2"))
def nnx_jit_with_dict_batch_and_tuple_output(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc1, self.fc2 = nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 5, rngs=rngs)

        def __call__(self, x, mask):
            h = nnx.relu(self.fc1(x))
            return self.fc2(h * mask[:, None]), {"hidden": h}

    graph, params, rest = nnx.split(Net(key()), nnx.Param, ...)
    run = nnx.jit(lambda net, x, mask: net(x, mask))
    batches = [{"x": x, "mask": (rng.random(30) < 0.8).astype(np.float32)} for x in arrays(rng, (30, 12), (30, 12))]
    return lambda p, batch: run(nnx.merge(graph, p, rest, copy=True), **batch), drawn(params, rng), batches


@model({"fc1": dense(12, 20, 60), "fc2": dense(20, 5, 60)}, biases("fc1", "fc2"), tolerance=0.03)
def nnx_bfloat16(rng):
    net = nnx.Dict(
        fc1=nnx.Linear(12, 20, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=key()),
        fc2=nnx.Linear(20, 5, dtype=jnp.bfloat16, rngs=key()),
    )
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def apply(p, x):
        net = nnx.merge(graph, p, rest, copy=True)
        return net["fc2"](nnx.relu(net["fc1"](x)))

    return apply, drawn(params, rng), arrays(rng, (30, 12), (30, 12))
