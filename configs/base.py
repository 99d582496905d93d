"""Every key that an experiment reads, with its default; the other configs override a few.

Any key can be set on the command line, as in --config.quant.alphabet=3 or --config.data.calibration_images=64.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.methods import option_types


def options(**given) -> ConfigDict:
    """Options of a method: every option that any method has, unset (the method's own default) unless given."""
    config = ConfigDict({name: placeholder(kind) for name, kind in option_types().items()})
    config.update(given)
    return config


def table_row(
    title: str,
    method: str,
    calibrate_on: str,
    *,
    balance_rows: bool | None = None,
    row_weights: str | None = None,
    **given,
) -> ConfigDict:
    """A row with these options; balance_rows and row_weights as in config.quant where they are None."""
    row = ConfigDict(dict(title=title, method=method, calibrate_on=calibrate_on, options=options(**given)))
    row.balance_rows, row.row_weights = placeholder(bool), placeholder(str)
    row.balance_rows, row.row_weights = balance_rows, row_weights
    return row


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.out = "results"  # folder that results are written to, made if needed
    # Results and layers in config.out of the same settings, but of other data, versions of the methods or of jax, batch
    # or block sizes or devices: not taken (same), or taken (any). What differs is printed.
    config.reuse = "same"

    # Where each result of a table goes beside its line: tensorboard ({out}/tensorboard) and wandb (Weights & Biases).
    config.log = ()

    # The function of this config that makes model, data and metrics (see experiments/task.py): package.module:function
    config.task = "experiments.tasks.images:images"

    # config.model and config.data are read by the function of the task.
    config.model = ConfigDict()
    config.model.name = "deit_digits"  # a row of beacon_jax.models.vit.VARIANTS
    config.model.checkpoint = ""  # safetensors file with the float parameters

    # How models are run in calibration and evaluation: the fields of beacon_jax.Execution.
    config.execution = ConfigDict()
    config.execution.forward_dtype = "float32"  # or bfloat16, float64
    config.execution.activations = "disk"  # where the calibration activations wait: disk or memory
    # The devices of all processes: data × model. Examples are sharded over data, a layer's channels over all.
    config.execution.mesh = ConfigDict()
    config.execution.mesh.data = 0  # 0 for as many as model leaves
    config.execution.mesh.model = 1

    config.data = ConfigDict()
    config.data.name = "digits"  # a row of beacon_jax.sources.DATASETS
    config.data.root = ""  # image folder or zip file; TFDS's data_dir, "" for its default
    config.data.preset = "none"  # a row of beacon_jax.preprocessing.PRESETS
    config.data.on_unreadable = "error"  # or skip: images that cannot be decoded are left out and counted
    config.data.workers = 0  # threads that decode images, 0 for the number of cores
    config.data.cache = False  # keep the decoded test images in memory, for the next result
    config.data.batch_size = 128
    config.data.calibration_images = 256  # examples of any kind, drawn from the training split with config.seed
    config.data.test_images = 0  # evaluate on so many only, always the same; 0 for all
    config.data.shared_images = False  # accept an image folder without splits: calibration on the test images

    # The fields of beacon_jax.QuantSpec: what experiments/quantize.py does. A table takes method, alphabet,
    # calibrate_on and options from its rows instead, and balance_rows where a row has it. With bits_per_parameter each
    # layer that has no alphabet by a rule gets one of candidate_alphabets (see beacon_jax.choose_alphabets); a table
    # then has one more column. balance_rows is no field: it says what is done to the parameters before.
    config.quant = ConfigDict()
    config.quant.method = "beacon"  # a row of beacon_jax.METHODS
    config.quant.alphabet = "2"  # a name, such as 1.58, 2, 2.58, 4, int4
    config.quant.bits_per_parameter = placeholder(float)  # mean of codes, scales and offsets of what is quantized
    config.quant.candidate_alphabets = ("2", "3", "4")
    config.quant.calibrate_on = "both"  # float, quantized, or both (error correction)
    config.quant.row_weights = "uniform"  # or influence: rows count by how much the outputs depend on them
    config.quant.rows_per_example = placeholder(int)  # of each image's tokens (or places) at most so many count
    config.quant.rows_seed = 0  # which of them
    config.quant.options = options()
    config.quant.layers = ".*"  # regular expression over layer names, matched whole
    config.quant.rules = ()  # LayerRule dicts: exceptions for some layers; of several that match the last counts
    config.quant.balance_rows = False  # rows of one size first, where that costs nothing (beacon_jax.balance_rows)
    config.quant.allow_few_rows = False  # calibrate a layer on fewer rows than it has inputs
    config.quant.strict = False  # an error for every parameter left in float that no rule with skip names

    # Training the normalization layers of a quantized model: the fields of beacon_jax.NormTuning, and its examples.
    config.norm_tuning = ConfigDict()
    config.norm_tuning.enabled = False  # in a table: every row once more, with norm tuning
    config.norm_tuning.images = 0  # of the training split, drawn with the seed; 0 for as many as in the calibration
    config.norm_tuning.batch_size = 64
    config.norm_tuning.loss = "kl"  # to the float model's outputs; or mse, or ce (labels)
    config.norm_tuning.output = placeholder(str)  # key of the logits in the outputs, where these are a dict
    config.norm_tuning.label = "label"  # key of the labels in a batch, for ce
    config.norm_tuning.optimizer = "adamw"  # or lion, sgd
    config.norm_tuning.learning_rate = 1e-3
    config.norm_tuning.weight_decay = 1e-6
    config.norm_tuning.steps = 200
    config.norm_tuning.held_out = 0.2  # fraction of the examples that decides which step is best
    config.norm_tuning.check_every = 20  # steps
    config.norm_tuning.patience = 3  # checks without improvement, then it stops

    # experiments/tables.py runs each of these rows at each of these alphabets, with each seed.
    config.table = ConfigDict()
    config.table.alphabets = ("1.58", "2", "2.58", "3", "4")
    config.table.bits_per_parameter = ()  # a column for each such budget; () for quant.bits_per_parameter, if given
    config.table.rows = ("rtn", "gptq", "comq", "beacon", "beacon_ec", "beacon_ec_centering", "plus_ec")
    config.table.seeds = ()  # of the calibration examples; several give mean and deviation; () for config.seed
    config.table.calibration_images = ()  # several numbers give a row each; () for data.calibration_images
    config.table.sweeps = ()  # likewise, for methods with sweeps; () for the method's own number
    config.table.sweeps_at = ()  # (alphabet, sweeps) pairs: Beacon's number of sweeps in the columns of some alphabets
    config.table.published = ()  # (row's title, alphabet, main metric) of the paper, shown next to what is measured
    config.table.published_model = ""  # the model that these numbers are of; they are not shown with another

    config.rows = ConfigDict()
    config.rows.rtn = table_row("RTN", "rtn", "float")
    config.rows.rtn_lsq = table_row("RTN, least-squares scale", "rtn", "float", scale="lsq")
    config.rows.gptq = table_row("GPTQ", "gptq", "quantized")
    config.rows.gptq_order = table_row("GPTQ, act_order", "gptq", "quantized", act_order=True)
    config.rows.gptq_lsq = table_row("GPTQ, least-squares scale", "gptq", "quantized", scale="lsq")
    config.rows.gptq_lsq_order = table_row(
        "GPTQ, least-squares scale, act_order", "gptq", "quantized", scale="lsq", act_order=True
    )
    config.rows.gptq_bias = table_row("GPTQ, act_order, bias", "gptq", "quantized", act_order=True, bias=True)
    config.rows.gptq_ec = table_row("GPTQ, act_order, bias, w/ E.C.", "gptq", "both", act_order=True, bias=True)
    config.rows.gptq_lsq_ec = table_row(
        "GPTQ, least-squares scale, act_order, bias, w/ E.C.", "gptq", "both", scale="lsq", act_order=True, bias=True
    )
    config.rows.gptq_beacon = table_row("GPTQ* (Beacon's scale)", "gptq", "quantized", scale="beacon")
    config.rows.comq = table_row("COMQ", "comq", "float")
    config.rows.comq_lsq = table_row("COMQ, least-squares scale", "comq", "float", scale="lsq")
    config.rows.comq_lsq_ec = table_row("COMQ, least-squares scale, w/ E.C.", "comq", "both", scale="lsq")
    config.rows.beacon = table_row("Beacon w/o E.C.", "beacon", "float")
    config.rows.beacon_ec = table_row("Beacon w/ E.C.", "beacon", "both")
    config.rows.beacon_ec_centering = table_row("Beacon w/ E.C. + centering", "beacon", "both", centering="mean")
    config.rows.plus_fast = table_row("Beacon plus, fast, w/o E.C.", "beacon_plus", "float", effort="fast")
    config.rows.plus = table_row("Beacon plus w/o E.C.", "beacon_plus", "float")
    config.rows.plus_fast_ec = table_row("Beacon plus, fast, w/ E.C.", "beacon_plus", "both", effort="fast")
    config.rows.plus_ec = table_row("Beacon plus w/ E.C.", "beacon_plus", "both")
    config.rows.plus_thorough_ec = table_row("Beacon plus, thorough, w/ E.C.", "beacon_plus", "both", effort="thorough")
    config.rows.plus_rows_ec = table_row("Beacon plus + row scales w/ E.C.", "beacon_plus", "both", balance_rows=True)
    config.rows.plus_residual_ec = table_row(
        "Beacon plus + residual stream w/ E.C.", "beacon_plus", "both", residual=0.5
    )
    config.rows.plus_influence_ec = table_row(
        "Beacon plus + influence w/ E.C.", "beacon_plus", "both", row_weights="influence"
    )
    config.rows.plus_influence_residual_ec = table_row(
        "Beacon plus + influence, residual stream w/ E.C.",
        "beacon_plus",
        "both",
        row_weights="influence",
        residual=0.5,
    )

    # experiments/train.py
    config.train = ConfigDict()
    config.train.epochs = 120
    config.train.batch_size = 128
    config.train.optimizer = "adamw"  # or muon: for the blocks' kernels, with AdamW for the rest
    config.train.learning_rate = 1e-3  # AdamW's peak, reached after the warm-up, then a cosine to zero
    config.train.muon_learning_rate = 2e-3
    config.train.warmup_epochs = 10.0
    config.train.weight_decay = 0.05  # on the kernels (with muon, on those that it trains)
    config.train.label_smoothing = 0.1
    config.train.augmentation = "affine"  # or flip_crop, which uses only the shift
    config.train.shift = 0.5  # pixels, uniform in ±
    config.train.rotate = 10.0  # degrees, uniform in ±
    config.train.zoom = 0.1  # of the size, uniform in ±
    config.train.save_every = 500  # steps between two saves of the whole state
    config.train.float_checkpoint = ""  # where the trained parameters go
    return config


def full_table(config: ConfigDict) -> ConfigDict:
    """The config with the whole table: every method, every alphabet, before and after norm tuning."""
    config.norm_tuning.enabled = True
    config.table.alphabets = ("1.58", "2", "2.32", "2.58", "3", "4", "int2", "int3", "int4")
    config.table.rows = (
        "rtn",
        "gptq",
        "gptq_order",
        "gptq_lsq",
        "gptq_lsq_order",
        "gptq_beacon",
        "gptq_ec",
        "gptq_lsq_ec",
        "comq",
        "comq_lsq",
        "beacon",
        "beacon_ec",
        "beacon_ec_centering",
        "plus",
        "plus_ec",
        "plus_rows_ec",
    )
    return config
