"""Every model of tests/zoo: what is found in it, on which inputs each layer is quantized, and what comes of it."""

import functools
import re

import jax
import numpy as np
import pytest

from beacon_jax import QuantSpec, quantize
from tests.spy import spied
from tests.zoo import by_hand, linen_basic, naive
from tests.zoo.models import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated:DeprecationWarning")


def parametrized(default):
    """Over all models, those that are not among the default ones with the slow tests."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in default else pytest.mark.slow) for name in MODELS]
    )


# Models much like another one, of another framework or in other words.
ALIKE = (
    "linen_frozen_dict linen_bfloat16_parameters linen_self_attention linen_scan_of_remat "
    "linen_remat_scan_of_whole_net linen_vmap_over_experts_of_the_same_rows linen_gru linen_unrolled_lstm "
    "linen_unrolled_gru nnx_list_and_sequential "
    "nnx_multi_head_attention nnx_embed nnx_tied_embedding nnx_lstm nnx_optimized_lstm nnx_gru nnx_scan "
    "nnx_shared_linear_three_times nnx_bfloat16 nnx_scan_of_remat linen_conv_local jax_loop_of_known_length "
    "nnx_mlp nnx_lora nnx_vmap_over_experts nnx_linear_general_and_einsum "
    "linen_sequential linen_cnn_with_batch_norm linen_reversed_rnn_with_lengths"
).split()
every_model = parametrized([name for name in MODELS if name not in ALIKE])
# Calibration on the float model alone takes all layers of a stage in one pass.
some_models = parametrized(("linen_encoder_block", "linen_shared_dense_three_times", "nnx_cnn_with_batch_norm"))


@functools.cache
def quantized(name, calibrate_on):
    return spied(MODELS[name](), calibrate_on)


@functools.cache
def float_uses(name):
    """{layer name: its use} of the float model, the rows of both batches together."""
    model = MODELS[name]()
    return uses(model, model.params)


def uses(model, params):
    captured = [naive.capture(model.apply, params, batch) for batch in model.batches]
    together = {}
    for layer, first in captured[0].items():
        if first is not None and first.leaf not in model.left:
            rows = [capture[layer].rows for capture in captured]
            together[layer] = naive.Use(first.kind, first.kernel, np.concatenate(rows, 1), first.leaf)
    return together


def in_order_of(use, result, seen, layer):
    """The quantized kernel (E, N, C) with rows and columns as in `use`; and what the method was given, so too."""
    kernel, given = by_hand.dequantized(result.layers[layer], len(use.kernel)).copy(), []
    for e, mine in enumerate(use.kernel):
        found = [(a, record) for record in seen if (a := by_hand.alignment(mine, record[0])) is not None]
        assert len(found) == 1, f"group {e} of {layer} was quantized {len(found)} times"
        (rows, columns), record = found[0]
        kernel[e] = kernel[e][rows][:, columns]
        given.append([gram[rows][:, rows] for gram in record[1:4]])
    return kernel, given


def replaced(name, layers):
    """The model's parameters with the quantized kernels of these layers put in by hand."""
    result, seen = quantized(name, "both")
    kernels = {}
    for layer in layers:
        use = float_uses(name)[layer]
        kernels[layer] = use, in_order_of(use, result, seen, layer)[0]
    return by_hand.insert(MODELS[name]().params, kernels)


@every_model
def test_the_naive_run_has_the_layers_that_the_model_names(name):
    model = MODELS[name]()
    found = {layer: (use.kind, use.kernel.shape, use.rows.shape[1]) for layer, use in float_uses(name).items()}
    assert list(found.items()) == list(model.layers.items())
    held = {use.leaf for use in float_uses(name).values()}
    assert naive.named_leaves(model.params).keys() == held | model.left.keys() and not held & model.left.keys()


def layer_groups(name):
    """Layers in the order of their first runs, those with the very same rows together with the first of them."""
    found = float_uses(name)
    first = {}
    for layer, use in found.items():
        key = use.rows.shape, use.rows.tobytes(), use.kind
        first.setdefault(key, []).append(layer)
    return list(first.values())


@every_model
def test_layers_are_found_in_order(name):
    model, (result, seen) = MODELS[name](), quantized(name, "both")
    assert list(result.layers) == [report.layer for report in result.reports]
    assert list(result.layers) == [layer for group in layer_groups(name) for layer in group]
    for report in result.reports:
        kind, (groups, n, c), rows = model.layers[report.layer]
        assert (report.kind, report.rows) == (kind, rows)
        shape = (n, c) if groups == 1 else (groups, n, c)
        assert result.layers[report.layer].codes.shape == tuple(report.shape) == shape
    assert len(seen) == sum(shape[0] for _, shape, _ in model.layers.values())


@every_model
def test_every_parameter_is_accounted_for(name):
    model, (result, _) = MODELS[name](), quantized(name, "both")
    rows = {row.path: row for row in result.coverage.leaves}
    leaves = naive.named_leaves(model.params)
    assert rows.keys() == leaves.keys() and len(rows) == len(result.coverage.leaves)
    assert {path: row.size for path, row in rows.items()} == {path: leaf.size for path, leaf in leaves.items()}
    reasons = {path: row.reason for path, row in rows.items() if row.reason}
    assert reasons.keys() == model.left.keys()
    for path, reason in reasons.items():
        assert re.search(model.left[path], reason), f"{path}: {reason}"


def assert_grams(given, x, x_tilde, tolerance):
    """H, G, F of each group are those of the rows x and x_tilde (E, m, N)."""
    for (h, g, f), one, two in zip(given, x, x_tilde, strict=True):
        for gram, expected in ((h, two.T @ two), (g, two.T @ one), (f, one.T @ one)):
            np.testing.assert_allclose(gram, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-3))


@some_models
def test_float_statistics(name):
    model, (result, seen) = MODELS[name](), quantized(name, "float")
    for layer, use in float_uses(name).items():
        assert_grams(in_order_of(use, result, seen, layer)[1], use.rows, use.rows, model.tolerance)


@every_model
def test_statistics_with_earlier_layers_quantized(name):
    model, (result, seen) = MODELS[name](), quantized(name, "both")
    done = []
    for group in layer_groups(name):
        tilde = uses(model, replaced(name, done))
        for layer in group:
            use = float_uses(name)[layer]
            given = in_order_of(use, result, seen, layer)[1]
            assert_grams(given, use.rows, tilde[layer].rows, model.tolerance)
        done += group


@every_model
def test_the_result_is_the_model_with_its_kernels_replaced(name):
    model, (result, _) = MODELS[name](), quantized(name, "both")
    by_hand_params = replaced(name, model.layers)
    assert jax.tree.structure(result.params) == jax.tree.structure(model.params)
    old, new, expected = map(naive.named_leaves, (model.params, result.params, by_hand_params))
    for path in old:
        assert new[path].dtype == old[path].dtype
        np.testing.assert_array_equal(new[path], expected[path], err_msg=path)
        assert (path in model.left) == np.array_equal(new[path], old[path])
    batch = model.batches[-1]
    outputs = [jax.tree.leaves(naive.run(model.apply, p, batch)) for p in (result.params, by_hand_params, model.params)]
    assert all(map(np.array_equal, outputs[0], outputs[1]))
    assert not all(map(np.array_equal, outputs[0], outputs[2]))


def test_a_linen_module_may_be_handed_over_itself():
    """With one array in it needs no function."""
    spec = QuantSpec(method="rtn", alphabet="4", allow_few_rows=True)
    model = MODELS["linen_mlp"]()
    direct = quantize(linen_basic.Mlp(), model.params, model.batches, spec)
    function = quantize(model.apply, model.params, model.batches, spec)
    jax.tree.map(np.testing.assert_array_equal, direct.params, function.params)


@pytest.mark.parametrize("padded", [0.0, 0.5])
def test_rows_count_by_their_weights(padded):
    """A padded token's row adds nothing to the statistics, a weighted one as much as its weight."""
    model, use = MODELS["linen_ids_and_mask"](), float_uses("linen_ids_and_mask")["fc"]

    def weigh(batch):
        return np.where(batch["mask"] > 0, 1, padded).astype(np.float32)

    result, seen = spied(model, weights=weigh)
    (kernel, gram, _, _, count), *more = [record for record in seen if by_hand.alignment(use.kernel[0], record[0])]
    weight = np.concatenate([weigh(batch).ravel() for batch in model.batches])
    rows, _ = by_hand.alignment(use.kernel[0], kernel)
    expected = (use.rows[0] * weight[:, None]).T @ use.rows[0]
    assert not more
    np.testing.assert_allclose(np.asarray(gram)[rows][:, rows], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(count, weight.sum(), rtol=1e-6)
    (report,) = (report for report in result.reports if report.layer == "fc")
    assert report.rows == (weight > 0).sum()
