"""A DeiT of 6 blocks, 192 wide, patch 4, on CIFAR-10, trained by this project.

The images come from TFDS (tfds build cifar10 --file_format=array_record, which needs tensorflow) or, with
DATA="--config.data.name=image_folder --config.data.root=PATH", from a folder or zip file with train/<class>/ and
test/<class>/.

Train:     python -m experiments.train --config=configs/cifar10.py $DATA
Quantize:  python -m experiments.quantize --config=configs/cifar10.py $DATA
Table:     python -m experiments.tables --config=configs/cifar10.py $DATA
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.full_table(base.get_config())
    config.out = "results/cifar10"
    config.model.name = "deit_cifar10"
    config.model.checkpoint = "experiments/checkpoints/cifar10.safetensors"
    config.quant.layers = r"blocks_\d+/.*"
    config.data.name = "cifar10"
    config.data.calibration_images = 512
    config.data.cache = True
    config.norm_tuning.images = 1024
    config.norm_tuning.batch_size = 32
    config.norm_tuning.steps = 100

    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.optimizer = "muon"
    config.train.warmup_epochs = 0.5
    config.train.augmentation = "flip_crop"
    config.train.shift = 4.0
    config.train.save_every = 200
    config.train.float_checkpoint = config.model.get_ref("checkpoint")
    return config
