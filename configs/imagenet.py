"""What the ImageNet configs share; not a config of its own."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.full_table(base.get_config())
    config.quant.layers = r"blocks_\d+/.*"
    config.data.name = "imagenet2012"
    config.data.preset = "resize256-bilinear"
    config.data.calibration_images = 1024
    config.data.batch_size = 64
    config.data.cache = True  # 7.5 GB for the validation set; False decodes it again for every result
    config.norm_tuning.images = 4096
    config.norm_tuning.steps = 1000
    config.norm_tuning.check_every = 100
    config.table.sweeps_at = (("1.58", 6), ("2", 6), ("3", 5), ("4", 4))  # the paper's
    return config
