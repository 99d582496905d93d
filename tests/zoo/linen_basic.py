"""Flax Linen: products, embeddings, several inputs and outputs, parameters of other forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from tests.zoo.registry import (
    ADDED,
    COMPUTED,
    LOOKED_UP,
    TWO_WAYS,
    arrays,
    biases,
    dense,
    drawn,
    grouped,
    model,
    norms,
)


class Mlp(nn.Module):
    """Used by several models below."""

    hidden: int = 24
    out: int = 5

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.out, name="out")(x)


MLP = {"hidden": dense(12, 24, 70), "out": dense(24, 5, 70)}
MLP_BIASES = biases("hidden", "out")


def initial(net, rng, *inputs, **options):
    """Parameters of the net's shapes (those of `net.init`), all of them random."""
    return drawn(jax.eval_shape(lambda: net.init(jax.random.key(0), *inputs, **options))["params"], rng)


@model(MLP, MLP_BIASES)
def linen_mlp(rng):
    net = Mlp()
    batches = arrays(rng, (40, 12), (30, 12))  # of different lengths
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(MLP, MLP_BIASES)
def linen_frozen_dict(rng):
    net = Mlp()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), freeze(initial(net, rng, batches[0])), batches


@model({"layers_0": dense(12, 16, 70), "layers_2": dense(16, 4, 70)}, biases("layers_0", "layers_2"))
def linen_sequential(rng):
    net = nn.Sequential([nn.Dense(16), nn.gelu, nn.Dense(4)])
    batches = arrays(rng, (7, 5, 12), (7, 5, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"split": dense(12, 2 * 6, 60), "join": dense(2 * 6, 8, 60), "each": grouped(3, 8, 4, 20)},
    biases("split", "join", "each"),
)
def linen_dense_general(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):  # (B, 3, 12)
            x = nn.relu(nn.DenseGeneral((2, 6), name="split")(x))
            x = nn.relu(nn.DenseGeneral(8, axis=(-2, -1), name="join")(x))
            return nn.DenseGeneral(4, batch_dims=(0,), name="each")(x.swapaxes(0, 1))

    net = Net()
    batches = arrays(rng, (10, 3, 12), (10, 3, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({"heads": dense(12, 2 * 5, 64), "merge": dense(2 * 5, 7, 64)}, biases("heads"))
def linen_einsum(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Einsum((12, 2, 5), "btd,dhf->bthf", name="heads")(x))
            return nn.Einsum((2, 7, 5), "bthf,hof->bto", use_bias=False, name="merge")(x)

    net = Net()
    batches = arrays(rng, (4, 8, 12), (4, 8, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({"shared": dense(12, 12, 3 * 40), "out": dense(12, 4, 40)}, biases("shared", "out"))
def linen_shared_dense_three_times(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Dense(12, name="shared")
            for _ in range(3):
                x = nn.tanh(shared(x))
            return nn.Dense(4, name="out")(x)

    net = Net()
    batches = arrays(rng, (20, 12), (20, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"inner/hidden": dense(12, 24, 140), "inner/out": dense(24, 5, 140), "head": dense(5, 3, 70)},
    biases("inner/hidden", "inner/out", "head"),
)
def linen_functional_apply_inside(rng):
    """The inner module knows nothing of the outer one; both uses of it have the same names."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            inner = Mlp()
            p = self.param("inner", lambda key: inner.init(key, x)["params"])
            y = inner.apply({"params": p}, x) + inner.apply({"params": p}, -x)
            return nn.Dense(3, name="head")(y)

    net = Outer()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"fc": dense(8, 12, 64), "out": dense(12, 6, 64)},
    {"embed/embedding": LOOKED_UP, "position": ADDED, **biases("fc", "out")},
)
def linen_embedding(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(20, 8, name="embed")(ids)
            x = x + self.param("position", nn.initializers.normal(), (1, 8, 8))
            return nn.Dense(6, name="out")(nn.relu(nn.Dense(12, name="fc")(x)))

    net = Net()
    batches = [rng.integers(0, 20, (4, 8)) for _ in range(2)]
    return lambda p, ids: net.apply({"params": p}, ids), initial(net, rng, batches[0]), batches


@model({"fc": dense(8, 8, 64)}, {"embed/embedding": TWO_WAYS, **biases("fc")})
def linen_tied_embedding(rng):
    """The table is looked up and multiplied by: quantizing it for one use would change the other."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(20, 8, name="embed")
            return embed.attend(nn.tanh(nn.Dense(8, name="fc")(embed(ids))))

    net = Net()
    batches = [rng.integers(0, 20, (4, 8)) for _ in range(2)]
    return lambda p, ids: net.apply({"params": p}, ids), initial(net, rng, batches[0]), batches


@model({"fc": dense(8, 10, 64)}, {"table": LOOKED_UP, **biases("fc")} | norms("norm"))
def linen_ids_and_mask(rng):
    """A batch may be any tree: here a dict of token ids and a mask of the padding."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            x = self.param("table", nn.initializers.normal(), (20, 8))[ids]
            x = nn.gelu(nn.Dense(10, name="fc")(nn.LayerNorm(name="norm")(x)))
            return (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    net = Net()
    batches = [
        {"ids": rng.integers(0, 20, (4, 8)), "mask": (np.arange(8) < rng.integers(3, 9, (4, 1))).astype(np.float32)}
        for _ in range(2)
    ]
    params = initial(net, rng, **batches[0])
    return lambda p, batch: net.apply({"params": p}, batch["ids"], batch["mask"]), params, batches


@model(
    {"trunk": dense(12, 16, 60), "mean": dense(16, 3, 60), "classes": dense(16, 5, 60)},
    biases("trunk", "mean", "classes"),
)
def linen_dropout_and_several_outputs(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Dense(16, name="trunk")(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return {"mean": nn.Dense(3, name="mean")(x), "more": (nn.Dense(5, name="classes")(x), x.sum(-1))}

    net = Net()
    batches = arrays(rng, (30, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x, train=False), initial(net, rng, batches[0], train=False), batches


@model(
    {"base": dense(12, 16, 60), "lora_a": dense(12, 2, 60), "lora_b": dense(2, 16, 60), "out": dense(16, 4, 60)},
    biases("base", "out"),
)
def linen_lora(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            a, b = (self.param(f"lora_{k}", nn.initializers.normal(), s) for k, s in (("a", (12, 2)), ("b", (2, 16))))
            return nn.Dense(4, name="out")(nn.relu(nn.Dense(16, name="base")(x) + x @ a @ b))

    net = Net()
    batches = arrays(rng, (30, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"out": dense(16, 4, 60)},
    {"hidden/kernel": COMPUTED, "norm/hidden/kernel/scale": COMPUTED, **biases("hidden", "out")},
)
def linen_weight_norm(rng):
    """The kernel that multiplies is computed from two parameters, so neither is a kernel itself."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.WeightNorm(nn.Dense(16, name="hidden"), name="norm")(x))
            return nn.Dense(4, name="out")(x)

    net = Net()
    batches = arrays(rng, (30, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(
    {"gate": dense(8, 3, 60), "experts_in": dense(8, 3 * 10, 60), "experts_out": grouped(3, 10, 8, 60)},
)
def linen_moe_einsum(rng):
    """All experts see the same rows in their first matrix: one product. In the second, each has rows of its own."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            w1 = self.param("experts_in", nn.initializers.normal(), (3, 8, 10))
            w2 = self.param("experts_out", nn.initializers.normal(), (3, 10, 8))
            gates = nn.softmax(nn.Dense(3, use_bias=False, name="gate")(x))
            h = nn.relu(jnp.einsum("bd,edf->bef", x, w1))
            return jnp.einsum("be,bed->bd", gates, jnp.einsum("bef,efd->bed", h, w2))

    net = Net()
    batches = arrays(rng, (30, 8), (30, 8))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(MLP, MLP_BIASES)
def linen_partitioned(rng):
    """The parameters keep their boxes."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            x = nn.relu(nn.Dense(24, kernel_init=boxed, name="hidden")(x))
            return nn.Dense(5, kernel_init=boxed, name="out")(x)

    net = Net()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(MLP, MLP_BIASES, tolerance=0.03)
def linen_bfloat16_computation(rng):
    """Float32 parameters, cast for the products."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(24, dtype=jnp.bfloat16, name="hidden")(x))
            return nn.Dense(5, dtype=jnp.bfloat16, name="out")(x)

    net = Net()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(MLP, MLP_BIASES, tolerance=0.03)
def linen_bfloat16_parameters(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(24, param_dtype=jnp.bfloat16, name="hidden")(x))
            return nn.Dense(5, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, name="out")(x)

    net = Net()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches
