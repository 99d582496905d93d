import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from beacon_jax.tensor_file import KEY, read_tensors, write_tensors

TENSORS = {"b": np.arange(6, dtype=np.uint8).reshape(2, 3), "a": np.float32(2.5), "none": np.zeros((0, 3))}
ABOUT = {"z": [1, 2.5, None, "é"], "a": {"nan": float("nan")}}


def test_round_trip(tmp_path):
    write_tensors(tmp_path / "new" / "f", "params", TENSORS, ABOUT)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["f"]
    file = read_tensors(tmp_path / "new" / "f")
    assert (file.version, file.kind, repr(file.about)) == (2, "params", repr(dict(sorted(ABOUT.items()))))
    assert file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert file.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(file.tensors[name], tensor)
    assert read_tensors(tmp_path / "new" / "f", tensors=False).tensors == {}


HELD = [
    bool, np.int64, np.uint16, np.float16, np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]  # fmt: skip


def test_every_type_that_is_written_is_read_again(tmp_path):
    tensors = {np.dtype(kind).name: np.ones((2, 3), kind) for kind in HELD}
    tensors["scalar"] = np.ones((), ml_dtypes.float8_e5m2)
    write_tensors(tmp_path / "f", "params", tensors, {})
    read = read_tensors(tmp_path / "f").tensors
    assert {name: (a.dtype, a.shape) for name, a in read.items()} == {
        name: (a.dtype, a.shape) for name, a in tensors.items()
    }
    assert all((read[name] == a).all() for name, a in tensors.items())


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (np.ones(3, ml_dtypes.int4), "int4"),
        (np.ones(3, np.complex128), "complex128"),
        (np.ones(3, ml_dtypes.float8_e4m3fnuz), "float8_e4m3fnuz"),
        ("text", "<U4"),
    ],
)
def test_other_types_are_refused_by_name(tmp_path, tensor, kind):
    with pytest.raises(ValueError, match=f"'a/b' is of type {kind}, which a safetensors file does not hold"):
        write_tensors(tmp_path / "new" / "f", "params", {"a/b": tensor}, {})
    assert not (tmp_path / "new").exists()


def test_the_same_twice_is_the_same_bytes(tmp_path):
    many = {f"tensor_{i}": np.full(3, i, np.float32) for i in range(40)}
    written = set()
    for order in (1, -1):
        for _ in range(4):  # safetensors' own metadata come in another order each time
            write_tensors(tmp_path / "f", "params", dict(list(many.items())[::order]), {"a": 1, "b": 2})
            written.add((tmp_path / "f").read_bytes())
    assert len(written) == 1


def test_views_of_transposed_arrays_are_saved_as_they_look(tmp_path, rng):
    matrix = rng.normal(size=(4, 3)).astype(np.float32).T
    write_tensors(tmp_path / "f", "params", {"a": matrix}, {})
    np.testing.assert_array_equal(read_tensors(tmp_path / "f").tensors["a"], matrix)


def test_flipped_bits_of_a_small_file_are_found(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, "params", {"a": np.arange(2, dtype=np.float32)}, {})
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"f (is damaged|is not a readable safetensors|was not written by)"):
            read_tensors(path)


def test_other_files(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '.*f'"):
        read_tensors(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_tensors(tmp_path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by this version of beacon_jax"):
        read_tensors(path)
    for text in ("", "[1]", "{}", '{"checksum":"a"}', "[" * 100_000):
        save_file({"a": np.zeros(2)}, path, metadata={KEY: text})
        with pytest.raises(ValueError, match="is damaged: its metadata are not those that were written"):
            read_tensors(path)


def test_a_later_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("beacon_jax.tensor_file.VERSION", 3)
    write_tensors(tmp_path / "f", "params", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is of format version 3, and this beacon_jax reads 1 and 2"):
        read_tensors(tmp_path / "f")
