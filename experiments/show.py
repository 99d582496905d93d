"""What is in the file of a quantized model, as a table: python -m experiments.show --file=results/quantized.safetensors

Reads all of it and checks every checksum and field, so that it also says whether a file is whole.
"""

from absl import flags

from beacon_jax.places import place
from beacon_jax.quantized_file import read_quantized
from experiments import common, files

_FILE = flags.DEFINE_string("file", None, "A file that experiments.quantize or save_quantized wrote.", required=True)


def main(_):
    leaves, record = read_quantized(_FILE.value)
    print(f"{files.layer_table(leaves, record)}\n\n{files.about(place(_FILE.value), leaves, record)}")


if __name__ == "__main__":
    common.run(main, configured=False)
