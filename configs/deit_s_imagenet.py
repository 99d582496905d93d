"""The paper's table for DeiT-S on ImageNet-1k; commands as in configs/deit_b_imagenet.py, with deit_small_patch16_224.

Expected: 79.86 for the float model (timm's results, crop_pct0.9-bicubic). Not run yet with the real weights and data.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    config = imagenet.get_config()
    config.out = "results/deit_s_imagenet"
    config.model.name = "deit_small_patch16_224"
    config.model.checkpoint = "deit_small_patch16_224.safetensors"
    return config
