"""The benchmark's pieces on tiny problems; no time is checked."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import METHODS, make_alphabet
from experiments import benchmark, timing
from tests.pictures import assert_is_a_plot

# Few shapes, those of the model's layers, since compilation takes the time.
TINY = benchmark.Sizes(
    shapes=((8, 8),),
    dense_shape=(8, 8),
    dense_coordinates=(1, 4),
    gram_widths=(8,),
    gram_batch=(2, 16),
    model=dict(image_size=8, patch_size=4, width=8, depth=1, heads=2, classes=3, mlp_ratio=3),
    blocks=1,
    calibrations=(dict(calibrate_on="both"),),
    batches=1,
    batch=2,
    growth_shape=(8, 8),
    growth_at=benchmark.SWEEPS,
    growth_inputs=(8, 24),
    growth_outputs=(8, 24),
    growth_sweeps=(1, benchmark.SWEEPS),
    growth_levels=(2, 16),
    growth_images=(2, 4),
    llm_shape=(8, 8),
    repeats=1,
)


@pytest.mark.parametrize("form", timing.FORMS)
@pytest.mark.parametrize("alphabet", ["2", "4"])
def test_the_literal_evaluation_chooses_beacons_codes(x64, alphabet, form):
    kernel, stats = timing.problem(24, 10, dtype=np.float64)
    dense = timing.Dense.of(kernel, stats, alphabet, form)
    q, s = dense.start()
    codes = METHODS["beacon"](kernel, stats, alphabet, sweeps=1).codes
    after, s_after = dense.sweep(q, s)
    np.testing.assert_array_equal(after, make_alphabet(alphabet)[codes].T)
    np.testing.assert_allclose(s_after, after @ dense.columns_tilde, atol=1e-9)
    assert (after != q).any()
    part, _ = dense.sweep(q, s, 5)
    np.testing.assert_array_equal(part, jnp.concatenate([after[:, :5], q[:, 5:]], axis=1))


def test_a_form_that_is_unknown():
    with pytest.raises(ValueError, match="unknown form 'columns'; expected one of sums, products"):
        timing.Dense.of(*timing.problem(8, 2), "2", "columns")


def test_exponent_of_a_power_law():
    x = np.array([3.0, 10.0, 40.0])
    assert timing.exponent(x, 0.25 * x**1.7) == pytest.approx((1.7, 0.25))


def test_interleaved_calls_the_reference_before_each_case():
    calls = []
    timings = timing.interleaved(
        {name: lambda name=name: calls.append(name) or name for name in "ab"}, lambda: calls.append("r"), repeats=2
    )
    assert "".join(calls) == "rab" + "rarb" * 2
    assert {name: t.output for name, t in timings.items()} == {"a": "a", "b": "b"}
    calls.clear()
    timing.interleaved({"a": lambda: calls.append("a")}, repeats=9, budget=0)
    assert len(calls) == 1 + 3


@pytest.mark.slow
def test_a_run_writes_tables_numbers_and_plot(tmp_path):
    markdown = benchmark.run(TINY, tmp_path / "new")
    result = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert (tmp_path / "new" / "benchmark.md").read_text() == markdown
    assert_is_a_plot(tmp_path / "new" / "growth.png")
    assert {"backend", "device", "cpus", "jax", "jaxlib", "flax"} <= set(result["machine"])
    parts = result["parts"]
    assert list(parts) == list(result["peak_memory"]) == ["solvers", "dense", "gram", "pipeline", "growth", "llm"]
    assert all(peak["process_bytes"] > 2**20 for peak in result["peak_memory"].values())
    beacon = [r for r in parts["solvers"] if r["method"] == "beacon"]
    assert [r["alphabet"] for r in beacon] == ["1.58", "2", "4", "8", "int2"]
    assert {r["method"].split(", ")[0] for r in parts["solvers"]} == set(METHODS)
    assert all(1 <= r["sweeps"] <= benchmark.SWEEPS and 0 <= r["fixed_points"] <= 1 for r in beacon)
    assert [(r["alphabet"], r["form"]) for r in parts["dense"]] == [(a, f) for a in "24" for f in timing.FORMS]
    assert [(r["width"], r["rows"], r["streams"]) for r in parts["gram"]] == [(8, 32, 1), (8, 32, 2)]
    assert [(r["calibration"], len(r["layers"])) for r in parts["pipeline"]["runs"]] == [("both", 4)]
    assert [len(r["values"]) == len(r["seconds"]) == 2 for r in parts["growth"]] == [True] * 5
    assert parts["pipeline"]["torch_images_per_second"] is None
    assert markdown.count("\n## ") == len(parts) and "extrapolated from 4 coordinates" in markdown.lower()


def test_the_forward_pass_in_torch_is_of_the_same_size():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    images = np.zeros((2, 8, 8, 3), np.float32)
    assert timing.torch_forward(TINY.model, images)().shape == (2, 3)
