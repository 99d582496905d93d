import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import QuantSpec, load_quantized, quantize, save_quantized
from beacon_jax.graph.model import Model
from beacon_jax.graph.program import Unsupported
from tests.spy import spied
from tests.zoo import by_hand

D = 4
SPEC = QuantSpec(method="rtn", alphabet="3", allow_few_rows=True)


def kernels(rng, *names):
    return {name: rng.normal(size=(D, D)).astype(np.float32) for name in names}


def data(rng, *shapes):
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def branching(p, x):
    if x.shape[1] > 4:
        a, b = jnp.tanh(x) @ p["a"], x.mean(1) @ p["b"]
    else:
        b, a = x.mean(1) @ p["b"], jnp.tanh(x) @ p["a"]
    return a, b


def branching_inputs(x):
    return {"a": np.tanh(x), "b": x.mean(1)}


def ends(p, x):
    return jnp.tanh(x[:, 0] @ p["a"]) + x[:, -1] @ p["b"]


def ends_inputs(x):
    return {"a": x[:, 0], "b": x[:, -1]}


@pytest.mark.parametrize(("apply", "inputs"), [(branching, branching_inputs), (ends, ends_inputs)])
@pytest.mark.parametrize("lengths", [(6, 1), (1, 6), (6, 3, 6)])
@pytest.mark.parametrize("calibrate_on", ["float", "both"])
def test_batches_whose_shapes_have_other_equations(rng, apply, inputs, lengths, calibrate_on):
    """In another order, or fewer where two slices coincide: every layer has its own inputs all the same."""
    params, batches = kernels(rng, "a", "b"), data(rng, *((3, n, D) for n in lengths))
    model = dataclasses.make_dataclass("M", ["apply", "params", "batches"])(apply, params, batches)
    _, seen = spied(model, calibrate_on)
    for name, kernel in params.items():
        rows = np.concatenate([inputs(x)[name].reshape(-1, D) for x in batches])
        ((order, _), gram) = next((a, r[1]) for r in seen if (a := by_hand.alignment(kernel, r[0])) is not None)
        np.testing.assert_allclose(gram[order][:, order], rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_shapes_with_other_layers_are_refused(rng):
    def apply(p, x):
        return x @ (p["a"] if x.shape[0] > 3 else p["b"])

    with pytest.raises(Unsupported, match="batches of different shapes use different layers: a"):
        quantize(apply, kernels(rng, "a", "b"), data(rng, (4, D), (3, D)), SPEC)


def test_complex_data_is_left_with_the_reason(rng):
    params = kernels(rng, "f", "g")
    result = quantize(lambda p, x: jnp.abs(jnp.fft.fft(x) @ p["f"]) @ p["g"], params, data(rng, (9, D)), SPEC)
    assert list(result.layers) == ["g"]
    assert {leaf.path: leaf.reason for leaf in result.coverage.leaves} == {"f": "multiplied by complex data", "g": ""}


def test_paths_of_two_parameters_must_differ(rng):
    one, two = kernels(rng, "w"), kernels(rng, "w")
    with pytest.raises(Unsupported, match="parameters need a path each, but a/b/w is that of several"):
        Model(lambda p, x: x @ p["a"]["b"]["w"] @ p["a/b"]["w"], {"a": {"b": one}, "a/b": two})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class QueryValue:
    query: jax.Array
    value: jax.Array


def test_a_field_called_value_is_a_name(rng, tmp_path):
    params = {"at": QueryValue(*kernels(rng, "a", "b").values())}
    result = quantize(lambda p, x: (x @ p["at"].query) * (x @ p["at"].value), params, data(rng, (9, D)), SPEC)
    assert list(result.layers) == ["at/query", "at/value"]
    save_quantized(tmp_path / "q", result)
    loaded, _ = load_quantized(tmp_path / "q", like=params)
    jax.tree.map(np.testing.assert_array_equal, loaded, result.params)


def test_a_single_array_of_parameters(rng):
    result = quantize(lambda w, x: x @ w, rng.normal(size=(D, D)), data(rng, (9, D)), SPEC)
    assert list(result.layers) == ["params"]


def test_a_repeated_kernel_has_its_reason(rng):
    def apply(p, x):
        return jnp.matmul(x[:, None], jnp.broadcast_to(p["d"], (9, D, D)))[:, 0] @ p["e"]

    result = quantize(apply, kernels(rng, "d", "e"), data(rng, (9, D)), SPEC)
    assert result.coverage.leaves[0].reason == "repeated before it is multiplied by data"


def test_strict_names_what_is_left(rng):
    params = kernels(rng, "a", "b") | {"bias": np.ones((1, D), np.float32)}

    def apply(p, x):
        return (x @ p["a"][:, :2]) @ p["b"][:2] + p["bias"]

    for rules, left in (
        ((), r"3 of the parameters .*bias: added; a: parts of it are no layer; b: parts of it"),
        (({"layers": "bias", "skip": True}, {"layers": "a|b", "skip": False}), "2 of the parameters"),
    ):
        spec = dataclasses.replace(SPEC, strict=True, rules=rules, layers="[ab].*")
        with pytest.raises(ValueError, match=left):
            quantize(apply, params, data(rng, (9, D)), spec)


def test_a_rule_may_name_the_whole_path(rng):
    params = {"l": {"kernel": rng.normal(size=(D, D))}, "m": {"kernel": rng.normal(size=(D, D))}}
    spec = dataclasses.replace(SPEC, rules=({"layers": "l/kernel", "skip": True},))
    result = quantize(lambda p, x: x @ p["l"]["kernel"] @ p["m"]["kernel"], params, data(rng, (9, D)), spec)
    assert list(result.layers) == ["m"]
    assert re.search("skipped by the rule", result.coverage.leaves[0].reason)


def test_keys_of_random_numbers(rng):
    params = kernels(rng, "a", "b")

    def noisy(p, b):
        keep = jax.random.bernoulli(jax.random.wrap_key_data(b["key"]), 0.5, b["x"].shape)
        return jnp.tanh((b["x"] * keep) @ p["a"]) @ p["b"]

    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    batch = {"x": data(rng, (9, D))[0], "key": key}
    assert list(quantize(noisy, params, [batch], SPEC).layers) == ["a", "b"]
    with pytest.raises(ValueError, match=r"at \['key'\] is a key of random numbers; pass jax.random.key_data"):
        quantize(noisy, params, [batch | {"key": jax.random.key(0)}], SPEC)


def test_eight_bit_floats(rng):
    params = {name: jnp.asarray(w, jnp.float8_e4m3fn) for name, w in kernels(rng, "a", "b").items()}

    def apply(p, x):
        x = jnp.tanh(x @ p["a"].astype(jnp.float32)).astype(jnp.float8_e4m3fn)
        return x.astype(jnp.float32) @ p["b"].astype(jnp.float32)

    result = quantize(apply, params, data(rng, (9, D)), SPEC)
    assert list(result.layers) == ["a", "b"] and result.params["a"].dtype == jnp.float8_e4m3fn


def test_weights_need_not_reach_what_stays_float(rng):
    """Reversed positions cannot be followed, which matters only where the layer behind them is quantized."""
    params, x, weights = kernels(rng, "a", "b"), data(rng, (3, 5, D)), np.ones((3, 5), np.float32)

    def apply(p, x):
        return jnp.tanh(x @ p["a"])[:, ::-1] @ p["b"]

    spec = dataclasses.replace(SPEC, layers="a")
    assert quantize(apply, params, x, spec, weights=lambda _: weights).reports[0].rows == 15
    for few in (True, False):
        with pytest.raises(Unsupported, match="the weights' axis 1 cannot be followed to the inputs of b: rev"):
            quantize(apply, params, x, dataclasses.replace(SPEC, allow_few_rows=few), weights=lambda _: weights)
