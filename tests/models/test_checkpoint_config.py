import json

import pytest

from beacon_jax.models.checkpoint_config import check_configs
from beacon_jax.models.vit import create_vit
from beacon_jax.preprocessing import NORMALIZATIONS

NAME = "deit_tiny_patch16_224"
HUGGING_FACE = {
    "model_type": "vit", "hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 12, "hidden_act": "gelu",
    "intermediate_size": 768, "layer_norm_eps": 1e-12, "patch_size": 16, "qkv_bias": True, "num_channels": 3,
}  # fmt: skip
TIMM = {
    "architecture": NAME,
    "num_classes": 1000,
    "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 0.9},
}
PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def check(folder, config, pixels=PIXELS):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
    check_configs(folder, create_vit(NAME), NAME, NORMALIZATIONS["imagenet"])


def test_what_fits(tmp_path, caplog):
    check_configs(tmp_path, create_vit(NAME), NAME, NORMALIZATIONS["imagenet"])  # without any file
    with caplog.at_level("WARNING", logger="absl"):
        check(tmp_path, TIMM)
        check(tmp_path, HUGGING_FACE | {"layer_norm_eps": 1e-6})
        assert not caplog.messages
        check(tmp_path, HUGGING_FACE)
    (message,) = caplog.messages
    assert message.endswith(f"config.json: layer_norm_eps is 1e-12, and for {NAME} it is 1e-06")


@pytest.mark.parametrize(
    ("config", "pixels", "message"),
    [
        (HUGGING_FACE | {"num_attention_heads": 6}, PIXELS, "num_attention_heads is 6, and for deit_tiny.* it is 3"),
        (
            HUGGING_FACE | {"hidden_act": "gelu_new"},
            PIXELS,
            "hidden_act is 'gelu_new', and for deit_tiny.* it is 'gelu'",
        ),
        (HUGGING_FACE | {"layer_norm_eps": 1e-3}, PIXELS, "layer_norm_eps is 0.001, and for deit_tiny.* it is 1e-06"),
        (HUGGING_FACE | {"layer_norm_eps": "x"}, PIXELS, "layer_norm_eps is 'x'"),
        (HUGGING_FACE | {"qkv_bias": False}, PIXELS, "qkv_bias is False"),
        (HUGGING_FACE, {"image_mean": [0.5] * 3}, r"image_mean is \[0.5, 0.5, 0.5\], and for deit_tiny.* \(0.485, "),
        (HUGGING_FACE, {"image_std": "x"}, "image_std is 'x'"),
        (TIMM | {"architecture": "vit_tiny_patch16_224"}, PIXELS, "architecture is 'vit_tiny_patch16_224', and for"),
        (TIMM | {"num_classes": 21843}, PIXELS, "num_classes is 21843"),
        (TIMM | {"pretrained_cfg": {"mean": [0.5] * 3}}, PIXELS, r"mean is \[0.5"),
        ("{", PIXELS, "config.json is no JSON file"),
        ("[1]", PIXELS, "config.json is no JSON object but a list"),
    ],
)
def test_what_does_not_fit(tmp_path, config, pixels, message):
    with pytest.raises(ValueError, match=message):
        check(tmp_path, config, pixels)
