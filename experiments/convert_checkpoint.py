"""Converts a timm or Hugging Face checkpoint to this project's parameters.

From the hub:  python -m experiments.convert_checkpoint --model=deit_base_patch16_224 --out=deit_base.safetensors
From a file:   python -m experiments.convert_checkpoint --model=deit_base_patch16_224 --source=model.safetensors --out=…

--source is a local .safetensors, .pth, .pt or .bin file, or a repository of the hub whose model.safetensors is
downloaded (once: it stays in the hub's cache); by default timm's repository for the model.
"""

from pathlib import Path

from absl import flags

from beacon_jax import save_params
from beacon_jax.models.convert import convert_state_dict, read_state_dict
from beacon_jax.models.vit import create_vit
from experiments import common

# timm's own repositories of the models' default weights.
HUB = {
    "deit_base_patch16_224": "timm/deit_base_patch16_224.fb_in1k",
    "deit_small_patch16_224": "timm/deit_small_patch16_224.fb_in1k",
    "deit_tiny_patch16_224": "timm/deit_tiny_patch16_224.fb_in1k",
    "deit_base_distilled_patch16_224": "timm/deit_base_distilled_patch16_224.fb_in1k",
    "deit_small_distilled_patch16_224": "timm/deit_small_distilled_patch16_224.fb_in1k",
    "deit_tiny_distilled_patch16_224": "timm/deit_tiny_distilled_patch16_224.fb_in1k",
    "vit_base_patch16_224": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_small_patch16_224": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
}

_MODEL = flags.DEFINE_string("model", None, "A row of beacon_jax.models.vit.VARIANTS.", required=True)
_OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "A local file, or a repository of the hub; timm's by default.")


def fetch(repository: str) -> Path:
    """The repository's model.safetensors, from the hub's cache or downloaded into it."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError("downloading needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the hub raises its own, httpx's and OSError for one thing: it cannot be had
        raise ValueError(
            f"cannot get model.safetensors of {repository} from the Hugging Face hub, nor is it in the cache "
            f"({type(error).__name__}); give a local file with --source"
        ) from error


def main(_):
    model = create_vit(_MODEL.value)
    source = _SOURCE.value or HUB.get(_MODEL.value)
    if source is None:
        raise ValueError(f"{_MODEL.value} has no checkpoint on the hub; give a local file with --source")
    looks_local = Path(source).exists() or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin")
    path = Path(source) if looks_local else fetch(source)
    save_params(_OUT.value, convert_state_dict(read_state_dict(path), model), model=_MODEL.value)
    print(f"{_MODEL.value} from {source}: {_OUT.value}")


if __name__ == "__main__":
    common.run(main)
