"""A DeiT of 6 blocks, 192 wide, patch 4, on CIFAR-10, trained by this project."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.out = "results/cifar10"
    config.model.name = "deit_cifar10"
    config.model.checkpoint = "experiments/checkpoints/cifar10.safetensors"
    config.data.name = "cifar10"

    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.optimizer = "muon"
    config.train.warmup_epochs = 0.5
    config.train.augmentation = "flip_crop"
    config.train.shift = 4.0
    config.train.save_every = 200
    config.train.float_checkpoint = config.model.get_ref("checkpoint")
    return config
