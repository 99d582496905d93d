import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.graph.layers import find_layers
from beacon_jax.graph.stages import PASSES, find_stages, one_stage, piece
from beacon_jax.graph.trace import trace
from beacon_jax.models.vit import ViT


class Block(nn.Module):
    """As in a language model: rotary angles made once, a mask, separate q, k and v, an MLP with a gate."""

    @nn.compact
    def __call__(self, x, angles, mask):
        y = nn.LayerNorm()(x)
        q, k, v = (nn.Dense(16, name=name)(y) for name in "qkv")
        q, k = (a * jnp.cos(angles) + jnp.roll(a, 1, -1) * jnp.sin(angles) for a in (q, k))
        scores = jnp.where(mask[:, None, :] > 0, q @ k.swapaxes(1, 2), -1e9)
        x = x + nn.Dense(16, name="o")(nn.softmax(scores) @ v)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(16, name="down")(nn.silu(nn.Dense(64, name="gate")(y)) * nn.Dense(64, name="up")(y))


class Decoder(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, ids, mask):
        x = nn.Embed(11, 16)(ids)
        angles = jnp.arange(ids.shape[1], dtype=jnp.float32)[None, :, None] * jnp.arange(16.0)[None, None, :]
        for i in range(self.depth):
            x = Block(name=f"block_{i}")(x, angles, mask)
        return nn.Dense(11, name="head")(nn.LayerNorm()(x))


def vit():
    model = ViT(image_size=8, patch_size=2, width=16, depth=4, heads=2, channels=1, classes=10)
    return (lambda p, x: model.apply({"params": p}, x)), model.param_shapes(), np.zeros((2, 8, 8, 1), np.float32)


def decoder(depth=4):
    model, batch = Decoder(depth), {"ids": np.zeros((2, 6), np.int32), "mask": np.ones((2, 6), np.int32)}

    def apply(p, b):
        return model.apply({"params": p}, b["ids"], b["mask"])

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch["ids"], batch["mask"])["params"])
    return apply, shapes, batch


def cnn():
    class Cnn(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, (width, stride) in enumerate([(8, 1), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)]):
                y = nn.relu(nn.Conv(width, (3, 3), strides=stride, name=f"conv_{i}")(x))
                x = y if y.shape != x.shape else x + y
            return nn.Dense(10, name="head")(x.mean((1, 2)))

    x = np.zeros((2, 12, 12, 8), np.float32)
    shapes = jax.eval_shape(lambda: Cnn().init(jax.random.key(0), x)["params"])
    return (lambda p, x: Cnn().apply({"params": p}, x)), shapes, x


def mlp():
    def apply(p, x):
        for i in range(6):
            x = jnp.tanh(x @ p[f"w{i}"])
        return x

    return apply, {f"w{i}": np.zeros((5, 5), np.float32) for i in range(6)}, np.zeros((3, 5), np.float32)


MODELS = {"vit": vit, "decoder": decoder, "cnn": cnn, "mlp": mlp}


def random_like(shapes, rng):
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)


def staged(name):
    apply, shapes, batch = MODELS[name]()
    program = trace(apply, shapes, batch)
    layers = find_layers(program).layers
    return apply, shapes, batch, program, layers, find_stages(program, layers)


def chain(program, stages, params, batch):
    """All stages one after another; returns the inputs of every group, and the outputs."""
    leaves = jax.tree.leaves(params)
    data = dict(zip(program.inputs, jax.tree.leaves(batch), strict=True))
    seen = []
    for stage in stages:
        assert set(stage.given) <= set(data)
        data = {v: data[v] for v in stage.given}  # nothing else waits

        def run(wanted, stage=stage, data=data):
            own = piece(program, stage.given, wanted)
            arrays = [jnp.asarray(leaves[v]) for v in own.leaves], [jnp.asarray(data[v]) for v in own.given]
            return own(*arrays, [program.constants[v] for v in own.constants])

        seen += [run([operand for operand, _ in group[0].inputs]) for group in stage.groups]
        wanted = stage.output or program.outputs
        data = dict(zip(wanted, run(wanted), strict=True))
    return seen, [data[v] for v in program.outputs]


@pytest.mark.parametrize("name", MODELS)
def test_stages_in_a_row_are_the_function(name, rng):
    apply, shapes, batch, program, layers, stages = staged(name)
    params = random_like(shapes, rng)
    seen, outputs = chain(program, stages, params, batch)
    for own, expected in zip(outputs, jax.tree.leaves(apply(params, batch)), strict=True):
        np.testing.assert_allclose(own, expected, rtol=2e-5, atol=2e-5)
    whole = one_stage(program, [group[0] for stage in stages for group in stage.groups])
    for own, expected in zip(seen, chain(program, [whole], params, batch)[0], strict=True):
        for a, b in zip(own, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    assert [layer for s in stages for g in s.groups for layer in g] == list(layers)


def passes(program, stage):
    """How many times over the stage's equations run for its groups' inputs and its output."""
    output = piece(program, stage.given, stage.output or program.outputs)
    return (output.size + sum(_inputs(program, stage, g).size for g in stage.groups)) / output.size


def _inputs(program, stage, group):
    return piece(program, stage.given, [operand for operand, _ in group[0].inputs])


@pytest.mark.parametrize("name", MODELS)
def test_no_stage_runs_more_than_twice(name):
    *_, program, _, stages = staged(name)
    assert max(passes(program, stage) for stage in stages) <= PASSES


@pytest.mark.parametrize(("name", "stages", "pieces"), [("vit", 10, 10), ("decoder", 10, 13)])
def test_equal_blocks_share_their_pieces(name, stages, pieces):
    """The embedding, the first attention, attention and MLP, the last MLP, the head."""
    *_, program, _, found = staged(name)
    assert len(found) == stages
    kinds = {piece(program, s.given, s.output or program.outputs) for s in found}
    inputs = {_inputs(program, s, g) for s in found for g in s.groups}
    deeper = decoder(8) if name == "decoder" else None
    assert len(kinds) <= 7 and len(kinds | inputs) <= pieces
    if deeper:
        program = trace(*deeper)
        again = find_stages(program, find_layers(program).layers)
        assert {piece(program, s.given, s.output or program.outputs) for s in again} == kinds


def test_what_waits_between_blocks_is_the_residual_stream_and_the_mask():
    *_, program, _, stages = staged("decoder")
    for stage in stages[2:-1]:
        kinds = sorted((program.avals[v].shape, str(program.avals[v].dtype)) for v in stage.given)
        tokens = [shape for shape, kind in kinds if shape == (2, 6, 16) and kind == "float32"]
        assert len(tokens) == 1
        assert sum(np.prod(shape) for shape, _ in kinds) < 2 * 2 * 6 * 16


def test_layers_of_the_same_inputs_are_one_group():
    *_, stages = staged("decoder")
    groups = [[layer.name for layer in g] for s in stages for g in s.groups][:3]
    assert groups[0] == [f"block_0/{name}" for name in "qkv"]
    assert groups[1:] == [["block_0/o"], ["block_0/gate", "block_0/up"]]


def test_uses_of_one_layer_stay_in_one_stage(rng):
    def apply(p, x):
        for i in range(4):
            x = jnp.tanh(x @ p["shared"]) @ p[f"w{i}"]
        return x

    params = {f"w{i}": rng.normal(size=(5, 5)) for i in range(4)} | {"shared": rng.normal(size=(5, 5))}
    program = trace(apply, params, rng.normal(size=(3, 5)))
    layers = find_layers(program).layers
    stages = find_stages(program, layers)
    assert [len(layer.uses) for layer in layers] == [4, 1, 1, 1, 1]
    (holder,) = [s for s in stages if any(layer.name == "shared" for g in s.groups for layer in g)]
    assert {layer.name for g in holder.groups for layer in g} >= {"shared", "w0", "w1", "w2"}


def test_closed_over_arrays_are_inputs_of_a_piece(rng):
    """Two blocks that differ in a constant array alone are equal pieces, and still compute their own."""
    masks = [rng.normal(size=(1, 5)).astype(np.float32) for _ in range(3)]

    def apply(p, x):
        for i, mask in enumerate(masks):
            x = jnp.tanh((x * mask) @ p[f"w{i}"]) + x
        return x

    params = {f"w{i}": rng.normal(size=(5, 5)).astype(np.float32) for i in range(3)}
    x = rng.normal(size=(3, 5)).astype(np.float32)
    program = trace(apply, params, x)
    stages = find_stages(program, find_layers(program).layers)
    assert len(stages) == 3
    first, second = (piece(program, s.given, s.output) for s in stages[:2])
    assert first == second and hash(first) == hash(second)
    values = [program.constants[p.constants[0]] for p in (first, second)]
    assert not np.array_equal(*values)
    np.testing.assert_allclose(chain(program, stages, params, x)[1][0], apply(params, x), rtol=1e-5)


def test_pieces_differ_where_their_equations_do(rng):
    def made(function):
        program = trace(function, {"w": np.ones((5, 5), np.float32)}, np.ones((3, 5), np.float32))
        return piece(program, program.inputs, program.outputs)

    functions = [
        lambda p, x: x @ p["w"],
        lambda p, x: x @ p["w"].T,
        lambda p, x: x @ p["w"] * 2,
        lambda p, x: x @ p["w"] * 3,
        lambda p, x: x @ p["w"] * (2 + 1e-6),
        lambda p, x: (x * 2) @ p["w"],
        lambda p, x: (x @ p["w"])[::-1],
    ]
    assert len({made(f) for f in functions}) == len({made(f) for f in [*functions, *functions]}) == len(functions)


@pytest.mark.parametrize("depth", [80])
def test_a_deep_model_is_planned_quickly(depth):
    apply, shapes, batch = decoder(depth)
    program = trace(apply, shapes, batch)
    layers = find_layers(program).layers
    stages = find_stages(program, layers)
    assert len(layers) == 7 * depth + 1 and len(stages) == 2 * depth + 2
    assert len({piece(program, s.given, s.output or program.outputs) for s in stages}) <= 7
