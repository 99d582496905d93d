import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import (
    PackedLeaf,
    QuantSpec,
    dequantize,
    load_packed,
    load_params,
    load_quantized,
    load_record,
    pack_params,
    quantize,
    save_params,
    save_quantized,
)
from beacon_jax.checkpoint import save_layer
from beacon_jax.metrics.base import Measured
from beacon_jax.tensor_file import read_tensors, write_tensors
from tests.small_model import make_params, make_result


@pytest.fixture
def path(tmp_path):
    save_quantized(tmp_path / "q", make_result())
    return tmp_path / "q"


def test_round_trip(path):
    result = make_result()
    params, layers = load_quantized(path)
    assert jax.tree.map(lambda a: a.dtype, params) == jax.tree.map(lambda a: a.dtype, result.params)
    jax.tree.map(np.testing.assert_array_equal, params, result.params)
    assert list(layers) == list(result.layers)
    for name, matrix in result.layers.items():
        for field in ("codes", "alphabet", "scale", "offset"):
            own, expected = getattr(layers[name], field), getattr(matrix, field)
            assert own.dtype == expected.dtype
            np.testing.assert_array_equal(own, expected)
        np.testing.assert_array_equal(layers[name].dequantize(), matrix.dequantize())


def test_packed_parameters(path):
    result = make_result()
    packed = load_packed(path)
    assert jax.tree.structure(packed) == jax.tree.structure(pack_params(result.params, result.layers, result.places))
    assert isinstance(packed["conv"]["kernel"], PackedLeaf)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(packed))
    assert 8 * sum(a.nbytes for a in jax.tree.leaves(packed)) == sum(leaf.bits for leaf in result.coverage.leaves)
    jax.tree.map(np.testing.assert_array_equal, dequantize(packed), result.params)


def test_the_record(path, tmp_path):
    result = make_result()
    metrics = {"top1": Measured(98.5, 0.5, 500), "own": Measured(np.float32(0.25), jnp.float32(0.5), np.int64(500))}
    save_quantized(path, result, model="small", fingerprint="abc", licence="CC0-1.0", metrics=metrics)
    record = load_record(path)
    assert record.version == 2 and record.coverage == result.coverage and record.spec.to_dict() == result.spec.to_dict()
    assert (record.model, record.fingerprint, record.licence, record.metrics) == ("small", "abc", "CC0-1.0", metrics)
    assert record.options == {name: {"symmetric": False} for name in result.layers}
    without = dict(gram_seconds=0, solve_seconds=0, options=None)
    expected = [dataclasses.replace(report, **without) for report in result.reports]
    assert [dataclasses.replace(report, **without) for report in record.reports] == expected
    assert all(math.isnan(report.solve_seconds) for report in record.reports)
    assert record.versions["jax"] == jax.__version__ and record.versions.keys() == {"beacon_jax", "jax", "numpy"}


def test_the_same_model_is_the_same_bytes(path, tmp_path):
    slower = [dataclasses.replace(report, solve_seconds=99.0) for report in make_result().reports]
    save_quantized(tmp_path / "again", dataclasses.replace(make_result(), reports=slower))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_other_parameters_may_have_changed(path):
    result = make_result()
    tuned = result.params | {"out": result.params["out"] | {"bias": jnp.ones(5)}}
    save_quantized(path, result, params=tuned)
    jax.tree.map(np.testing.assert_array_equal, load_quantized(path)[0], tuned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out | {"kernel": out["kernel"] * 2}, "the kernel of layer 'out' .* changed after quantization"),
        (lambda out: out | {"bias": jnp.ones(4)}, r"parameter 'out/bias' is not float32 \(5,\) as in the model"),
        (lambda out: out | {"bias": jnp.ones(5, jnp.bfloat16)}, r"parameter 'out/bias' is not float32 \(5,\)"),
        (lambda out: {"kernel": out["kernel"]}, "parameter 'out/bias' is not float32"),
    ],
)
def test_what_a_file_would_lose_is_refused(path, change, message):
    result, before = make_result(), path.read_bytes()
    with pytest.raises(ValueError, match=message):
        save_quantized(path, result, params=result.params | {"out": change(result.params["out"])})
    assert path.read_bytes() == before


def test_a_bare_number_is_no_metric(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics are \{name: Measured\} as evaluate returns them, but top1 is 98\.5"):
        save_quantized(path, make_result(), metrics={"top1": 98.5})
    assert path.read_bytes() == before


def test_a_tree_of_another_form(tmp_path, rng):
    params = [{"a/b": jnp.asarray(rng.normal(size=(3, 8, 4)), jnp.float32)}, (jnp.ones(4),)]

    def apply(p, x):
        for kernel in p[0]["a/b"]:
            x = jnp.tanh(x @ kernel + p[1][0][None]) @ jnp.eye(4, 8)
        return x

    result = quantize(apply, params, [rng.normal(size=(20, 8)).astype(np.float32)], QuantSpec(method="rtn"))
    save_quantized(tmp_path / "q", result)
    for loaded in (load_quantized(tmp_path / "q", like=params)[0], dequantize(load_packed(tmp_path / "q", params))):
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, loaded, result.params)
    with pytest.raises(ValueError, match="does not hold these parameters"):
        load_packed(tmp_path / "q", like=[{"a/b": jnp.ones((3, 8, 5))}, (jnp.ones(4),)])


def test_random_damage_is_found(path):
    """Flipped bits, overwritten stretches, files cut short or longer: one sentence that names the file."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for i in range(320):
        damaged, at = bytearray(whole), int(rng.integers(len(whole)))
        if i % 4 == 0:
            damaged = damaged[:at]
        elif i % 4 == 1:
            length = int(rng.integers(1, 60))
            damaged[at : at + length] = rng.bytes(length)
        elif i % 8 == 2:
            damaged += rng.bytes(int(rng.integers(1, 60)))
        else:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"q (is damaged: |is not a readable safetensors file|was not written by)"):
            load_packed(path)


def _edit(about, *keys, to):
    for key in keys[:-1]:
        about = about[key]
    about[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("leaves", "conv/kernel", "layers", 0, "levels"), [0, 1, 1], "layer 'conv': levels are 2 to 256 finite"),
        (("leaves", "conv/kernel", "layers", 0, "levels"), [1, 2, 3, 4, 5, 6], "not those of the alphabet '2.58'"),
        (("leaves", "conv/kernel", "layers", 0, "levels"), [0, 1, 2], "does not hold"),
        (("leaves", "conv/kernel", "layers", 0, "shape"), [24, 8], "expected float32 scales"),
        (("leaves", "conv/kernel", "layers", 0, "shape"), "ab", "does not hold what it should"),
        (("leaves", "conv/kernel", "layers", 0, "place"), {}, "does not hold what it should"),
        (("leaves", "conv/kernel", "layers", 0, "place", "offset"), 1, "is outside its leaf"),
        (("leaves", "stack/kernel", "layers", 1, "place", "offset"), 0, "overlap"),
        (("leaves", "stack/kernel", "layers", 1, "name"), "other", "does not hold what it should"),
        (("leaves", "stack/kernel", "shape"), [2, 12, 12], r"leave 0 of \(2, 12, 12\)|is outside its leaf"),
        (("leaves", "conv/kernel", "dtype"), "bfloat16", "not those of its coverage: conv/kernel"),
        (("coverage", "leaves", 0, "path"), "other", "not those of its coverage"),
        (("reports", 0, "layer"), "other", "its reports are not of its layers"),
        (("reports", 0, "shape"), [1, 2], "its reports are not of its layers"),
        (("reports", 0, "sweeps"), None, None),
        (("spec", "method"), "none", "unknown method 'none'"),
        (("licence",), "MIT", None),
    ],
)  # fmt: skip
def test_every_field_is_checked_against_the_others(path, keys, to, message):
    file = read_tensors(path)
    _edit(file.about, *keys, to=to)
    write_tensors(path, "quantized", file.tensors, file.about)  # with checksums that are right
    if message is None:
        load_quantized(path)
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("conv:codes", None),
        ("conv:codes", np.zeros(5, np.uint8)),
        ("conv:scale", np.full(4, np.nan, np.float32)),
        ("conv:scale", np.ones(4, np.int32)),
        ("conv:offset", np.ones(4)),
        ("stack/kernel:rest", None),
        ("stack/kernel:rest", np.ones(144)),
        ("out/bias", None),
        ("out/bias", np.ones(6, np.float32)),
        ("another", np.ones(6, np.float32)),
        ("conv/kernel", np.ones((2, 2, 12, 4), np.float32)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(path, name, to):
    file = read_tensors(path)
    tensors = {key: a for key, a in (file.tensors | {name: to}).items() if a is not None}
    write_tensors(path, "quantized", tensors, file.about)
    with pytest.raises(ValueError, match="q does not hold what it should") as caught:
        load_quantized(path)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_files(path, tmp_path):
    with pytest.raises(ValueError, match="holds a quantized model; read it with load_quantized"):
        load_params(path)
    save_params(path, make_params())
    with pytest.raises(ValueError, match="holds float parameters, not a quantized model; read it with load_params"):
        load_packed(path)
    save_layer(path, make_result().layers["conv"], {})
    with pytest.raises(ValueError, match="holds a single layer, not a quantized model; read it with load_layer"):
        load_record(path)


def test_double_precision_is_not_cut_down(tmp_path):
    with jax.enable_x64(True):
        w = np.random.default_rng(0).normal(size=(4, 3))
        result = quantize(lambda p, x: x @ p["w"], {"w": w}, [np.ones((5, 4))], QuantSpec(method="rtn"))
        save_quantized(tmp_path / "q", result)
        np.testing.assert_array_equal(load_quantized(tmp_path / "q")[0]["w"], result.params["w"])
    with pytest.raises(ValueError, match="double precision, which is off; set JAX_ENABLE_X64=1"):
        load_quantized(tmp_path / "q")


def test_what_a_spec_says_survives_json():
    spec = make_result().spec
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).to_dict() == spec.to_dict()
    odd = QuantSpec(method="rtn", alphabet=np.array([-1.0, 0.0, 1.0]), options={"symmetric": False})
    again = QuantSpec.from_dict(json.loads(json.dumps(odd.to_dict())))
    assert again.alphabet == [-1, 0, 1] and again.options == {"symmetric": False}
