"""A small DeiT on scikit-learn's handwritten digits: the embedded default, offline, complete in minutes on two cores.

Train:     python -m experiments.train --config=configs/digits.py   (1 minute; top-1 98.80 %)
Quantize:  python -m experiments.quantize --config=configs/digits.py   (half a minute)
Table:     python -m experiments.tables --config=configs/digits.py   (a minute or two; the table: docs/results.md)
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.out = "results/digits"
    config.model.name = "deit_digits"
    config.model.checkpoint = "experiments/checkpoints/digits.safetensors"
    config.quant.layers = r"blocks_\d+/.*"
    config.data.name = "digits"
    config.train.epochs = 60
    config.train.optimizer = "muon"
    config.train.warmup_epochs = 5.0
    config.train.float_checkpoint = config.model.get_ref("checkpoint")
    return config
