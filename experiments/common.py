"""What the scripts share: the model, data and functions that a config names."""

import functools
import sys

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from beacon_jax import load_params
from beacon_jax.data import Batches
from beacon_jax.models.vit import NORMALIZATION, ViT, create_vit

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment configuration, such as configs/digits.py.")


def get_config() -> ConfigDict:
    """The configuration that --config names, with what the command line changed in it."""
    if _CONFIG.value is None:
        raise ValueError("no configuration given; use --config=configs/digits.py or another")
    return _CONFIG.value


def run(main) -> None:
    """Runs main(argv). A mistake in its input ends it with one sentence; --verbosity=1 gives the traceback as well."""

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError, TypeError) as error:  # what ml_collections raises for a key of --config
            sys.exit(f"error: --config has no such key, or one of another type: {error}")

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX reports every kind of device that it does not find
        try:
            if argv[1:]:
                raise ValueError(f"unexpected arguments {' '.join(argv[1:])}; a setting is given as --config.key=value")
            main(argv)
        except (ValueError, OSError, ImportError) as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=parse)


def load_model(config: ConfigDict) -> tuple[ViT, dict]:
    """The float model and its parameters."""
    model = create_vit(config.model.name)
    params = load_params(config.model.checkpoint)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, model.param_shapes()):
        raise ValueError(f"{config.model.checkpoint} does not hold the parameters of {config.model.name}")
    return model, params


@functools.cache
def apply_function(model: ViT):
    """The jitted function (parameters, images) → logits: the same one whenever asked for, so that it compiles once."""
    return jax.jit(lambda params, images: model.apply({"params": params}, images))


def predictor(model: ViT):
    """A function of parameters that returns a function from images to logits."""
    apply = apply_function(model)
    return lambda params: lambda images: apply(params, images)


def batches(config: ConfigDict, split: str, **changed) -> Batches:
    """The images of a split, preprocessed as config.data says and normalized as the model's weights expect."""
    d = config.data
    options = dict(
        batch_size=d.batch_size,
        root=d.root,
        preset=d.preset,
        normalization=NORMALIZATION[config.model.name],
        on_unreadable=d.on_unreadable,
        workers=d.workers or None,
    )
    return Batches(d.name, split, **(options | changed))


def test_batches(config: ConfigDict) -> Batches:
    """The labelled test images."""
    return batches(config, "test", count=config.data.test_images or None, cache=config.data.cache)
