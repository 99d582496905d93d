import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from beacon_jax import (
    METHODS,
    Execution,
    FloatStats,
    GramStats,
    LayerRule,
    QuantSpec,
    choose_alphabets,
    make_mesh,
    quantize,
)
from beacon_jax.quant.methods import rtn
from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.methods.table import Method
from beacon_jax.quant.metrics import relative_output_error

BUDGET = 8.5  # the scales of 39 channels take 5.78 of it, for 216 weights
ALPHABETS = ("4", "2", "3")  # in any order
WIDTHS = {"2": 2, "3": 3, "4": 4}


def normal(seed, *shape):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# Layers of several shapes: with and without a bias, of 3 groups, and two that are slices of one leaf.
PARAMS = {
    "in": {"kernel": normal(0, 8, 12), "bias": normal(1, 12)},
    "experts": normal(2, 3, 4, 5),
    "stack": {"kernel": normal(3, 2, 5, 5)},
    "out": {"w": normal(4, 5, 2)},
}
NAMES = ["in", "experts", "stack[0]", "stack[1]", "out"]


@jax.jit
def apply(params, batch):
    x = nn.relu(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"][None])
    x = nn.relu(jnp.einsum("ben,enc->bec", x.reshape(-1, 3, 4), params["experts"])).sum(1)
    for i in range(2):
        x = x + jnp.tanh(x @ params["stack"]["kernel"][i])
    return {"y": x @ params["out"]["w"], "class": (x @ params["out"]["w"]).argmax(-1)}


BATCHES = [{"x": np.random.default_rng(5 + i).normal(size=(n, 8)).astype(np.float32)} for i, n in enumerate((40, 30))]
SPEC = QuantSpec(method="rtn", options={"scale": "lsq"})


def chosen(budget, spec=SPEC, alphabets=ALPHABETS, **given):
    return choose_alphabets(apply, PARAMS, BATCHES, spec, alphabets, budget, **given)


@pytest.fixture(scope="module")
def plan():
    return chosen(BUDGET)


def bits_of(coverage):
    return sum(leaf.bits for leaf in coverage.leaves if leaf.quantized)


def test_the_bits_counted_are_those_of_the_quantized_model(plan):
    result = quantize(apply, PARAMS, BATCHES, plan.spec)
    assert plan.alphabets == {r.layer: r.alphabet for r in result.reports} and list(plan.alphabets) == NAMES
    left = 12 * 32  # the bias has a leaf of its own
    assert sum(row.bits for row in plan.table) == sum(x.bits for x in result.coverage.leaves) - left
    assert 8 < plan.bits_per_parameter <= BUDGET and len(set(plan.alphabets.values())) > 1


def test_offsets_count_too():
    spec = dataclasses.replace(SPEC, options={"symmetric": False})
    own = chosen(20.0, spec)
    result = quantize(apply, PARAMS, BATCHES, own.spec)
    assert sum(row.bits for row in own.table) == bits_of(result.coverage)
    assert own.bits_per_parameter > chosen(20.0).bits_per_parameter + 1


def test_double_precision_scales(x64):
    params, batches = {"a": normal(0, 8, 6).astype(jnp.float64)}, [BATCHES[0]["x"]]
    own = choose_alphabets(lambda p, x: x @ p["a"], params, batches, QuantSpec(method="rtn"), ALPHABETS, 20.0)
    result = quantize(lambda p, x: x @ p["a"], params, batches, own.spec)
    assert sum(row.bits for row in own.table) == bits_of(result.coverage)


def test_the_choice_is_the_best_of_all(plan):
    def total(alphabets):
        rows = list(zip(plan.table, alphabets, strict=True))
        bits = sum(r.bits + (WIDTHS[a] - WIDTHS[r.alphabet]) * r.weights for r, a in rows)
        return bits, sum(r.sensitivity * r.errors[a] for r, a in rows)

    limit = BUDGET * sum(row.weights for row in plan.table)
    every = [total(alphabets) for alphabets in itertools.product(WIDTHS, repeat=len(NAMES))]
    best = min(cost for bits, cost in every if bits <= limit)
    assert plan.predicted == pytest.approx(best, rel=1e-9) and plan.bound <= best


def test_errors_and_sensitivities_are_measured(plan):
    @jax.jit
    def hidden(x):
        x = nn.relu(x @ PARAMS["in"]["kernel"] + PARAMS["in"]["bias"][None])
        return nn.relu(jnp.einsum("ben,enc->bec", x.reshape(-1, 3, 4), PARAMS["experts"])).sum(1)

    row, kernel = plan.table[2], PARAMS["stack"]["kernel"][0]
    stats = GramStats.zeros(5)
    for batch in BATCHES:
        stats = stats.update(hidden(batch["x"]))
    for alphabet, error in row.errors.items():
        matrix = METHODS["rtn"](kernel, stats, alphabet, scale="lsq")
        assert error == pytest.approx(float(relative_output_error(kernel, matrix, stats)), rel=1e-3)
    matrix = METHODS["rtn"](kernel, stats, "3", scale="lsq")
    other = PARAMS | {"stack": {"kernel": PARAMS["stack"]["kernel"].at[0].set(matrix.dequantize())}}
    squares, spread = 0.0, 0.0
    for batch in BATCHES:
        y, y_hat = (np.asarray(apply(p, batch)["y"], np.float64) for p in (PARAMS, other))
        squares, spread = squares + ((y_hat - y) ** 2).sum(), spread + ((y - y.mean(0)) ** 2).sum()
    assert row.sensitivity == pytest.approx(squares / spread / row.errors["3"], rel=1e-3)
    assert row.predicted == row.sensitivity * row.errors[row.alphabet]


def test_a_larger_budget_is_never_worse_and_has_an_end():
    stats = FloatStats()
    plans = [chosen(budget, float_stats=stats) for budget in (8.0, 8.4, 9.2, 100.0)]
    assert len(stats) == 5
    for less, more in itertools.pairwise(plans):
        assert more.predicted <= less.predicted
    assert all(p.bits_per_parameter <= p.budget for p in plans)
    assert plans[0].predicted > plans[-1].predicted and set(plans[-1].alphabets.values()) == {"4"}


def test_a_mean_that_is_met_exactly_is_allowed():
    sizes = [math.prod(row.shape) for row in chosen(100.0).table]
    channels = 12 + 15 + 10 + 2
    bits = 8 * sum(-(-3 * size // 8) for size in sizes) + 32 * channels  # codes take whole bytes
    own = chosen(bits / sum(sizes), alphabets=("2", "3"))
    assert set(own.alphabets.values()) == {"3"}


def test_rules_keep_priority():
    rules = [
        LayerRule(r"stack\[.\]", alphabet="8"),
        LayerRule("out", skip=True),
        {"kind": "grouped", "method": "gptq", "options": {"damping": 0.02}},
    ]
    own = chosen(11.5, dataclasses.replace(SPEC, rules=rules))
    table = {row.layer: row for row in own.table}
    assert list(table) == NAMES[:4] and own.bits_per_parameter <= 11.5
    assert [row.fixed for row in own.table] == [False, False, True, True]
    assert own.alphabets["stack[0]"] == "8" and list(table["stack[1]"].errors) == ["8"]
    assert table["stack[0]"].bits == 5 * 5 * 8 + 5 * 32 and table["stack[0]"].predicted > 0
    result = quantize(apply, PARAMS, BATCHES, own.spec)
    assert own.alphabets == {r.layer: r.alphabet for r in result.reports}
    assert [r.method for r in result.reports] == ["rtn", "gptq", "rtn", "rtn"]
    free = [rule for rule in own.spec.rules if rule.layers in ("in", "experts")]
    assert [dict(rule.options) for rule in free] == [{"scale": "lsq"}, {"damping": 0.02}]


def test_a_layer_that_matters_more_has_more_bits():
    """Two layers of one shape and one input, the output of the first a hundred times that of the second."""
    params = {"a": normal(0, 8, 6), "b": normal(1, 8, 6)}
    batches = [np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)]

    def both(swapped):
        first, second = ("b", "a") if swapped else ("a", "b")
        return lambda p, x: 100 * x @ p[first] + x @ p[second]

    for swapped in (False, True):
        own = choose_alphabets(both(swapped), params, batches, QuantSpec(), ("2", "4"), 3.0 + 32 / 8)
        assert own.alphabets == ({"a": "2", "b": "4"} if swapped else {"a": "4", "b": "2"})
        assert max(r.sensitivity for r in own.table) > 1000 * min(r.sensitivity for r in own.table)
        assert own.bits_per_parameter == 7


def test_row_weights_reach_errors_and_outputs():
    """Padded examples change nothing, whatever they hold."""
    params = {"a": normal(0, 8, 6), "b": normal(1, 6, 3)}
    x = np.random.default_rng(2).normal(size=(40, 8)).astype(np.float32)
    longer = np.concatenate([x, 100 * np.ones((10, 8), np.float32)])

    def model(p, batch):
        return jnp.tanh(batch["x"] @ p["a"]) @ p["b"]

    def plan_of(values, count):
        batch = {"x": values, "mask": (np.arange(len(values)) < count).astype(np.float32)}
        return choose_alphabets(model, params, [batch], QuantSpec(), ("2", "4"), 9.0, weights=lambda b: b["mask"])

    short, long, all_rows = plan_of(x, 40), plan_of(longer, 40), plan_of(longer, 50)
    for own, same, other in zip(short.table, long.table, all_rows.table, strict=True):
        assert own.sensitivity == pytest.approx(same.sensitivity, rel=1e-3)
        assert list(own.errors.values()) == pytest.approx(list(same.errors.values()), rel=1e-3)
        assert own.sensitivity != pytest.approx(other.sensitivity, rel=1e-2)


def test_modules_of_flax():
    x = [np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)]
    model = nnx.Sequential(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    own = choose_alphabets(model, None, x, QuantSpec(method="rtn"), (2, 4), 8.0)
    assert {r.layer: r.alphabet for r in quantize(model, None, x, own.spec).reports} == own.alphabets
    linen = nn.Dense(4)
    params = linen.init(jax.random.key(0), x[0])["params"]
    own = choose_alphabets(linen, params, x, QuantSpec(method="rtn"), ((-1, 0, 1), "4"), 6.0)
    (report,) = quantize(linen, params, x, own.spec).reports
    assert report.alphabet == own.table[0].alphabet


def test_a_changed_bias_counts_in_the_sensitivity(monkeypatch):
    """Of a model of one layer, which is the quantized model with that layer alone quantized."""

    class Centred(Method):
        def solve(self, kernel, stats, alphabet, **options):
            solution = super().solve(kernel, stats, alphabet, **options)
            change = stats.means()[0] @ (kernel - solution.matrix.dequantize())
            return dataclasses.replace(solution, matrix=dataclasses.replace(solution.matrix, bias_change=change))

    monkeypatch.setitem(METHODS, "centred", Centred("centred", rtn.RTNOptions, rtn.solve))
    params = {"kernel": normal(0, 8, 6), "bias": normal(1, 6)}
    x = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32) + 3

    def model(p, batch):
        return batch @ p["kernel"] + p["bias"][None]

    spec = QuantSpec(method="centred", alphabet="2", calibrate_on="float")
    own = choose_alphabets(model, params, [x], spec, ("2", "4"), 20.0)
    y, y_hat = (np.asarray(model(p, x), np.float64) for p in (params, quantize(model, params, [x], spec).params))
    change = ((y_hat - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert own.table[0].sensitivity * own.table[0].errors["2"] == pytest.approx(change, rel=1e-3)


def test_what_aims_at_a_residual_stream_is_chosen_on_the_float_model(plan, monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Aiming(Options):
        residual: float = option(0.0, "as in beacon_plus", at_least=0)

        @property
        def reads_residual(self):
            return self.residual > 0

    def solver(problem, options):
        return rtn.solve(problem, rtn.RTNOptions(scale="lsq"))

    monkeypatch.setitem(METHODS, "aiming", Method("aiming", Aiming, solver))
    rules = [LayerRule("out", options={"residual": 0.5})]
    aiming = chosen(BUDGET, QuantSpec(method="aiming", options={"residual": 1.0}, rules=rules))
    assert aiming.alphabets == plan.alphabets and aiming.spec.calibrate_on == "both"
    assert aiming.spec.options == {"residual": 1.0} and aiming.spec.rules[0].options == {"residual": 0.5}


@pytest.mark.slow
def test_on_several_devices():
    """Of one group, and of 3; a few layers and alphabets, as every device count is a compilation."""
    params = {"a": normal(0, 8, 6), "experts": normal(1, 3, 2, 4)}

    def model(p, x):
        return jnp.einsum("ben,enc->bec", nn.relu(x @ p["a"]).reshape(-1, 3, 2), p["experts"])

    plans = [
        choose_alphabets(model, params, [BATCHES[0]["x"]], SPEC, ("2", "3"), 10.7, execution=Execution(mesh=mesh))
        for mesh in (None, make_mesh(4, 2))
    ]
    assert plans[0].alphabets == plans[1].alphabets == {"a": "3", "experts": "2"}
    for row, other in zip(plans[0].table, plans[1].table, strict=True):
        assert (row.predicted, row.sensitivity) == pytest.approx((other.predicted, other.sensitivity), rel=1e-3)


def test_a_layer_without_error_needs_no_bits():
    params = {"a": jnp.zeros((8, 6)), "b": normal(1, 8, 6)}
    batches = [np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)]
    own = choose_alphabets(lambda p, x: x @ p["a"] + x @ p["b"], params, batches, QuantSpec(), ("1.58", "3"), 10.0)
    assert own.alphabets == {"a": "1.58", "b": "3"} and own.table[0].sensitivity == 0


def test_the_table_in_words(plan):
    lines = str(plan).splitlines()
    assert len(lines) == 1 + len(NAMES) + 1 and lines[0].split()[:3] == ["layer", "shape", "alphabet"]
    assert lines[2].split()[:2] == ["experts", "3×4×5"]
    assert lines[-1].startswith(
        f"{plan.bits_per_parameter:.4f} of 8.5 bits per parameter over the 216 quantized weights"
    )
    fixed = chosen(11.0, dataclasses.replace(SPEC, rules=[{"layers": "in", "alphabet": "8"}]))
    assert "8 (by rule)" in str(fixed)


@pytest.mark.parametrize(
    ("budget", "alphabets", "says"),
    [
        (7.0, ALPHABETS, r"bits_per_parameter=7 is below [\d.]+, the least that .* 5 layers .* alphabets 2, 3, 4"),
        (0, ALPHABETS, "bits_per_parameter must be positive and finite, got 0"),
        (math.nan, ALPHABETS, "bits_per_parameter must be positive and finite, got nan"),
        ("6", ALPHABETS, "bits_per_parameter is a number, got '6'"),
        (BUDGET, ("2",), r"alphabets are at least two to choose from, such as .*, got \('2',\)"),
        (BUDGET, {"2"}, r"alphabets are at least two to choose from, such as .*, got \{'2'\}"),
        (BUDGET, "2", "alphabets are at least two to choose from, such as .*, got '2'"),
        (BUDGET, ("2", "9"), "unknown alphabet '9'"),
        (BUDGET, ("2", "3", 2), "the alphabets '2' and 2 are the same"),
    ],
)
def test_mistakes_are_found_before_any_layer_is_solved(budget, alphabets, says, monkeypatch):
    def solve(*args, **kwargs):
        raise AssertionError("a layer was solved")

    monkeypatch.setattr("beacon_jax.bit_widths.quantize", solve)
    with pytest.raises(ValueError, match=says) as error:
        chosen(budget, alphabets=alphabets)
    assert "\n" not in str(error.value)


def test_mistakes_in_other_arguments():
    with pytest.raises(ValueError, match="batches are read several times: give a list, not a generator"):
        choose_alphabets(apply, PARAMS, (b for b in BATCHES), SPEC, ALPHABETS, BUDGET)
    with pytest.raises(ValueError, match="expected a QuantSpec and an Execution, got dict"):
        choose_alphabets(apply, PARAMS, BATCHES, {}, ALPHABETS, BUDGET)
    with pytest.raises(ValueError, match="no layer matches 'none'"):
        chosen(BUDGET, dataclasses.replace(SPEC, layers="none"))
    with pytest.raises(ValueError, match="expected several batches, got one array"):
        choose_alphabets(apply, PARAMS, BATCHES[0]["x"], SPEC, ALPHABETS, BUDGET)
