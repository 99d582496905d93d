"""Flax Linen: lifted transformations (scan, remat, vmap, jit)."""

import flax.linen as nn
import jax

from tests.zoo.linen_basic import MLP, MLP_BIASES, Mlp, initial
from tests.zoo.registry import arrays, biases, dense, grouped, model, norms


class Block(nn.Module):
    """A residual block as nn.scan wants it: (carry, input) → (carry, output)."""

    @nn.compact
    def __call__(self, x, _):
        h = nn.gelu(nn.Dense(14, name="fc1")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(8, name="fc2")(h), None


# The leaves are stacked, (3, 8, 14) and (3, 14, 8); each slice is a layer.
STACK = {
    f"blocks/{name}[{i}]": layer
    for i in range(3)
    for name, layer in (("fc1", dense(8, 14, 40)), ("fc2", dense(14, 8, 40)))
}
STACK_LEFT = {**biases("blocks/fc1", "blocks/fc2", "head"), **norms("blocks/norm")}


def scanned(block, rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = blocks(name="blocks")(x, None)
            return nn.Dense(4, name="head")(x)

    net = Net()
    batches = arrays(rng, (20, 8), (20, 8))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model({**STACK, "head": dense(8, 4, 40)}, STACK_LEFT)
def linen_scan(rng):
    return scanned(Block, rng)


@model({**STACK, "head": dense(8, 4, 40)}, STACK_LEFT)
def linen_scan_of_remat(rng):
    return scanned(nn.remat(Block, prevent_cse=False), rng)


@model({**STACK, "head": dense(8, 4, 40)}, STACK_LEFT)
def linen_remat_scan_of_whole_net(rng):
    """One jit, one remat and one scan inside each other."""
    apply, params, batches = scanned(Block, rng)
    return jax.jit(jax.checkpoint(apply)), params, batches


@model(MLP, MLP_BIASES)
def linen_remat(rng):
    net = nn.remat(Mlp)()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


@model(MLP, MLP_BIASES)
def linen_jit(rng):
    net = nn.jit(Mlp)()
    batches = arrays(rng, (40, 12), (30, 12))
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


def experts(rng, in_axes, shape):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            mlps = nn.vmap(
                Mlp,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=in_axes,
                axis_size=3,
            )
            return mlps(10, 5, name="experts")(x)

    net = Net()
    batches = arrays(rng, shape, shape)
    return lambda p, x: net.apply({"params": p}, x), initial(net, rng, batches[0]), batches


EXPERT_BIASES = biases("experts/hidden", "experts/out")


@model({"experts/hidden": grouped(3, 8, 10, 40), "experts/out": grouped(3, 10, 5, 40)}, EXPERT_BIASES)
def linen_vmap_over_experts(rng):
    return experts(rng, 0, (3, 20, 8))


@model({"experts/hidden": dense(8, 3 * 10, 40), "experts/out": grouped(3, 10, 5, 40)}, EXPERT_BIASES)
def linen_vmap_over_experts_of_the_same_rows(rng):
    """As in `linen_moe_einsum`, the experts' first matrices are side by side in one product."""
    return experts(rng, None, (20, 8))
