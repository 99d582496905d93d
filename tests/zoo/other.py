"""Equinox, Haiku and plain JAX."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.zoo.registry import (
    ADDED,
    IN_BRANCH,
    IN_LOOP,
    MULTIPLIED,
    NOT_FLOAT,
    NOT_USED,
    arrays,
    biases,
    conv,
    dense,
    drawn,
    model,
)


@model(
    {"layers/0": dense(12, 16, 60), "layers/1": dense(16, 16, 60), "layers/2": dense(16, 4, 60)},
    biases("layers/0", "layers/1", "layers/2"),
)
def equinox_mlp(rng):
    """Equinox kernels are (outputs, inputs); the module takes one example, so it is mapped over the batch."""
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(12, 4, width_size=16, depth=2, key=jax.random.key(0))
    params, rest = eqx.partition(mlp, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), drawn(params, rng), arrays(rng, (30, 12), (30, 12))


@model({"conv": conv(9 * 3, 4, 2 * 4 * 36), "out": dense(4, 3, 8)}, biases("conv", "out"))
def equinox_cnn(rng):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        out: eqx.nn.Linear

        def __call__(self, x):  # (3, 6, 6)
            return self.out(jax.nn.relu(self.conv(x)).mean((1, 2)))

    k1, k2 = jax.random.split(jax.random.key(0))
    net = Net(eqx.nn.Conv2d(3, 4, 3, padding=1, key=k1), eqx.nn.Linear(4, 3, key=k2))
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), drawn(params, rng), arrays(rng, (4, 3, 6, 6), (4, 3, 6, 6))


@model(
    {"mlp/~/linear_0": dense(12, 16, 60), "mlp/~/linear_1": dense(16, 4, 60)},
    {"mlp/~/linear_0/b": ADDED, "mlp/~/linear_1/b": ADDED},
)
def haiku_mlp(rng):
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 4])(x)))
    batches = arrays(rng, (30, 12), (30, 12))
    return net.apply, drawn(jax.eval_shape(net.init, jax.random.key(0), batches[0]), rng), batches


@model({"w1": dense(12, 16, 60), "w2": dense(16, 5, 60)}, {"b1": ADDED})
def jax_dict_of_matrices(rng):
    """With a jit inside the function."""

    def apply(p, x):
        hidden = jax.jit(lambda w, b, x: jax.nn.relu(x @ w + b))(p["w1"], p["b1"][None], x)
        return hidden @ p["w2"]

    params = drawn({"w1": jnp.zeros((12, 16)), "b1": jnp.zeros(16), "w2": jnp.zeros((16, 5))}, rng)
    return apply, params, arrays(rng, (30, 12), (30, 12))


@model({"0": dense(12, 16, 60), "1": dense(16, 8, 60), "2": dense(8, 8, 60)}, {"2/gain": MULTIPLIED})
def jax_transposed_kernels(rng):
    """Stored (outputs, inputs), on either side of the product, and in three dimensions."""

    def apply(p, x):
        h = jax.nn.relu(x @ p[0].T)
        h = jax.nn.relu(p[1] @ h.T).T * p[2]["gain"]
        return h @ jnp.moveaxis(p[2]["w"], 0, -1).reshape(8, 8)

    params = [jnp.zeros((16, 12)), jnp.zeros((8, 16)), {"w": jnp.zeros((2, 8, 4)), "gain": jnp.zeros((1, 8))}]
    return apply, drawn(params, rng), arrays(rng, (30, 12), (30, 12))


@model(
    {f"{name}[{i}]": layer for i in range(3) for name, layer in (("w1", dense(8, 8, 60)), ("w2", dense(8, 8, 60)))},
    {"b": ADDED},
)
def jax_scan_over_layers(rng):
    def block(x, p):
        return x + jnp.tanh(x @ p["w1"] + p["b"][None]) @ p["w2"].T, None

    params = {"w1": jnp.zeros((3, 8, 8)), "w2": jnp.zeros((3, 8, 8)), "b": jnp.zeros((3, 8))}
    return lambda p, x: lax.scan(block, x, p)[0], drawn(params, rng), arrays(rng, (30, 8), (30, 8))


@model({"w1": dense(8, 8, 60), "w3": dense(8, 4, 60)}, {"w2": IN_BRANCH, "b2": IN_BRANCH})
def jax_cond(rng):
    """A kernel inside a branch that the data choose stays float."""

    def apply(p, x):
        x = jnp.tanh(x @ p["w1"])
        x = lax.cond(x.sum() > 0, lambda x: x @ p["w2"] + p["b2"][None], lambda x: x - p["b2"][None], x)
        return x @ p["w3"]

    params = {"w1": jnp.zeros((8, 8)), "w2": jnp.zeros((8, 8)), "b2": jnp.zeros(8), "w3": jnp.zeros((8, 4))}
    return apply, drawn(params, rng), arrays(rng, (30, 8), (30, 8))


@model({"w1": dense(8, 8, 60), "w3": dense(8, 4, 60)}, {"w2": IN_LOOP})
def jax_while(rng):
    """A kernel inside a loop whose length the data choose stays float."""

    def apply(p, x):
        x = jnp.tanh(x @ p["w1"])
        x = lax.while_loop(lambda x: jnp.abs(x).max() > 0.2, lambda x: 0.15 * jnp.tanh(x @ p["w2"]), x)
        return x @ p["w3"]

    params = {"w1": jnp.zeros((8, 8)), "w2": jnp.zeros((8, 8)), "w3": jnp.zeros((8, 4))}
    return apply, drawn(params, rng), arrays(rng, (30, 8), (30, 8))


@model({"w": dense(8, 8, 3 * 60), "out": dense(8, 4, 60)})
def jax_loop_of_known_length(rng):
    """A loop whose length is known unrolls: one kernel, the rows of all three rounds."""

    def apply(p, x):
        return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ p["w"]), x) @ p["out"]

    return apply, drawn({"w": jnp.zeros((8, 8)), "out": jnp.zeros((8, 4))}, rng), arrays(rng, (30, 8), (30, 8))


@model({"w": dense(8, 6, 60)}, {"unused": NOT_USED, "scalar": MULTIPLIED, "count": NOT_FLOAT})
def jax_parameters_that_multiply_nothing(rng):
    """One that the outputs do not depend on, a scalar, an integer."""

    def apply(p, x):
        return p["scalar"] * (x @ p["w"]) + (p["count"] > 3)

    params = drawn({"w": jnp.zeros((8, 6)), "unused": jnp.zeros((5, 5)), "scalar": jnp.zeros(())}, rng)
    return apply, {**params, "count": jnp.asarray(7)}, arrays(rng, (30, 8), (30, 8))


@model({"conv": conv(3 * 2, 4, 2 * 3 * 5), "out": dense(4, 3, 6)})
def jax_conv_of_another_layout(rng):
    """Features first, kernel (outputs, inputs, window), a negative padding, and custom derivatives."""

    @jax.custom_vjp
    def product(x, w):
        return lax.conv_general_dilated(x, w, (1,), [(-1, 1)], dimension_numbers=("NCH", "OIH", "NCH"))

    product.defvjp(lambda x, w: (product(x, w), None), lambda _, g: (g, g))

    def apply(p, x):
        return jax.nn.relu(product(x, p["conv"])).mean(-1) @ p["out"]

    return (
        apply,
        drawn({"conv": jnp.zeros((4, 2, 3)), "out": jnp.zeros((4, 3))}, rng),
        arrays(rng, (3, 2, 7), (3, 2, 7)),
    )
