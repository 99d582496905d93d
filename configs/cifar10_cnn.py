"""A convolutional network of 919,818 parameters in Flax NNX on CIFAR-10, trained by this project.

The images come as for configs/cifar10.py (DATA is described there). Top-1 of the float model is 83.52 ± 0.52 % on 5,000
test images (half of the test set, 500 of each class).

Train:     python -m experiments.train --config=configs/cifar10_cnn.py $DATA   (20 minutes of CPU time; 56 minutes on
           two cores with much other work beside it)
Quantize:  python -m experiments.quantize --config=configs/cifar10_cnn.py $DATA
Table:     python -m experiments.tables --config=configs/cifar10_cnn.py $DATA
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    config.out = "results/cifar10_cnn"
    config.task = "experiments.tasks.cnn:cnn"
    config.model.name = "cnn_cifar10"
    config.model.checkpoint = "experiments/checkpoints/cifar10_cnn.safetensors"

    config.quant.layers = r"(block|down|separable).*"  # all but the first and the last, as in the ViTs' configs

    config.train.epochs = 8
    config.train.batch_size = 128
    config.train.learning_rate = 2e-3
    config.train.muon_learning_rate = 6e-3
    config.train.warmup_epochs = 1.0
    config.train.save_every = 100
    return config
