import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from beacon_jax import QuantSpec, balance_rows, quantize
from beacon_jax.graph.program import leaf_names
from beacon_jax.models.bert import Bert
from beacon_jax.models.cnn import ConvNet, split
from beacon_jax.models.decoder import Decoder
from beacon_jax.models.vit import ViT

N, C = 6, 5


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * jnp.broadcast_to(p["scale"], x.shape) + jnp.broadcast_to(p["bias"], x.shape)


def mlp(p, x):
    h = norm(p, x)
    return jnp.tanh(h @ p["w"]) + h @ p["v"], jnp.tanh(h @ p["w"]) @ p["out"]


@pytest.fixture
def params(rng):
    shapes = {"scale": (N,), "bias": (N,), "w": (N, C), "v": (N, C), "out": (C, 2)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def rms(kernel):
    return np.sqrt(np.square(kernel).mean(-1))


def relative(rows):
    return rows / np.exp(np.log(rows).mean())


def same_function(apply, params, result, batch, tolerance=1e-12):
    for old, new in zip(*(jax.tree.leaves(apply(p, batch)) for p in (params, result.params)), strict=True):
        np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance * np.abs(old).max())


def changed(params, result):
    """Paths of the leaves that are others now; all are of the same shape and dtype."""
    leaves = zip(leaf_names(params), *map(jax.tree.leaves, (params, result.params)), strict=True)
    found = set()
    for name, old, new in leaves:
        assert (old.shape, old.dtype, type(old)) == (new.shape, new.dtype, type(new))
        if new is not old:
            found.add(name)
            assert not np.array_equal(new, old)
    return found


def test_factors_by_hand(params, rng, x64):
    x = rng.normal(size=(7, N))
    kept = jax.tree.map(np.copy, params)
    result = balance_rows(mlp, params, x)
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    r = relative(rms(np.concatenate([params["w"], params["v"]], 1)))
    for name in ("w", "v"):
        np.testing.assert_allclose(result.folded[name].factors, r, rtol=1e-14)
        np.testing.assert_allclose(result.params[name], params[name] / r[:, None], rtol=1e-14)
        assert result.folded[name].into == ("scale", "bias") and result.folded[name].note == ""
        spreads = [np.log(rms(p[name])).std() for p in (params, result.params)]
        np.testing.assert_allclose(result.spread[name], spreads, rtol=1e-12)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(result.params[name], params[name] * r, rtol=1e-14)
    assert result.left == {"out": "no parameter multiplies its inputs, which come out of tanh"}
    assert result.folded.keys() == {"w", "v"} and result.spread["out"].before == result.spread["out"].after
    assert changed(params, result) == {"scale", "bias", "w", "v"}
    before, after = (np.mean([spread[i] for spread in result.spread.values()]) for i in (0, 1))
    assert str(result) == (
        f"folded for 2 of 3 layers, mean spread of the rows {before:.3f} → {after:.3f}; "
        "not for out (no parameter multiplies its inputs, which come out of tanh)"
    )
    same_function(mlp, params, result, x)


def test_only_some_layers(params, rng, x64):
    """A layer that is not asked for but has the same inputs does not count, and is divided too."""
    x = rng.normal(size=(7, N))
    result = balance_rows(mlp, params, x, "w")
    r = relative(rms(params["w"]))
    for name in ("w", "v"):
        np.testing.assert_allclose(result.folded[name].factors, r, rtol=1e-14)
    assert result.spread.keys() == {"w"} and result.spread["w"].after < 1e-14 and not result.left
    same_function(mlp, params, result, x)
    none = balance_rows(mlp, params, x, "out")
    assert not changed(params, none) and not none.folded and none.left.keys() == {"out"}


def test_zero_and_tiny_rows(params, rng, x64):
    for name in ("w", "v"):
        params[name][1] = 0
        params[name][2] *= 1e-9
    x = rng.normal(size=(7, N))
    result = balance_rows(mlp, params, x)
    factors = result.folded["w"].factors
    assert factors[1] == 1 and factors[2] == 0.01 and factors.max() <= 100
    assert result.params["scale"][1] == params["scale"][1] and not result.params["w"][1].any()
    same_function(mlp, params, result, x)
    for name in ("w", "v"):
        params[name][:] = 0
    nothing = balance_rows(mlp, params, x)
    np.testing.assert_array_equal(nothing.folded["w"].factors, 1)
    assert nothing.spread["w"] == (0, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_arrays_stay_of_their_kind(params, rng, dtype):
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    x = jnp.asarray(rng.normal(size=(7, N)), dtype)
    result = balance_rows(mlp, params, x)
    assert changed(params, result) == {"scale", "bias", "w", "v"}
    as_float = [jax.tree.map(lambda a: a.astype("float32"), p) for p in (params, result.params)]
    for old, new in zip(*(mlp(p, x.astype("float32")) for p in as_float), strict=True):
        np.testing.assert_allclose(new, old, atol=np.abs(old).max() * (1e-5 if dtype == "float32" else 3e-2))


def test_what_would_pass_the_range_of_float16_stays(params, rng):
    params = jax.tree.map(lambda a: jnp.asarray(a, "float16"), params)
    params["scale"] = params["scale"].at[2].set(6e4)  # and its row is the largest by far
    params["w"] = params["w"].at[2].multiply(50)
    result = balance_rows(mlp, params, jnp.asarray(rng.normal(size=(7, N)), "float16"))
    assert result.left["w"] == result.left["v"] == "scale would pass the range of float16"
    assert changed(params, result) == set() and "w" not in result.folded


def test_rows_of_a_channel_count_together(rng, x64):
    """A convolution's rows are channels × positions; of a depthwise one, which gains nothing, each group has one."""

    def apply(p, x):
        x = x * p["scale"][None, None, None]
        options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        each = jax.lax.conv_general_dilated(x, p["each"], feature_group_count=4, **options)
        return jax.lax.conv_general_dilated(x, p["kernel"], **options), jnp.tanh(each)

    params = {name: rng.normal(size=shape) for name, shape in
              dict(scale=(4,), kernel=(3, 3, 4, 5), each=(3, 3, 1, 8)).items()}  # fmt: skip
    x = rng.normal(size=(2, 5, 5, 4))
    result = balance_rows(apply, params, x)
    r = relative(rms(params["kernel"].transpose(2, 0, 1, 3).reshape(4, -1)))
    np.testing.assert_allclose(result.folded["kernel"].factors, np.repeat(r, 9), rtol=1e-14)
    np.testing.assert_allclose(result.folded["each"].factors, np.repeat(r[:, None], 9, 1), rtol=1e-14)
    np.testing.assert_allclose(result.params["kernel"], params["kernel"] / r[:, None], rtol=1e-14)
    np.testing.assert_allclose(result.params["each"], params["each"] / np.repeat(r, 2), rtol=1e-14)
    same_function(apply, params, result, x)
    alone = balance_rows(lambda p, x: apply(p, x)[1], params, x)
    assert alone.left == {"each": "its inputs have one scale in common"}


def uneven(shapes, rng):
    """Parameters whose kernels have rows of unlike size."""
    return jax.tree.map(
        lambda a: rng.normal(size=a.shape) * np.exp(rng.normal(size=(*a.shape[:-1], 1)) if len(a.shape) > 1 else 0),
        shapes,
    )


def vit(rng):
    net = ViT(image_size=8, patch_size=4, width=8, depth=2, heads=2, channels=1, classes=3)
    folded = {"head": "norm/scale norm/bias"}
    for i in range(2):
        folded |= {
            f"blocks_{i}/attn/qkv": f"blocks_{i}/norm1/scale blocks_{i}/norm1/bias",
            f"blocks_{i}/attn/proj": f"blocks_{i}/attn/qkv blocks_{i}/attn/qkv/bias",
            f"blocks_{i}/mlp/fc1": f"blocks_{i}/norm2/scale blocks_{i}/norm2/bias",
        }
    left = {f"blocks_{i}/mlp/fc2": f"the outputs of blocks_{i}/mlp/fc1 go through erf" for i in range(2)}
    left["patch_embed/proj"] = "no parameter multiplies its inputs"
    return net, rng.normal(size=(3, 8, 8, 1)), folded, left


def decoder(rng):
    net, folded = Decoder(vocabulary=11, width=8, depth=2, heads=2, hidden=12), {"head": "norm/scale"}
    for i in range(2):
        attn, mlp = f"blocks_{i}/attn", f"blocks_{i}/mlp"
        folded |= {f"{attn}/{name}_proj": f"blocks_{i}/norm1/scale" for name in "qkv"}
        folded |= {f"{mlp}/{name}_proj": f"blocks_{i}/norm2/scale" for name in ("gate", "up")}
        folded |= {f"{attn}/o_proj": f"{attn}/v_proj", f"{mlp}/down_proj": f"{mlp}/up_proj"}
    return net, rng.integers(0, 11, (2, 5)), folded, {}


def bert(rng):
    """The outputs of its norms go into the residual stream as well."""
    net = Bert(vocabulary=11, width=8, depth=2, heads=2, hidden=12, positions=6)
    folded, left = {}, {}
    for i in range(2):
        attn, mlp = f"blocks_{i}/attn", f"blocks_{i}/mlp"
        before = "embed_norm" if i == 0 else "blocks_0/norm2"
        added = "the values that {}/scale multiplies are added to other values"
        folded[f"{attn}/out"] = f"{attn}/value {attn}/value/bias"
        left |= {f"{attn}/{name}": added.format(before) for name in ("query", "key", "value")}
        left |= {f"{mlp}/fc1": added.format(f"blocks_{i}/norm1")}
        left |= {f"{mlp}/fc2": f"the outputs of {mlp}/fc1 go through erf"}
    return net, (rng.integers(0, 11, (2, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])), folded, left


@pytest.mark.parametrize("build", [vit, decoder, bert])
def test_models_of_ours(build, rng, x64):
    net, batch, folded, left = build(rng)

    def apply(p, batch):
        return net.apply({"params": p}, *(batch if isinstance(batch, tuple) else (batch,)))

    params = uneven(net.param_shapes(), rng)
    result = balance_rows(apply, params, batch)
    assert {name: " ".join(own.into) for name, own in result.folded.items()} == folded
    assert result.left == left
    paths = {f"{name}/kernel" for name in folded} | {n for into in folded.values() for n in into.split()}
    assert changed(params, result) == {p if p in leaf_names(params) else f"{p}/kernel" for p in paths}
    same_function(apply, params, result, batch)
    alone = [name for name, into in folded.items() if list(folded.values()).count(into) == 1]
    assert all(result.spread[name].after < 1e-12 < 0.1 < result.spread[name].before for name in alone)
    again = balance_rows(apply, result.params, batch)
    assert all(np.abs(own.factors - 1).max() < 1e-12 for own in again.folded.values())


def test_through_relu_of_the_convolutional_network(rng, x64):
    """Between convolution, BatchNorm, ReLU and convolution; what also goes on past a block has to stay."""
    net = ConvNet((2, 4, 6), 3, rngs=nnx.Rngs(params=0))
    net.eval()
    graph, params, statistics = split(net)
    params = uneven(params, rng)
    images = rng.normal(size=(2, 16, 16, 3))

    def apply(p, x):
        return nnx.merge(graph, p, statistics)(x)

    result = balance_rows(apply, params, images)
    norms = {"block2/second/conv": "block2/first", "block3/second/conv": "block3/first"}
    norms["separable/pointwise"] = "separable/depthwise"
    assert {name: own.into for name, own in result.folded.items()} == {
        name: (f"{of}/norm/scale", f"{of}/norm/bias") for name, of in norms.items()
    }
    assert len(result.left) == 8 and result.left["block1/conv"].endswith("are added to other values")
    for name in norms:
        assert result.spread[name].after < result.spread[name].before
    assert result.spread["separable/pointwise"].after < 1e-12
    same_function(jax.jit(apply), params, result, images)


def test_blocks_are_one_item_of_the_line(rng):
    net, images, *_ = vit(rng)
    assert str(balance_rows(net, uneven(net.param_shapes(), rng), images)).endswith(
        "; not for patch_embed/proj (no parameter multiplies its inputs), "
        "blocks_*/mlp/fc2 (2 layers: the outputs of blocks_*/mlp/fc1 go through erf)"
    )


def test_only_the_columns_of_the_values_change(rng, x64):
    """Of a fused kernel; its columns for queries and keys change by what its own rows are divided by, no more."""
    net, images, *_ = vit(rng)
    params = uneven(net.param_shapes(), rng)
    result = balance_rows(net, params, images, "blocks_0/attn/proj")
    before, after = (p["blocks_0"]["attn"]["qkv"]["kernel"] for p in (params, result.params))
    np.testing.assert_array_equal(after[:, :16], before[:, :16])
    r = relative(rms(params["blocks_0"]["attn"]["proj"]["kernel"]))
    np.testing.assert_allclose(after[:, 16:], before[:, 16:] * r, rtol=1e-14)
    assert changed(params, result) == {f"blocks_0/attn/{name}" for name in ("qkv/kernel", "qkv/bias", "proj/kernel")}


def test_some_rows_alone(params, rng, x64):
    def apply(p, x):
        return (h := norm(p, x)) @ p["w"], jnp.exp(h[:, :2])

    result = balance_rows(apply, params, rng.normal(size=(7, N)))
    own = result.folded["w"]
    np.testing.assert_array_equal(own.factors[:2], 1)
    np.testing.assert_allclose(own.factors[2:], relative(rms(params["w"][2:])), rtol=1e-14)
    assert own.note == "the values that scale multiplies go through exp" and not result.left
    assert str(result).startswith("folded for 1 of 1 layers (1 of them in part), mean spread")
    assert 0 < result.spread["w"].after < result.spread["w"].before


def test_quantized_layers_lose_less(rng):
    """Of uneven rows, in the float model's outputs, which are the same before and after."""
    sizes = {"scale": (24,), "bias": (24,), "w": (24, 8)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    for name in ("scale", "w"):
        params[name] *= np.exp(rng.normal(size=(24, *(1,) * (params[name].ndim - 1)))).astype(np.float32)
    x = rng.normal(size=(200, 24)).astype(np.float32)

    def apply(p, x):
        return norm(p, x) @ p["w"]

    balanced, errors = balance_rows(apply, params, x).params, []
    for start in (params, balanced):
        after = quantize(apply, start, [x], QuantSpec(method="beacon", alphabet="3")).params
        errors.append(np.square(apply(after, x) - apply(params, x)).sum())
    assert errors[1] < errors[0] / 2


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(nn.LayerNorm(name="norm")(nn.relu(nn.Dense(N, name="hidden")(x))))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(4, N, rngs=rngs), nnx.Linear(N, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(N, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(nnx.relu(self.hidden(x))))


def test_flax_modules_themselves(rng):
    x = rng.normal(size=(7, 4)).astype(np.float32)
    net = Nnx(nnx.Rngs(0))
    net.eval()
    before, result = net(x), balance_rows(net, None, x)
    nnx.update(net, result.params)
    np.testing.assert_allclose(net(x), before, rtol=1e-4, atol=1e-5)
    linen = Linen()
    variables = linen.init(jax.random.key(0), x)
    other = balance_rows(linen, variables["params"], x)
    np.testing.assert_allclose(
        linen.apply({"params": other.params}, x), linen.apply(variables, x), rtol=1e-4, atol=1e-5
    )
    for found in (result, other):
        assert found.folded["out"].into == ("norm/scale", "norm/bias") and found.spread["out"].after < 1e-6
        assert found.left == {"hidden": "no parameter multiplies its inputs"}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("(", r"layers='\(' is not a regular expression"),
        ("x", "layers='x' matches no layer; the model has w, v, out$"),
        (3, "layers is a regular expression over layer names, got 3"),
    ],
)
def test_bad_patterns(params, layers, message):
    with pytest.raises(ValueError, match=message):
        balance_rows(mlp, params, np.zeros((2, N)), layers)


def test_bad_parameters(params):
    params["w"][0, 0] = np.nan
    with pytest.raises(ValueError, match="w: the kernel has values that are not finite"):
        balance_rows(mlp, params, np.zeros((2, N)))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    with pytest.raises(ValueError, match=r"parameters are arrays with values, got a jax\.ShapeDtypeStruct"):
        balance_rows(mlp, shapes, np.zeros((2, N)))
