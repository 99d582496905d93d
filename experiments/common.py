"""What the scripts share: the model, data and functions that a config names."""

import contextlib
import functools
import hashlib
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from beacon_jax import load_params
from beacon_jax.checkpoint import saved_model
from beacon_jax.data import Batches
from beacon_jax.devices import Placement
from beacon_jax.models import cnn, vit
from beacon_jax.models.stages import run_in
from beacon_jax.models.vit import ViT, create_vit
from experiments import hosts

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment configuration, such as configs/digits.py.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/beacon_jax", "Folder that keeps compiled code for the next run; empty for none."
)


def get_config() -> ConfigDict:
    """The configuration that --config names, with what the command line changed in it."""
    if _CONFIG.value is None:
        raise ValueError("no configuration given; use --config=configs/digits.py or another")
    if _CONFIG.value.forward_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return _CONFIG.value


def run(main) -> None:
    """Runs main(argv). A mistake in its input ends it with one sentence; --verbosity=1 gives the traceback as well.

    SIGTERM, the notice that a pre-empted machine gets, ends it in order, so that temporary files are removed.
    """

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
            _keep_compiled_code()
            hosts.join()
            with contextlib.ExitStack() as stack:
                if not hosts.first():
                    stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
                main(argv)
        except (ValueError, OSError, ImportError) as error:
            if logging.level_debug():
                raise
            sys.exit(f"error: {error}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or logging.level_debug():
                raise
            sys.exit(f"error: out of memory; lower data.batch_size or set options.channel_chunk ({str(error)[:200]})")
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from here")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; the same command goes on from here"))
    app.run(guarded, flags_parser=parse)


def load_model(config: ConfigDict) -> tuple[ViT, dict]:
    """The float model and its parameters."""
    model = create_vit(config.model.name)
    params = load_params(config.model.checkpoint)
    recorded = saved_model(config.model.checkpoint)
    if recorded not in (None, config.model.name):
        # Models of one shape can differ in what they expect of the pixels, as DeiT and ViT do.
        raise ValueError(f"{config.model.checkpoint} holds the parameters of {recorded}, not of {config.model.name}")
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, model.param_shapes()):
        raise ValueError(f"{config.model.checkpoint} does not hold the parameters of {config.model.name}")
    return model, params


def checkpoint_digest(config: ConfigDict) -> str:
    """Of the file with the float parameters; FileNotFoundError where there is none."""
    if not Path(config.model.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint at {config.model.checkpoint!r}")
    with open(config.model.checkpoint, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep_compiled_code() -> None:
    if _CACHE.value and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@functools.cache
def apply_function(model: ViT, dtype: str = "float32", placement: Placement = Placement()):  # noqa: B008 (immutable)
    """The jitted function (parameters, images) → logits, float32 and whole on every device.

    It is the same function whenever asked for, so that it compiles once.
    """

    def apply(params, images):
        logits = run_in(dtype, lambda params, x: model.apply({"params": params}, x), params, images)
        logits = logits.astype(jnp.float32)
        return placement.constrained(logits, placement.replicated)

    return jax.jit(apply)


def predictor(model: ViT, dtype: str = "float32", placement: Placement = Placement()):  # noqa: B008
    """A function of parameters that returns a function from images to logits."""
    apply = apply_function(model, dtype, placement)

    def with_params(params):
        placed = placement.everywhere(params)
        return lambda images: apply(placed, placement.rows(images))

    return with_params


def batches(config: ConfigDict, split: str, **changed) -> Batches:
    """The images of a split, preprocessed as config.data says and normalized as the model's weights expect."""
    d = config.data
    options = dict(
        batch_size=d.batch_size,
        root=d.root,
        preset=d.preset,
        normalization=(vit.NORMALIZATION | cnn.NORMALIZATION)[config.model.name],
        on_unreadable=d.on_unreadable,
        workers=d.workers or None,
    )
    return Batches(d.name, split, **(options | changed))


def test_batches(config: ConfigDict) -> Batches:
    """The labelled test images; a part of them is drawn at random, because an image folder is sorted by class."""
    d = config.data
    return batches(config, "test", count=d.test_images or None, seed=0 if d.test_images else None, cache=d.cache)
