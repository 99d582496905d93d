"""Writes a quantized vision transformer as plain float weights that timm or transformers load.

python -m experiments.export --file=results/quantized.safetensors --naming=timm --out=model.safetensors

--naming=hf gives Hugging Face's names. Kernels have the values of their codes; the codes themselves are lost.
"""

from absl import flags

from beacon_jax.models.export import NAMINGS
from experiments import common, files

_FILE = flags.DEFINE_string("file", None, "A file that experiments.quantize or save_quantized wrote.", required=True)
_OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)
_NAMING = flags.DEFINE_enum("naming", None, NAMINGS, "Whose names.", required=True)
_MODEL = flags.DEFINE_string("model", None, "A row of beacon_jax.models.vit.VARIANTS; by default what the file says.")


def main(_):
    print(files.export(_FILE.value, _OUT.value, _NAMING.value, _MODEL.value))


if __name__ == "__main__":
    common.run(main, configured=False)
