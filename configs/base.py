"""Every key that an experiment reads, with its default; the other configs override a few.

Any key can be set on the command line, as in --config.quant.alphabet=3 or --config.data.calibration_images=64.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.out = "results"  # folder that results are written to, made if needed

    config.model = ConfigDict()
    config.model.name = "deit_digits"  # a row of beacon_jax.models.vit.VARIANTS
    config.model.checkpoint = ""  # safetensors file with the float parameters

    config.data = ConfigDict()
    config.data.name = "digits"  # a row of beacon_jax.data.DATASETS
    config.data.batch_size = 128
    config.data.calibration_images = 256  # drawn from the training split with config.seed
    config.data.test_images = 0  # evaluate on the first so many only; 0 for all

    # Keyword arguments of beacon_jax.QuantSpec: what experiments/quantize.py does, and what a table starts from.
    config.quant = ConfigDict()
    config.quant.method = "beacon"  # a row of beacon_jax.quant.methods.METHODS
    config.quant.alphabet = "2"  # a name, such as 1.58, 2, 2.58, 4, int4
    config.quant.layers = r"blocks_\d+/.*"  # regular expression over layer names, matched whole
    config.quant.calibrate_on = "both"  # float, quantized, or both (error correction)
    config.quant.options = ConfigDict()  # options of the method, e.g. --config.quant.options.sweeps=3
    config.quant.rules = ()  # LayerRule dicts: exceptions for some layers, the last one that matches counts
    config.quant.activations = "disk"  # where the calibration activations wait: disk or memory
    config.quant.allow_few_rows = False  # calibrate a layer on fewer rows than it has inputs

    # experiments/tables.py: each row is (title, overrides of config.quant); each is run at every alphabet.
    config.table = ConfigDict()
    config.table.alphabets = ("1.58", "2", "2.58", "3", "4")
    config.table.rows = (
        ("RTN", dict(method="rtn", calibrate_on="float")),
        ("GPTQ", dict(method="gptq", calibrate_on="quantized")),
        ("COMQ", dict(method="comq", calibrate_on="float")),
        ("Beacon w/o E.C.", dict(method="beacon", calibrate_on="float")),
        ("Beacon w/ E.C.", dict(method="beacon", calibrate_on="both")),
        ("Beacon w/ E.C. + centering", dict(method="beacon", calibrate_on="both", options=dict(centering="mean"))),
    )

    # experiments/train.py
    config.train = ConfigDict()
    config.train.epochs = 120
    config.train.batch_size = 128
    config.train.learning_rate = 1e-3  # peak, reached after the warm-up, then a cosine to zero
    config.train.warmup_epochs = 10
    config.train.weight_decay = 0.05  # AdamW, on kernels only
    config.train.label_smoothing = 0.1
    config.train.shift = 0.5  # augmentation, uniform in ±: pixels,
    config.train.rotate = 10.0  # degrees,
    config.train.zoom = 0.1  # and fraction of the size
    config.train.float_checkpoint = ""  # where the trained parameters go
    return config
