"""A decoder of 4 blocks, 128 wide, on the docstrings of Python's standard library, trained by this project.

Train:     python -m experiments.train_language --config=configs/language.py

That takes 2,408 steps, 47 minutes on two cores that other programs used as well. Test loss after each of the 8 epochs:
3.891, 3.321, 3.110, 2.980, 2.886, 2.823, 2.789, 2.785 nats per token; at the end perplexity 16.21, 1.559 bits per byte.

Quantize:  python -m experiments.quantize --config=configs/language.py
Table:     python -m experiments.tables --config=configs/language.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.task = "experiments.tasks.language:language"
    config.out = "results/language"
    config.model.name = "decoder_docstrings"  # a row of beacon_jax.models.decoder.DECODERS
    config.model.checkpoint = "experiments/checkpoints/language.safetensors"
    config.data.name = "stdlib_docstrings"
    config.data.batch_size = 32  # windows of 128 tokens
    config.data.calibration_images = 256  # windows
    config.norm_tuning.batch_size = 16
    config.norm_tuning.label = "targets"
    config.table.alphabets = ("1.58", "2", "3", "4", "int2", "int3", "int4")

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
