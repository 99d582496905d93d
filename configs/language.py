"""A decoder of 4 blocks, 128 wide, on the docstrings of Python's standard library, trained by this project.

Train:     python -m experiments.train_language --config=configs/language.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.out = "results/language"
    config.model.name = "decoder_docstrings"  # a row of beacon_jax.models.decoder.DECODERS
    config.model.checkpoint = "experiments/checkpoints/language.safetensors"
    config.data.name = "stdlib_docstrings"

    config.train.epochs = 8
    config.train.batch_size = 16  # windows of 128 tokens
    config.train.optimizer = "muon"
    config.train.learning_rate = 2e-3
    config.train.muon_learning_rate = 3e-3
    config.train.warmup_epochs = 0.5
    config.train.weight_decay = 0.1
    config.train.save_every = 200
    config.train.float_checkpoint = config.model.get_ref("checkpoint")
    return config
