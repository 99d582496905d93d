import argparse
import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from beacon_jax.models.state_dict import read_state_dict

STATE = {"blocks.0.norm1.weight": np.arange(3, dtype=np.float32), "head.bias": np.float32([4, 5])}


def assert_same(read, state=STATE):
    assert read.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(np.asarray(read[name], np.float32), array)


def renamed(before, state=STATE):
    return {before + name: array for name, array in state.items()}


@pytest.mark.parametrize(
    "names",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"model.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model._orig_mod.module.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
        lambda name: f"_fsdp_wrapped_module.{name}".replace("blocks.0.", "blocks.0._fsdp_wrapped_module."),
    ],
    ids=["none", "ddp", "lightning", "compile", "peft", "ddp of compile", "three", "checkpointing", "fsdp"],
)
def test_what_wrappers_put_before_names(tmp_path, names):
    save_file({names(name): array for name, array in STATE.items()}, tmp_path / "a.safetensors")
    assert_same(read_state_dict(tmp_path / "a.safetensors"))


def test_the_count_beside_averaged_weights(tmp_path):
    save_file(renamed("module.") | {"n_averaged": np.int64([7])}, tmp_path / "a.safetensors")
    assert_same(read_state_dict(tmp_path / "a.safetensors"))


def test_prefixes_that_not_all_names_have_stay(tmp_path):
    state = {"model.a": STATE["head.bias"], "b": STATE["head.bias"]}
    save_file(state, tmp_path / "a.safetensors")
    assert_same(read_state_dict(tmp_path / "a.safetensors"), state)


def raw(kind, shape, data):
    header = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("F64", np.float64),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
    ],
)
def test_floating_types(tmp_path, kind, dtype):
    values = np.array([[0, 1, -2], [0.5, 3, 16]])
    (tmp_path / "a.safetensors").write_bytes(raw(kind, [2, 3], values.astype(dtype).tobytes()))
    read = read_state_dict(tmp_path / "a.safetensors")["a"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read.astype(np.float32), values)


@pytest.mark.parametrize(("kind", "size"), [("F4", 0.5), ("F8_E8M0", 1), ("C64", 8)])
def test_types_that_are_not_read_are_named(tmp_path, kind, size):
    (tmp_path / "a.safetensors").write_bytes(raw(kind, [4], bytes(int(4 * size))))
    with pytest.raises(ValueError, match=f"holds tensors of type {kind}, which are not read: a$"):
        read_state_dict(tmp_path / "a.safetensors")


def sharded(folder):
    names = list(STATE)
    for i, name in enumerate(names, 1):
        save_file({name: STATE[name]}, folder / f"model-0000{i}-of-00002.safetensors")
    weight_map = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(names, 1)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
    )
    return weight_map


def test_checkpoints_in_several_files(tmp_path):
    sharded(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert_same(read_state_dict(path))


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("{", ValueError, "no index of a checkpoint: it needs a weight_map"),
        ("[]", ValueError, "no index of a checkpoint"),
        ({"a": "../other.safetensors"}, ValueError, r"names '\.\./other.safetensors', which is no checkpoint"),
        ({"a": "none.safetensors"}, FileNotFoundError, "names none.safetensors, one of 1 files, which is not"),
        ({"head.bias": "model-00002-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}, ValueError,
         "does not fit its files: x is in none of its files"),
        ({"a": "model-00001-of-00002.safetensors"}, ValueError, "does not fit its files: a is in none"),
    ],
)  # fmt: skip
def test_indices_that_do_not_fit(tmp_path, index, error, message):
    sharded(tmp_path)
    text = index if isinstance(index, str) else json.dumps({"weight_map": index})
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_state_dict(tmp_path)


def test_folders(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"holds no model.safetensors and not exactly one file .*: none; name the file"
    ):
        read_state_dict(tmp_path)
    save_file(STATE, tmp_path / "other.safetensors")
    assert_same(read_state_dict(tmp_path))
    save_file({"x": STATE["head.bias"]}, tmp_path / "another.safetensors")
    with pytest.raises(ValueError, match=r": another.safetensors, other.safetensors; name the file"):
        read_state_dict(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert_same(read_state_dict(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{", ValueError, "not a readable safetensors file"),
        ("a.safetensors", b"", ValueError, "not a readable safetensors file"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", ValueError, "a pointer of Git LFS"),
        ("a.npz", b"", ValueError, r"ends in .safetensors, .pth, .pt or .bin, or is their .index.json, got 'a.npz'"),
        ("config.json", b"{}", ValueError, "a checkpoint ends in"),
        (None, b"", FileNotFoundError, "no checkpoint at"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, error, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_state_dict(tmp_path / (name or "none.safetensors"))


def torch_state(torch):
    return {name: torch.from_numpy(array) for name, array in STATE.items()}


def training(torch):
    """{case: what is saved, what must be read}, averaged weights being one more."""
    state = torch_state(torch)
    more = {name: tensor + 1 for name, tensor in state.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    return {
        "plain": (state, STATE),
        "model": ({"model": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, STATE),
        "state_dict": ({"state_dict": {f"module.{k}": v for k, v in state.items()}, "arch": "vit"}, STATE),
        "averaged by timm": ({"state_dict": state, "state_dict_ema": more}, {k: v + 1 for k, v in STATE.items()}),
        "averaged by DeiT": ({"model": state, "model_ema": more}, {k: v + 1 for k, v in STATE.items()}),
        "averaged, empty": ({"model": state, "model_ema": None}, STATE),
        "nested": ({"model": {"state_dict": state}}, STATE),
        "requires_grad": (parameters, STATE),
        "bfloat16": ({k: v.bfloat16() for k, v in state.items()}, STATE),
        "float16": ({k: v.half() for k, v in state.items()}, STATE),
        "float8": ({k: v.to(torch.float8_e4m3fn) for k, v in state.items()}, STATE),
        "transposed": ({k: v[:, None].t() for k, v in state.items()}, {k: v[None] for k, v in STATE.items()}),
    }


def test_training_checkpoints(tmp_path, caplog):
    torch = pytest.importorskip("torch")
    for case, (saved, expected) in training(torch).items():
        torch.save(saved, tmp_path / "a.pth")
        with caplog.at_level("WARNING", logger="absl"):
            caplog.clear()
            assert_same(read_state_dict(tmp_path / "a.pth"), expected)
        assert bool(caplog.messages) == (case in ("averaged by timm", "averaged by DeiT")), case
        if case == "averaged by timm":
            assert caplog.messages[0].endswith("taken are the averaged weights state_dict_ema, not state_dict")


def test_torch_files_that_hold_other_things(tmp_path):
    torch = pytest.importorskip("torch")
    state, path = torch_state(torch), tmp_path / "a.pth"
    for saved, message in (
        (
            {"model": state, "args": argparse.Namespace(lr=1)},
            r"could run code: objects of argparse\.Namespace; save its",
        ),
        ({"model": torch.nn.Linear(2, 2)}, r"could run code: objects of torch\.nn\.modules\.linear\.Linear"),
        ({"model": pytest.approx(1.0)}, "holds more than tensors"),
        ({"student": state, "teacher": state}, r"holds no state dict: beside tensors it has student, teacher \(dict\)"),
        (state | {"epoch": 3}, r"holds no state dict: beside tensors it has epoch \(int\)"),
        ([1, 2], "holds no state dict but a list"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "holds a of type torch.complex64"),
        ({"a": torch.eye(3).to_sparse()}, "holds a of type torch.float32, torch.sparse_coo, which is not read"),
    ):
        torch.save(saved, path)
        with pytest.raises(ValueError, match=message) as error:
            read_state_dict(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    torch.save(state, path)
    for content in (b"", b"hello", path.read_bytes()[:300], b"\x80\x02garbage"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a readable torch file|damaged, or holds more") as error:
            read_state_dict(path)
        assert "\n" not in str(error.value)
