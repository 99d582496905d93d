"""Converts a timm or Hugging Face checkpoint to this project's parameters.

From the hub:  python -m experiments.convert_checkpoint --model=deit_base_patch16_224 --out=deit_base.safetensors
From a file:   python -m experiments.convert_checkpoint --model=deit_base_patch16_224 --source=model.safetensors --out=…

--source is a local .safetensors, .pth, .pt or .bin file, the .index.json of several, or a folder with one of these; or
a repository of the hub, of which model.safetensors and config.json are downloaded (once: they stay in the hub's cache),
at --revision; by default timm's repository for the model. A config.json beside the weights must describe the model.
"""

from pathlib import Path

from absl import flags

from beacon_jax import save_params
from beacon_jax.disk import try_place
from beacon_jax.models.checkpoint_config import check_configs
from beacon_jax.models.convert import convert_state_dict
from beacon_jax.models.state_dict import ENDINGS, read_state_dict
from beacon_jax.models.vit import NORMALIZATION, create_vit
from beacon_jax.preprocessing import NORMALIZATIONS
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
    "deit3_base_patch16_224": "timm/deit3_base_patch16_224.fb_in1k",
    "deit3_small_patch16_224": "timm/deit3_small_patch16_224.fb_in1k",
    "vit_base_patch16_clip_224": "timm/vit_base_patch16_clip_224.openai_ft_in1k",
}

_MODEL = flags.DEFINE_string("model", None, "A row of beacon_jax.models.vit.VARIANTS.", required=True)
_OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "A local file or folder, or a repository of the hub; timm's by default.")
_REVISION = flags.DEFINE_string("revision", "main", "Branch, tag or commit of the repository of the hub.")


def fetch(repository: str, revision: str) -> Path:
    """The repository's model.safetensors, from the hub's cache or downloaded into it, config.json beside it if any."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise ValueError("downloading needs huggingface_hub: pip install huggingface_hub") from error
    print(f"model.safetensors and config.json of {repository} at revision {revision}, from the Hugging Face hub")
    try:
        path = Path(hf_hub_download(repository, "model.safetensors", revision=revision))
        try:
            hf_hub_download(repository, "config.json", revision=revision)
        except EntryNotFoundError:
            print(f"{repository} has no config.json, with which the model could be compared")
    except Exception as error:  # the hub raises its own, httpx's and OSError for one thing: it cannot be had
        raise ValueError(
            f"cannot get model.safetensors of {repository} at revision {revision} from the Hugging Face hub, nor is it "
            f"in the cache ({type(error).__name__}); give a local file with --source"
        ) from error
    print(f"commit {path.parent.name}")  # of the hub's cache, which keeps files by commit
    return path


def main(_):
    model = create_vit(_MODEL.value)
    try_place(_OUT.value)
    source = _SOURCE.value or HUB.get(_MODEL.value)
    if source is None:
        raise ValueError(f"{_MODEL.value} has no checkpoint on the hub; give a local file with --source")
    looks_local = Path(source).exists() or Path(source).suffix in (*ENDINGS, ".json") or source.startswith(("/", "."))
    path = Path(source) if looks_local else fetch(source, _REVISION.value)
    state = read_state_dict(path)
    normalization = NORMALIZATIONS[NORMALIZATION[_MODEL.value]]
    check_configs(path if path.is_dir() else path.parent, model, _MODEL.value, normalization)
    save_params(_OUT.value, convert_state_dict(state, model), model=_MODEL.value)
    print(f"{_MODEL.value} from {source}: {_OUT.value}")


if __name__ == "__main__":
    common.run(main)
