"""Flax Linen: attention, and an encoder block around it."""

import flax.linen as nn

from tests.zoo.linen_basic import initial
from tests.zoo.registry import arrays, biases, dense, model, norms

# The kernels are (8, heads, 4) for queries, keys and values and (heads, 4, 8) for the output.
QKV = {"query": dense(8, 8, 36), "key": dense(8, 8, 36), "value": dense(8, 8, 36), "out": dense(8, 8, 36)}


def within(name, layers):
    return {f"{name}/{layer}": expected for layer, expected in layers.items()}


@model(within("attention", QKV), biases(*within("attention", QKV)))
def linen_multi_head_dot_product_attention(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x, mask=mask)

    net = Net()
    batches = [(x, rng.random((3, 1, 6, 6)) < 0.7) for x in arrays(rng, (3, 6, 8), (3, 6, 8))]
    params = initial(net, rng, *batches[0])
    return lambda p, batch: net.apply({"params": p}, *batch), params, batches


@model(
    {**QKV, "key": dense(6, 8, 30), "value": dense(6, 8, 30)},
    biases("query", "key", "value", "out"),
)
def linen_multi_head_attention_to_another_sequence(rng):
    net = nn.MultiHeadAttention(num_heads=2, dropout_rate=0.1, deterministic=True)
    batches = [{"x": arrays(rng, (3, 6, 8))[0], "context": arrays(rng, (3, 5, 6))[0]} for _ in range(2)]
    # Flax takes the query's width from qkv_features and the output's from the queries.
    params = initial(net, rng, batches[0]["x"], batches[0]["context"])
    return lambda p, batch: net.apply({"params": p}, batch["x"], batch["context"]), params, batches


@model(QKV, biases(*QKV))
def linen_self_attention(rng):
    net = nn.SelfAttention(num_heads=2)
    batches = arrays(rng, (3, 6, 8), (3, 6, 8))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


ENCODER = {**within("attention", QKV), "fc1": dense(8, 16, 36), "fc2": dense(16, 8, 36), "head": dense(8, 5, 6)}


@model(ENCODER, {**biases(*ENCODER), **norms("norm1", "norm2")})
def linen_encoder_block(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            h = nn.LayerNorm(name="norm1")(x)
            x = x + nn.MultiHeadAttention(num_heads=2, name="attention")(h, deterministic=not train)
            h = nn.gelu(nn.Dense(16, name="fc1")(nn.LayerNorm(name="norm2")(x)))
            x = x + nn.Dropout(0.1)(nn.Dense(8, name="fc2")(h), deterministic=not train)
            return nn.Dense(5, name="head")(x[:, 0])

    net = Net()
    batches = arrays(rng, (3, 6, 8), (3, 6, 8))
    return lambda p, x: net.apply({"params": p}, x, train=False), initial(net, rng, batches[0], train=False), batches
