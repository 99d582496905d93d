"""Evaluates the file of a quantized model, packed as it is, on the task of a config.

python -m experiments.evaluate_file --config=configs/digits.py --file=results/digits/quantized.safetensors

Prints the task's metrics, beside those that the file says were measured when it was written.
"""

from absl import flags

from experiments import common, files

_FILE = flags.DEFINE_string("file", None, "A file that experiments.quantize or save_quantized wrote.", required=True)


def main(_):
    print(files.evaluated(common.get_config(), _FILE.value))


if __name__ == "__main__":
    common.run(main)
