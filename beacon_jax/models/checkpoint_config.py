"""What only the config files beside a checkpoint tell of a ViT, compared with the model that it is converted to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from beacon_jax.models.vit import ViT

# Up to here an epsilon adds nothing to the variance of a ViT's activations that shows in its logits.
_HARMLESS_EPS = 1e-5


def check_configs(folder: Path, model: ViT, name: str, normalization: tuple[tuple[float, ...], ...]) -> None:
    """Compares config.json (timm's or Hugging Face's) and preprocessor_config.json, where they are there.

    Args:
      folder: where they lie.
      model: the model.
      name: what it is called, a row of `vit.VARIANTS`.
      normalization: mean and deviation of its pixels, a value of `preprocessing.NORMALIZATIONS`.

    Raises:
      ValueError: a file that is no JSON object, or a value that the model does not have, by name. An epsilon of the
        norms that is another but as small is logged as a warning.
    """
    wanted = _wanted(model, name)
    for file in ("config.json", "preprocessor_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        config = _read(path)
        pixels = config.get("pretrained_cfg", config)
        pixels = pixels if isinstance(pixels, Mapping) else {}
        for key, value in wanted.items():
            if key in config and config[key] != value:
                raise ValueError(f"{path} says that {key} is {config[key]!r}, and for {name} it is {value!r}")
        for keys, ours in zip((("mean", "image_mean"), ("std", "image_std")), normalization, strict=True):
            for key in keys:
                if key in pixels and not _equal(pixels[key], ours):
                    raise ValueError(f"{path} says that {key} is {pixels[key]!r}, and for {name} it is {ours}")
        if (eps := config.get("layer_norm_eps", model.epsilon)) != model.epsilon:
            if not (isinstance(eps, (int, float)) and 0 <= eps <= _HARMLESS_EPS):
                raise ValueError(f"{path} says that layer_norm_eps is {eps!r}, and for {name} it is {model.epsilon}")
            logging.warning("%s: layer_norm_eps is %g, and for %s it is %g", path, eps, name, model.epsilon)


def _wanted(model: ViT, name: str) -> dict[str, Any]:
    """Hugging Face's keys, then timm's."""
    wanted = dict(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        intermediate_size=model.mlp_ratio * model.width,
        patch_size=model.patch_size,
        num_channels=model.channels,
        hidden_act="gelu",
        qkv_bias=True,
    )
    return wanted | dict(architecture=name, num_classes=model.classes)


def _equal(theirs: Any, ours: tuple[float, ...]) -> bool:
    try:
        return bool(np.allclose(np.asarray(theirs, float), ours, atol=1e-4))
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object but a {type(config).__name__}")
    return config
