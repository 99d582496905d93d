import dataclasses
from collections import Counter
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from beacon_jax import METHODS, Execution, FloatStats, QuantSpec, calibration, quantize, run
from beacon_jax.checkpoint import load_layer, save_layer
from beacon_jax.graph.model import Model
from beacon_jax.graph.stages import piece
from beacon_jax.quant.methods import beacon, rtn
from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.methods.table import Method
from tests.tiny_vit import LAYERS, MODEL, blocks


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(n, 8, 8, 1)).astype(np.float32) for n in (8, 8, 5)]
    shapes = MODEL.param_shapes()
    return jax.tree.map(lambda p: jax.device_put((rng.normal(size=p.shape) * 0.3).astype(np.float32)), shapes), batches


@pytest.fixture
def seen(monkeypatch):
    """A method that rounds to nearest and keeps the statistics it was given, in order."""
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SpyOptions(Options):
        tag: int | None = option(None, "of no effect", at_least=0)

    class Spy(Method):
        def solve(self, kernel, stats, alphabet, **options):
            seen.append(jax.tree.map(np.asarray, stats))
            return super().solve(kernel, stats, alphabet, **options)

    def solver(problem, options):
        return rtn.solve(problem, rtn.RTNOptions())

    monkeypatch.setitem(METHODS, "spy", Spy("spy", SpyOptions, solver))
    return seen


@jax.jit
def inputs_of(params, batch):
    """{layer name: input} of every nn.Dense, seen while the model runs."""
    inputs = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            inputs["/".join(context.module.path)] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        MODEL.apply({"params": params}, batch)
    return inputs


def stats_of(params, tilde_params, batches, name):
    """Gram statistics of one layer, from whole-model forward passes."""
    rows = [[np.asarray(inputs_of(p, batch)[name], np.float64) for batch in batches] for p in (params, tilde_params)]
    x, x_tilde = (np.concatenate([a.reshape(-1, a.shape[-1]) for a in own]) for own in rows)
    grams = dict(H=x_tilde.T @ x_tilde, G=x_tilde.T @ x, F=x.T @ x)
    return SimpleNamespace(**grams, sum_x=x.sum(0), sum_xt=x_tilde.sum(0))


def replace_kernels(params, layers):
    params = jax.tree.map(lambda a: a, params)
    for name, matrix in layers.items():
        *path, last = name.split("/")
        tree = params
        for key in path:
            tree = tree[key]
        tree[last]["kernel"] = matrix.dequantize()
    return params


def test_layers_are_done_in_order_and_put_in_place(problem):
    params, batches = problem
    before = jax.tree.map(np.asarray, params)
    done = []
    result = quantize(MODEL, params, batches, blocks(), on_layer=lambda r, m, n: done.append((r, m, n)))
    assert [r.layer for r in result.reports] == list(result.layers) == LAYERS
    assert [r for r, _, _ in done] == result.reports and {n for _, _, n in done} == {8}
    jax.tree.map(np.testing.assert_array_equal, before, params)  # the input is left alone
    jax.tree.map(np.testing.assert_array_equal, replace_kernels(params, result.layers), result.params)


def test_float_calibration_sees_the_float_model(problem, seen):
    params, batches = problem
    quantize(MODEL, params, batches, blocks(method="spy", calibrate_on="float"))
    for name, stats in zip(LAYERS, seen, strict=True):
        expected = stats_of(params, params, batches, name)
        for field in ("H", "G", "F"):
            np.testing.assert_allclose(getattr(stats, field), expected.F, rtol=1e-4, atol=1e-3)
        assert stats.count == 21 * 17


@pytest.mark.parametrize("calibrate_on", ["both", "quantized"])
def test_each_layer_sees_the_quantization_of_all_before_it(problem, seen, calibrate_on):
    params, batches = problem
    spec = blocks(method="spy", alphabet="3", calibrate_on=calibrate_on)
    result = quantize(MODEL, params, batches, spec)
    for i, (name, stats) in enumerate(zip(LAYERS, seen, strict=True)):
        tilde = replace_kernels(params, {n: result.layers[n] for n in LAYERS[:i]})
        expected = stats_of(params if calibrate_on == "both" else tilde, tilde, batches, name)
        for field in ("H", "G", "F", "sum_x", "sum_xt"):
            np.testing.assert_allclose(getattr(stats, field), getattr(expected, field), rtol=1e-4, atol=2e-3)


def test_the_first_layer_needs_no_error_correction(problem):
    """Its inputs are the same in both models, so both variants of Beacon give the same codes."""
    params, batches = problem
    results = [
        quantize(MODEL, params, batches, blocks(layers=LAYERS[0], calibrate_on=c)).layers[LAYERS[0]]
        for c in ("float", "both", "quantized")
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.codes, results[0].codes)
        np.testing.assert_allclose(result.scale, results[0].scale, rtol=1e-6)  # summed by another program


def test_reports(problem):
    params, batches = problem
    result = quantize(MODEL, params, batches, blocks(alphabet="3"))
    tilde = replace_kernels(params, {n: result.layers[n] for n in LAYERS[:3]})
    x, x_tilde = (
        np.concatenate([np.asarray(inputs_of(p, b)[LAYERS[3]]).reshape(-1, 64) for b in batches])
        for p in (params, tilde)
    )
    y = x @ np.asarray(params["blocks_0"]["mlp"]["fc2"]["kernel"])
    v = x_tilde @ np.asarray(result.layers[LAYERS[3]].dequantize())
    report = result.reports[3]
    assert (report.kind, report.layer, report.shape, report.method, report.alphabet) == (
        "dense",
        LAYERS[3],
        (64, 16),
        "beacon",
        "3",
    )
    assert report.rows == 21 * 17 and report.dead == 0
    np.testing.assert_allclose(report.output_error, np.sum((y - v) ** 2) / np.sum(y**2), rtol=1e-3)
    cosine = (y * v).sum(0) / np.linalg.norm(y, axis=0) / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose([report.mean_cosine, report.min_cosine], [cosine.mean(), cosine.min()], rtol=1e-4)
    assert 1 <= report.sweeps <= 3 and 0 <= report.fixed_points <= 1


def test_rules(problem):
    params, batches = problem
    rules = (
        {"layers": r".*/fc\d", "alphabet": "4"},
        {"layers": ".*/fc2", "method": "rtn", "options": {"scale": "lsq"}},
        {"layers": "blocks_1/attn/.*", "skip": True},
        {"layers": "head|patch_embed/proj", "method": "rtn", "alphabet": "8"},
    )
    spec = blocks(calibrate_on="float", rules=rules, allow_few_rows=True)
    result = quantize(MODEL, params, batches, spec)
    assert [(r.layer, r.method, r.alphabet) for r in result.reports] == [
        ("patch_embed/proj", "rtn", "8"),
        ("blocks_0/attn/qkv", "beacon", "2"),
        ("blocks_0/attn/proj", "beacon", "2"),
        ("blocks_0/mlp/fc1", "beacon", "4"),
        ("blocks_0/mlp/fc2", "rtn", "2"),
        ("blocks_1/mlp/fc1", "beacon", "4"),
        ("blocks_1/mlp/fc2", "rtn", "2"),
        ("head", "rtn", "8"),
    ]


class Mlp(nn.Module):
    """A user's model, without stages."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(24, name="hidden")(x))
        return nn.Dense(4, name="out")(x)


def test_any_flax_model(rng):
    batches = [rng.normal(size=(40, 12)).astype(np.float32) for _ in range(2)]
    params = jax.jit(Mlp().init)(jax.random.key(0), batches[0])["params"]
    result = quantize(Mlp(), params, batches, QuantSpec(layers=".*", alphabet="4"))
    assert list(result.layers) == ["hidden", "out"]
    y, v = (np.asarray(Mlp().apply({"params": p}, batches[0])) for p in (params, result.params))
    assert np.sum((y - v) ** 2) < 0.05 * np.sum(y**2)


@pytest.mark.parametrize(
    "model", [nn.Sequential([nn.Dense(24), nn.relu, nn.Dense(4)]), nn.Dense(24)], ids=["sequential", "dense"]
)
def test_models_of_other_forms(rng, model):
    batches = [rng.normal(size=(40, 12)).astype(np.float32)]
    params = freeze(jax.jit(model.init)(jax.random.key(0), batches[0])["params"])
    result = quantize(model, params, batches, QuantSpec(layers=".*", alphabet="4"))
    assert len(result.layers) == (1 if isinstance(model, nn.Dense) else 2)
    y, v = (np.asarray(model.apply({"params": p}, batches[0])) for p in (params, result.params))
    assert np.sum((y - v) ** 2) < 0.05 * np.sum(y**2)


def test_rows_are_counted_over_batches_of_any_shape(rng):
    batches = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 50, 12), (2, 3, 12))]
    params = jax.jit(Mlp().init)(jax.random.key(0), batches[0])["params"]
    result = quantize(Mlp(), params, batches, QuantSpec(layers=".*"))
    assert [r.rows for r in result.reports] == [106, 106]


def test_a_stopped_run_goes_on_with_the_layers_it_had(problem, seen):
    params, batches = problem
    spec = blocks(method="spy")
    whole = quantize(MODEL, params, batches, spec)
    reports = {report.layer: report for report in whole.reports}
    for done in (0, 3, 4, 7, 8):
        finished = {name: (reports[name], whole.layers[name]) for name in LAYERS[:done]}
        called = []
        seen.clear()
        resumed = quantize(
            MODEL, params, batches, spec, finished=finished, on_layer=lambda r, _, n, to=called: to.append((r.layer, n))
        )
        assert len(seen) == 8 - done and called == [(name, 8) for name in LAYERS[done:]]
        jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
        assert [r.layer for r in resumed.reports] == LAYERS and list(resumed.layers) == LAYERS


def test_float_statistics_are_shared_between_runs(problem, seen):
    params, batches = problem
    shared = FloatStats()
    spec = blocks(method="spy", calibrate_on="float")
    first = quantize(MODEL, params, batches, spec, float_stats=shared)
    assert all(name in shared for name in LAYERS) and len(shared) == len(LAYERS)
    again = quantize(MODEL, params, batches, spec, float_stats=shared)
    alone = quantize(MODEL, params, batches, spec)
    for one, two, three in zip(seen[:8], seen[8:16], seen[16:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
        jax.tree.map(np.testing.assert_array_equal, one, three)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert first.reports[3].gram_seconds > again.reports[3].gram_seconds == 0
    jax.tree.map(np.testing.assert_array_equal, first.params, alone.params)
    seen.clear()
    both = blocks(method="spy", calibrate_on="both")
    filled = FloatStats()
    for stats in (shared, filled, FloatStats(), filled, None):
        quantize(MODEL, params, batches, both, float_stats=stats)
    assert len(shared) == len(filled) == len(LAYERS)
    assert not np.array_equal(seen[7].H, seen[7].F)
    for one, *others in zip(*(seen[i : i + 8] for i in range(0, 40, 8)), strict=True):
        for other in others:
            jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("changed", ["params", "batches", "weights", "dtype"])
def test_float_statistics_of_something_else_are_refused(problem, changed, x64):
    params, batches = problem
    shared, given = (
        FloatStats(),
        dict(spec=blocks(method="rtn", layers="head", calibrate_on="float", allow_few_rows=True)),
    )
    quantize(MODEL, params, batches, float_stats=shared, **given)
    if changed == "params":
        params = jax.tree.map(lambda a: np.asarray(a) + np.float32(1e-3), params)
    elif changed == "batches":
        batches = [*batches[:-1], -batches[-1]]
    elif changed == "weights":
        given["weights"] = lambda batch: np.arange(len(batch))
    else:
        given["execution"] = Execution(forward_dtype="float64")
    with pytest.raises(ValueError, match="float_stats holds statistics of another model, other calibration data"):
        quantize(MODEL, params, batches, float_stats=shared, **given)


def test_float_statistics_of_another_function_are_refused(rng):
    params, batches = {n: rng.normal(size=(4, 4)) for n in "ab"}, [rng.normal(size=(20, 4))]
    shared, spec = FloatStats(), QuantSpec(method="rtn", calibrate_on="float")
    for activation in (nn.relu, nn.relu, nn.tanh):
        given = (lambda p, x, f=activation: f(x @ p["a"]) @ p["b"]), params, batches, spec
        if activation is nn.tanh:
            with pytest.raises(ValueError, match="float_stats holds statistics of another model"):
                quantize(*given, float_stats=shared)
        else:
            quantize(*given, float_stats=shared)


def test_finished_layers_must_belong_to_the_run(problem):
    params, batches = problem
    whole = quantize(MODEL, params, batches, blocks(method="rtn"))
    finished = {LAYERS[0]: (whole.reports[0], whole.layers[LAYERS[0]])}
    for spec in (blocks(method="rtn", alphabet="3"), blocks(method="rtn", layers=".*mlp.*"), blocks()):
        with pytest.raises(ValueError, match=f"the finished layer {LAYERS[0]} .* does not fit this model and spec"):
            quantize(MODEL, params, batches, spec, finished=finished)


def test_storage_does_not_change_the_result(problem):
    params, batches = problem
    spec = blocks(method="comq", layers=".*/fc2")
    first, other = (
        quantize(MODEL, params, batches, spec, execution=Execution(activations=storage))
        for storage in ("disk", "memory")
    )
    assert list(first.layers) == LAYERS[3::4]
    for name in first.layers:
        np.testing.assert_array_equal(first.layers[name].codes, other.layers[name].codes)


@pytest.mark.parametrize("calibrate_on", ["float", "both", "quantized"])
def test_how_often_the_equations_run(problem, monkeypatch, calibrate_on):
    """In every stage at most twice on each stream; once on the float stream where layers see that alone."""
    ran, whole = Counter(), {}

    def counted(step, stats, *rest):
        for stream, own in enumerate(step.pieces):
            ran[step.stage, stream if len(step.pieces) > 1 else "alone"] += own.size
        return add_batch(step, stats, *rest)

    add_batch = calibration.add_batch
    monkeypatch.setattr(calibration, "add_batch", counted)
    params, batches = problem
    quantize(MODEL, params, batches, blocks(method="rtn", calibrate_on=calibrate_on))
    model = Model(lambda p, x: MODEL.apply({"params": p}, x), params)
    for batch in batches:
        model.add(batch)
    program, stages = model.first.program, model.first.stages
    for number, stage in enumerate(stages[:-1]):
        whole[number] = piece(program, stage.given, stage.output).size
    for number, size in whole.items():
        if number == 0 or number == len(stages) - 2:  # the embedding has no layer here, and nothing follows the last
            continue
        per_batch = {key: n / len(batches) for key, n in ran.items() if key[0] == number}
        limit = {"float": 1, "quantized": 2, "both": 4}[calibrate_on] * size
        assert 0 < sum(per_batch.values()) <= limit
        if calibrate_on == "both":
            float_share = per_batch[number, 0] - per_batch[number, 1]  # it runs on to the output with the last group
            assert per_batch[number, 0] <= 2 * size and float_share > 0


def test_memory_is_constant_in_the_number_of_images(problem):
    params, batches = problem

    def live_bytes(count):
        sizes = []
        many = (batches[0] for _ in range(count))
        quantize(
            MODEL, params, many, blocks(method="rtn"),
            on_layer=lambda *_: sizes.append(sum(a.nbytes for a in jax.live_arrays())),
        )  # fmt: skip
        return max(sizes)

    live_bytes(2)
    assert live_bytes(24) == live_bytes(3)


def test_one_trace_per_layer_shape(problem):
    params, batches = problem
    beacon.solve_codes.wide.clear_cache()
    for alphabet in ("1.58", "2", "4"):
        quantize(MODEL, params, batches, blocks(alphabet=alphabet))
    # In float64 as well the shape of attn/proj, whose inputs' mean is many times their spread in the second block.
    assert beacon.solve_codes.wide._cache_size() == 4 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(method="awq"), "unknown method 'awq'; expected one of rtn, gptq, comq, beacon"),
        (dict(alphabet="9"), "unknown alphabet '9'"),
        (dict(calibrate_on="test"), "unknown calibrate_on 'test'; expected one of float, quantized, both"),
        (dict(options={"swoops": 3}), "unknown option 'swoops' of beacon; expected one of sweeps"),
        (dict(layers="("), "is not a regular expression"),
        (dict(strict="False"), "strict is True or False, got 'False'"),
        (dict(allow_few_rows=1), "allow_few_rows is True or False, got 1"),
        (dict(rules=({"layers": "head", "skip": "no"},)), "skip is True or False, got 'no'"),
        (dict(rules=({"layers": "head", "method": "awq"},)), "unknown method 'awq'"),
        (dict(rules="head"), "rules is a list of LayerRule or of dicts, got 'head'"),
        (dict(rules=({"layer": "head"},)), "unknown key 'layer' of LayerRule; expected one of layers"),
        (dict(options={"centering": "foo"}), "unknown centering 'foo'; expected one of none, mean"),
    ],
)
def test_bad_specs(changes, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**changes)


def test_from_dict_names_unknown_keys():
    with pytest.raises(ValueError, match="unknown key 'bits' of QuantSpec; expected one of method, alphabet"):
        QuantSpec.from_dict({"bits": 2})
    assert QuantSpec.from_dict({"options": {"sweeps": 3, "centering": None}}).options == {"sweeps": 3}


def test_bad_calibration(problem):
    params, batches = problem
    for spec, data, message in (
        (blocks(), [], "no calibration batches"),
        (blocks(), batches[0], "expected several batches, got one array of shape"),
        (blocks(), [[batches[0], "label"]], r"calibration batch 0 at \[1\] is no array but a str"),
        (blocks(), [batches[0], {"image": batches[0]}], "batches must have one structure: the first is"),
        (blocks(), [batches[0], batches[0][:0]], "calibration batch 1 is empty"),
        (blocks(), [batches[0], batches[1] * np.nan], "calibration batch 1 holds NaN or infinity"),
        (blocks(), [batches[0], batches[0][:, 1:]], r"not take calibration batch 1 of shape \(.*\), where the first"),
        (blocks(), [batches[0][:2]], "2 give 34 rows for the 64 inputs of blocks_0/mlp/fc2; use at least 4"),
        (QuantSpec(layers="nothing"), batches, "no layer matches 'nothing'; the layers are patch_embed/proj .dense."),
        (blocks(rules=({"layers": "nothing"},)), batches, "no layer matches 'nothing'"),
        (blocks(rules=({"layers": ".*", "skip": True},)), batches, "skip every layer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            quantize(MODEL, params, data, spec)
    quantize(MODEL, params, [batches[0][:2]], blocks(allow_few_rows=True))


def test_a_layer_whose_inputs_are_all_zero_stays_as_it_is(rng, caplog, monkeypatch):
    params = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in ("a", "b", "c")}
    batches = [rng.normal(size=(30, 4)).astype(np.float32)]

    def apply(p, x):
        return jax.nn.relu(x @ p["a"] - 1e6) @ p["b"] + x @ p["c"]

    done = quantize(apply, params, batches, QuantSpec(options=dict(sweeps=1)))
    assert done.layers.keys() == done.places.keys() == {"a", "c"} == {report.layer for report in done.reports}
    np.testing.assert_array_equal(done.params["b"], params["b"])
    reason = "the inputs are zero in every calibration row, or so small that their squares are zero in float32"
    assert [leaf.reason for leaf in done.coverage.leaves] == ["", reason, ""]
    assert f"layer b stays in float: {reason}" in caplog.text
    with pytest.raises(ValueError, match="strict: layer b cannot be quantized: the inputs are zero in every"):
        quantize(apply, params, batches, QuantSpec(options=dict(sweeps=1), strict=True))
    assert quantize(apply, params, batches, QuantSpec(method="rtn")).layers.keys() == {"a", "b", "c"}
    # What comes of numbers that are none is no result.
    monkeypatch.setattr(run, "output_error_and_cosines", lambda *_: (jnp.asarray(jnp.nan), jnp.ones(4)))
    with pytest.raises(ValueError, match="layer a: an output error of nan"):
        quantize(apply, params, batches, QuantSpec(method="rtn"))


def test_an_error_names_its_layer_and_keeps_what_was_done(problem):
    params, batches = problem
    broken = jax.tree.map(lambda a: a, params)
    broken["blocks_1"]["mlp"]["fc1"]["kernel"] = broken["blocks_1"]["mlp"]["fc1"]["kernel"].at[0, 0].set(jnp.nan)
    done = []
    with pytest.raises(ValueError, match="layer blocks_1/mlp/fc1: NaN or infinity in the kernel"):
        quantize(MODEL, broken, batches, blocks(), on_layer=lambda r, *_: done.append(r.layer))
    assert done == LAYERS[:6]


@pytest.mark.parametrize("method", ["beacon_plus", "gptq"])
def test_a_changed_bias_reaches_the_model_and_the_layers_behind(problem, tmp_path, rng, method):
    """And a run that was stopped goes on with it, to the last bit, from files."""
    params, batches = problem
    options = dict(effort="fast") if method == "beacon_plus" else dict(bias=True)
    spec = blocks(method=method, alphabet="2", options=options)
    result = quantize(MODEL, params, batches, spec)
    for name in LAYERS:
        block, part, layer = name.split("/")
        old, new = (p[block][part][layer]["bias"] for p in (params, result.params))
        assert np.abs(result.layers[name].bias_change).max() > 1e-3
        np.testing.assert_allclose(new - old, result.layers[name].bias_change, atol=1e-6)
        outputs = [
            np.concatenate([np.asarray(inputs_of(p, b)[name]).reshape(-1, kernel.shape[0]) for b in batches])
            @ np.asarray(kernel)
            + np.asarray(bias)
            for p, kernel, bias in (
                (params, params[block][part][layer]["kernel"], old),
                (result.params, result.params[block][part][layer]["kernel"], new),
            )
        ]
        np.testing.assert_allclose(outputs[0].mean(0), outputs[1].mean(0), atol=2e-3)
    for i, report in enumerate(result.reports[:3]):
        save_layer(tmp_path / str(i), result.layers[report.layer], {})
    finished = {report.layer: (report, load_layer(tmp_path / str(i))[0]) for i, report in enumerate(result.reports[:3])}
    resumed = quantize(MODEL, params, batches, spec, finished=finished)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, result.params)


def test_only_a_layer_that_has_a_bias_gets_another(rng, monkeypatch):
    apply, params, batches = lambda p, x: x @ p["w"], {"w": np.ones((4, 2))}, [rng.normal(size=(9, 4))]
    done = quantize(apply, params, batches, QuantSpec(method="beacon_plus", options=dict(effort="fast")))
    assert done.layers["w"].bias_change is None

    class Careless(Method):
        def solve(self, kernel, stats, alphabet, **options):
            solution = super().solve(kernel, stats, alphabet, **options)
            return dataclasses.replace(
                solution, matrix=dataclasses.replace(solution.matrix, bias_change=np.ones(kernel.shape[-1]))
            )

    monkeypatch.setitem(METHODS, "careless", Careless("careless", rtn.RTNOptions, rtn.solve))
    with pytest.raises(ValueError, match="layer w: the method changes its bias, but it has none of its own"):
        quantize(apply, params, batches, QuantSpec(method="careless"))
