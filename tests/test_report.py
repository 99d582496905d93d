import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import QuantSpec, quantize


def apply(p, batch):
    x = p["embed"][batch["ids"]]  # (B, T, 8)
    x = jnp.tanh(x @ p["stack"][0] + p["bias"][None, None]) @ p["stack"][1]
    return x @ p["embed"].T, jnp.sum(p["unread"]) * 0 + x


@pytest.fixture
def result(rng):
    shapes = {"embed": (10, 8), "stack": (3, 8, 8), "bias": (8,), "unread": (5,), "alone": (2,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    batches = [{"ids": rng.integers(10, size=(4, 6))} for _ in range(2)]
    return quantize(apply, params, batches, QuantSpec(method="rtn", alphabet="3"))


def test_every_parameter_has_its_row(result):
    rows = {leaf.path: leaf for leaf in result.coverage.leaves}
    assert list(rows) == ["alone", "bias", "embed", "stack", "unread"]
    reasons = {path: leaf.reason for path, leaf in rows.items()}
    assert reasons == {
        "alone": "not used: no output depends on it",
        "bias": "added",
        "embed": "used in two ways: multiplied by data, and looked up (gather); no rule asks for it",
        "stack": "parts of it are no layer",
        "unread": "goes through reduce_sum",
    }
    stack = rows["stack"]
    assert (stack.quantized, stack.layers, stack.method, stack.alphabet, stack.rows) == (
        2 * 64, ("stack[0]", "stack[1]"), "rtn", "3", 48
    )  # fmt: skip
    assert stack.error == pytest.approx(np.mean([report.output_error for report in result.reports]))
    assert [leaf.layers for path, leaf in rows.items() if path != "stack"] == [()] * 4


def test_the_whole_adds_up(result):
    coverage = result.coverage
    assert coverage.parameters == 80 + 192 + 8 + 5 + 2
    assert coverage.quantized == 128 / 287
    # 3 bits a code, a float32 scale for each of 8 outputs; the rest float32.
    bits = 2 * (64 * 3 + 8 * 32) + (287 - 128) * 32
    assert coverage.bits_per_parameter == bits / 287
    # 24 rows by 8 × 8 twice, and by 8 × 10.
    assert coverage.multiplications == 2 * 64 / (2 * 64 + 80)
    assert "44.6 % of 287 parameters and 61.5 % of the multiplications" in coverage.summary()
    lines = str(coverage).splitlines()
    assert len(lines) == 1 + 5 + 1 and lines[-1] == coverage.summary()
    assert "parts of it are no layer" in str(coverage)


def test_a_rule_quantizes_what_is_used_in_two_ways(rng):
    params = {"embed": rng.normal(size=(10, 8)).astype(np.float32)}
    batches = [{"ids": rng.integers(10, size=(4, 6))}]

    def tied(p, batch):
        return jnp.tanh(p["embed"][batch["ids"]]) @ p["embed"].T

    spec = QuantSpec(method="rtn", alphabet="3", rules=[{"layers": "embed"}])
    result = quantize(tied, params, batches, spec)
    (leaf,) = result.coverage.leaves
    assert leaf.quantized == 80 and leaf.reason == ""
    np.testing.assert_array_equal(result.params["embed"].T, result.layers["embed"].dequantize())
    with pytest.raises(ValueError, match="only what is used in two ways is left: embed"):
        quantize(tied, params, batches, QuantSpec(method="rtn", alphabet="3"))
