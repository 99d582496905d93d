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
from experiments.hub import HUB, fetch

_MODEL = flags.DEFINE_string("model", None, "A row of beacon_jax.models.vit.VARIANTS.", required=True)
_OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "A local file or folder, or a repository of the hub; timm's by default.")
_REVISION = flags.DEFINE_string("revision", "main", "Branch, tag or commit of the repository of the hub.")


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
    common.run(main, configured=False)
