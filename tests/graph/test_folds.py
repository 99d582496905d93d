import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.graph.factor_rules import NONE
from tests.graph.random_factors import folds_of, with_random_factors
from tests.zoo.models import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _short_formulas():
    with jax.numpy_rank_promotion("allow"):
        yield


N, H = 6, 4  # features of the inputs, and between two layers
SHAPES = {
    "scale": (N,), "bias": (N,), "one": (), "w": (N, H), "v": (N, H), "b": (H,), "out": (H, N), "gate": (N, H),
    "table": (9, N), "up": (N, 2 * H), "stack": (2, N, N), "scales": (2, N), "joined": (N, H),
}  # fmt: skip


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def heads(x, count=2):
    return x.reshape(*x.shape[:-1], count, -1)


def attention(p, x, values):
    scores = jnp.einsum("bqn,bkn->bqk", x @ p["w"], x @ p["v"])
    return jnp.einsum("bqk,bkhd->bqhd", jax.nn.softmax(scores), values)


def two_slices(p, x):
    for i in range(2):
        x = x + norm(x) * p["scales"][i] @ p["stack"][i]
    return x


FOLDED = {  # name: function, {layer: (what takes the factors over, number of factors)}
    "layer norm": (lambda p, x: (norm(x) * p["scale"] + p["bias"]) @ p["w"], {"w": ("scale bias", N)}),
    "rms norm": (lambda p, x: x * (jax.lax.rsqrt((x * x).mean(-1, keepdims=True)) * p["scale"]) @ p["w"],
                 {"w": ("scale", N)}),
    "subtracted": (lambda p, x: (p["bias"] - x * p["scale"]) @ p["w"], {"w": ("scale bias", N)}),
    "two readers": (lambda p, x: ((y := x * p["scale"]) @ p["w"]) * jnp.tanh(y @ p["v"]),
                    {"w": ("scale", N), "v": ("scale", N)}),
    "values with bias": (lambda p, x: attention(p, x, heads(x @ p["gate"] + p["b"])).reshape(2, 3, -1) @ p["out"],
                         {"out": ("gate b", H)}),
    "grouped values": (
        lambda p, x: attention(p, x, jnp.repeat(heads(x @ p["gate"]), 2, 2)).reshape(2, 3, -1)
        @ jnp.swapaxes(p["up"], 0, 1), {"up": ("gate", H)}),
    "gated": (lambda p, x: jax.nn.silu(x @ p["w"]) * (x @ p["v"] + p["b"]) @ p["out"], {"out": ("v b", H)}),
    "fused": (lambda p, x: (lambda a, b: jnp.tanh(a) * b @ p["out"])(*jnp.split(x @ p["up"], 2, -1)),
              {"out": ("up", H)}),
    "slices": (two_slices, {"stack[0]": ("scales", N), "stack[1]": ("scales", N)}),
    "the same twice": (lambda p, x: sum((x[:, i] * p["scale"] + p["bias"]) @ p["w"] for i in range(2)),
                       {"w": ("scale bias", N)}),
    "experts": (lambda p, x: jnp.einsum("btn,enm->betm", x * p["scale"], p["stack"]), {"stack": ("scale", N)}),
    "masked and pooled": (
        lambda p, x: ((x * p["scale"] + p["bias"]) * (x[:, :, :1] > 0)).sum(1) / x.shape[1] @ p["w"],
        {"w": ("scale bias", N)}),
    "first position": (lambda p, x: (x * p["scale"])[:, 0] @ p["w"], {"w": ("scale", N)}),
    "convolution": (
        lambda p, x: jax.lax.conv_general_dilated(x * p["scale"], p["stack"], (1,), "SAME",
                                                  dimension_numbers=("NHC", "HIO", "NHC")), {"stack": ("scale", N)}),
    "relu": (lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["out"], {"out": ("w b", H)}),
    "leaky relu": (lambda p, x: jax.nn.leaky_relu(x @ p["w"] + p["b"]) @ p["out"], {"out": ("w b", H)}),
    "half of them": (lambda p, x: (y := x * p["scale"]) @ p["w"] + (y[..., : N // 2] ** 2).sum(-1, keepdims=True),
                   {"w": ("scale", N - N // 2)}),
}  # fmt: skip


REFUSED = {  # name: function, layer, what its reason says
    "residual": (lambda p, x: (y := norm(x) * p["scale"] + p["bias"]) @ p["stack"][0] + y, "stack[0]",
                 "the values that scale multiplies are added to other values"),
    "returned": (lambda p, x: ((y := x * p["scale"]) @ p["w"], y), "w", "scale multiplies are returned as an output"),
    "read elsewhere": (lambda p, x: (y := x * p["scale"]) @ p["w"] + jnp.tanh(y)[..., :H], "w", "go through tanh"),
    "nonlinear": (lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["out"], "out",
                  "no parameter multiplies its inputs, which come out of tanh"),
    "clipped": (lambda p, x: jax.nn.relu6(x @ p["w"] + p["b"]) @ p["out"], "out",
                "the outputs of w go through min"),
    "gelu": (lambda p, x: jax.nn.gelu(x @ p["w"] + p["b"], approximate=False) @ p["out"], "out",
             "the outputs of w go through erfc"),
    "one scale": (lambda p, x: x * p["one"] @ p["w"], "w", "one scale in common"),
    "one plus scale": (lambda p, x: x * (1 + p["scale"]) @ p["w"], "w", "scale multiplies are added to other values"),
    "tied kernel": (lambda p, x: x * p["scale"] @ p["table"].T + p["table"][np.array([3, 1])].sum(), "table",
                    r"scale multiplies reach table, whose kernel is also looked up"),
    "tied scale": (lambda p, x: x * p["scale"] @ p["w"] + jnp.tanh(x * p["scale"]).sum(-1, keepdims=True), "w",
                   "go through tanh"),
    "tied bias": (lambda p, x: (x * p["scale"] + p["bias"]) @ p["w"] + jnp.exp(p["bias"]).sum(), "w",
                  "scale multiplies go through exp"),
    "tied values": (lambda p, x: attention(p, x, heads(x @ p["w"])).reshape(2, 3, -1) @ p["out"], "out",
                    "the outputs of w"),
    "other inputs": (lambda p, x: x * p["scale"] @ p["w"] + x @ p["w"], "w",
                     "scale multiplies are not all that w is applied to"),
    "another order": (lambda p, x: (y := x * p["scale"]) @ p["w"] + y[..., ::-1] @ p["w"], "w", "not all that w is"),
    "no layer": (lambda p, x: (y := x * p["scale"]) @ p["w"] + y @ jnp.tanh(p["v"]), "w", "in a product that is no"),
    "square": (lambda p, x: (y := x @ p["w"]) * y @ p["out"], "out", "the outputs of w are multiplied by each other"),
    "both factors": (lambda p, x: (y := x @ p["up"])[..., :H] * y[..., H:] @ p["out"], "out",
                     "the outputs of up are multiplied by each other"),
    "features mixed": (lambda p, x: jnp.cumsum(x @ p["w"], -1) @ p["out"], "out", "which come out of cumsum"),
    "the batch": (lambda p, x: x @ p["w"], "w", "no parameter multiplies its inputs"),
}  # fmt: skip


def drawn(rng):
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}, rng.normal(size=(2, 3, N))


def taken_over(found, model):
    """{layer: names of what takes the factors of its rows over}."""
    into = {}
    for fold in found.folds:
        names = ([fold.column[0].name] if fold.column else []) + [model.leaves[leaf] for leaf in fold.leaves]
        into |= dict.fromkeys((layer.name for layer, _ in fold.rows), " ".join(names))
    return into


@pytest.mark.parametrize("case", FOLDED.values(), ids=FOLDED)
def test_found(case, rng, x64):
    """Any factors leave the function as it is."""
    apply, expected = case
    params, x = drawn(rng)
    found, model = folds_of(apply, params, x)
    counts = {layer.name: len(set(labels[labels != NONE])) for fold in found.folds for layer, labels in fold.rows}
    into = taken_over(found, model)
    assert {name: (into[name], count) for name, count in counts.items()} == expected
    changed = with_random_factors(found, params, rng)
    for name, leaf in params.items():
        touched = name in {n.split("[")[0] for n in into} | {n for to in into.values() for n in to.split()}
        assert np.array_equal(changed[name], leaf) != touched
    before, after = apply(params, x), apply(changed, x)
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12 * np.abs(before).max())


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case, rng, x64):
    apply, layer, reason = case
    found, _ = folds_of(apply, *drawn(rng))
    assert not found.folds
    assert reason in found.reasons[layer]


# Names of models, and what their layers' factors are taken over by; in none of the others can rows be scaled.
ZOO = {
    "linen_functional_apply_inside": {
        "head": "inner/out inner/out/bias", "inner/out": "inner/hidden inner/hidden/bias"},
    "linen_ids_and_mask": {"fc": "norm/scale norm/bias"},
    "linen_lora": {"lora_b": "lora_a"},
    "nnx_lora": {"lora_b": "lora_a"},
    "linen_multi_head_dot_product_attention": {"attention/out": "attention/value attention/value/bias"},
    "linen_multi_head_attention_to_another_sequence": {"out": "value value/bias"},
    "linen_self_attention": {"out": "value value/bias"},
    "nnx_multi_head_attention": {"out": "value value/bias"},
    "linen_encoder_block": {
        "fc1": "norm2/scale norm2/bias",
        "attention/out": "attention/value attention/value/bias",
    }
    | dict.fromkeys(("attention/query", "attention/key", "attention/value"), "norm1/scale norm1/bias"),
    "nnx_mlp": {"fc1": "norm/scale norm/bias", "fc2": "fc1 fc1/bias"},
    "jax_transposed_kernels": {"1": "0", "2": "2/gain"},
    "linen_cnn_with_batch_norm": {"conv2": "norm1/scale norm1/bias", "head": "norm2/scale norm2/bias"},
    "linen_dense_general": {"join": "split split/bias", "each": "join join/bias"},
    "linen_einsum": {"merge": "heads heads/bias"},
    "linen_embedding": {"out": "fc fc/bias"},
    "linen_moe_einsum": {"experts_out": "experts_in"},
    "linen_weight_norm": {"out": "norm/hidden/kernel/scale hidden/bias"},
    "nnx_bfloat16": {"fc2": "fc1 fc1/bias"},
    "nnx_cnn_with_batch_norm": {"up": "depthwise depthwise/bias"},
    "nnx_linear_general_and_einsum": {"join": "split split/bias", "mix": "join join/bias"},
    "jax_dict_of_matrices": {"w2": "w1 b1"},
    "jax_conv_of_another_layout": {"out": "conv"},
    "equinox_cnn": {"out": "conv conv/bias"},
    "equinox_mlp": {"layers/1": "layers/0 layers/0/bias", "layers/2": "layers/1 layers/1/bias"},
    "haiku_mlp": {"mlp/~/linear_1": "mlp/~/linear_0 mlp/~/linear_0/b"},
} | {
    name: {f"blocks/fc1[{i}]": "blocks/norm/scale blocks/norm/bias" for i in range(3)}
    for name in ("linen_scan", "linen_scan_of_remat", "linen_remat_scan_of_whole_net")
} | {
    f"linen_{name}": {"out": "hidden hidden/bias"}
    for name in ("mlp", "jit", "remat", "partitioned", "frozen_dict", "bfloat16_parameters", "bfloat16_computation")
} | {
    f"linen_vmap_over_experts{rows}": {"experts/out": "experts/hidden experts/hidden/bias"}
    for rows in ("", "_of_the_same_rows")
}  # fmt: skip
QUICK = (
    "linen_functional_apply_inside", "linen_ids_and_mask", "linen_lora", "linen_multi_head_dot_product_attention",
    "linen_multi_head_attention_to_another_sequence", "nnx_multi_head_attention", "linen_encoder_block", "nnx_mlp",
    "jax_transposed_kernels", "linen_cnn_with_batch_norm", "linen_moe_einsum", "linen_scan",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ZOO])
def test_other_models(name, rng):
    model = MODELS[name]()
    found, read = folds_of(model.apply, model.params, model.batches[0])
    assert taken_over(found, read) == ZOO[name]
    changed = with_random_factors(found, model.params, rng)
    before, after = (jax.tree.leaves(model.apply(p, model.batches[0])) for p in (model.params, changed))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=model.tolerance, atol=model.tolerance * np.abs(old).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS.keys() - ZOO.keys()))
def test_other_models_without(name):
    model = MODELS[name]()
    found, read = folds_of(model.apply, model.params, model.batches[0])
    assert not found.folds and found.reasons.keys() == {layer.name for layer in read.layers}
