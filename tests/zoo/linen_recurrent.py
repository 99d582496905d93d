"""Flax Linen: recurrent cells. A kernel used at each of 3 time steps is one layer with the rows of all steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.zoo.linen_basic import initial
from tests.zoo.registry import JOINED, arrays, biases, dense, model

ROWS = 2 * 4 * 3  # batches × examples × steps
LSTM = {f"cell/{source}{gate}": dense(n, 6, ROWS) for gate in "ifgo" for source, n in (("i", 4), ("h", 6))}
OPTIMIZED = [f"cell/{source}{gate}" for source in "hi" for gate in "ifgo"]
LSTM_BIASES = biases("cell/hi", "cell/hf", "cell/hg", "cell/ho")
GRU = {
    f"cell/{name}": dense(n, 6, ROWS) for name, n in (("ir", 4), ("hr", 6), ("iz", 4), ("hz", 6), ("in", 4), ("hn", 6))
}
GRU_BIASES = biases("cell/ir", "cell/iz", "cell/in", "cell/hn")


def under_rnn(cell, rng):
    net = nn.RNN(cell)
    batches = arrays(rng, (4, 3, 4), (4, 3, 4))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(LSTM, LSTM_BIASES)
def linen_lstm(rng):
    return under_rnn(nn.LSTMCell(6), rng)


@model(
    {f"rnn/{name}": LSTM[name] for name in OPTIMIZED} | {"out": dense(6, 3, ROWS)},
    {**{f"rnn/{name}": JOINED for name in LSTM_BIASES}, **biases("out")},
)
def linen_optimized_lstm(rng):
    """This cell joins four kernels for one product; each is a layer with outputs of its own."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="out")(nn.RNN(nn.OptimizedLSTMCell(6, parent=None), name="rnn")(x))

    net = Net()
    batches = arrays(rng, (4, 3, 4), (4, 3, 4))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(GRU, GRU_BIASES)
def linen_gru(rng):
    return under_rnn(nn.GRUCell(6), rng)


def unrolled(cell, rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            run = cell.clone(name="cell", parent=self)
            carry = (jnp.zeros((4, 6)),) * 2 if isinstance(cell, nn.LSTMCell) else jnp.zeros((4, 6))
            for t in range(x.shape[1]):
                carry, y = run(carry, x[:, t])
            return nn.Dense(3, name="out")(y)

    net = Net()
    batches = arrays(rng, (4, 3, 4), (4, 3, 4))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({**LSTM, "out": dense(6, 3, 8)}, {**LSTM_BIASES, **biases("out")})
def linen_unrolled_lstm(rng):
    return unrolled(nn.LSTMCell(6), rng)


@model({**GRU, "out": dense(6, 3, 8)}, {**GRU_BIASES, **biases("out")})
def linen_unrolled_gru(rng):
    return unrolled(nn.GRUCell(6), rng)


@model(
    {"embed_in": dense(3, 4, ROWS), **{name.replace("cell", "rnn/cell"): layer for name, layer in GRU.items()}},
    {**biases("embed_in"), **{name.replace("cell", "rnn/cell"): why for name, why in GRU_BIASES.items()}},
)
def linen_reversed_rnn_with_lengths(rng):
    """The batch holds sequences and their lengths; outputs are a pair."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, lengths):
            rnn = nn.RNN(nn.GRUCell(6, parent=None), return_carry=True, reverse=True, keep_order=True, name="rnn")
            return rnn(nn.tanh(nn.Dense(4, name="embed_in")(x)), seq_lengths=lengths)

    net = Net()
    batches = [(x, rng.integers(1, 4, 4)) for x in arrays(rng, (4, 3, 3), (4, 3, 3))]
    params = initial(net, rng, *jax.tree.map(jnp.asarray, batches[0]))
    return lambda p, batch: net.apply({"params": p}, *batch), params, batches
