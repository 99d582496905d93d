"""What the scripts share: configuration, errors, and a model's forward pass."""

import contextlib
import functools
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from beacon_jax import Execution, make_mesh, run_packed
from beacon_jax.devices import Placement
from beacon_jax.execution import run_in
from configs import base
from experiments import config_help, hosts

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment configuration, such as configs/digits.py.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/beacon_jax", "Folder that keeps compiled code for the next run; empty for none."
)


# "~" where a flag's value begins with it, which shells leave as it is.
_HOME = re.compile(r"^(--?[\w.]+=)~(?=/|$)")
WRONG_INPUT, FAILURE = 2, 1  # exit codes

# Keys of a configuration that are paths.
_PATHS = ("out", "model.checkpoint", "data.root", "train.float_checkpoint")


def get_config() -> ConfigDict:
    """The configuration that --config names, with what the command line changed in it, and "~" in paths expanded."""
    if _CONFIG.value is None:
        raise ValueError("no configuration given; use --config=configs/digits.py or another")
    missing = [key for key in base.get_config() if key not in _CONFIG.value]
    if missing:
        raise ValueError(f"the configuration has no {', '.join(missing)}; start from configs/base.py's get_config()")
    paths = {key: config_help.at(_CONFIG.value, key) for key in _PATHS}
    _CONFIG.value.update_from_flattened_dict(
        {key: os.path.expanduser(path) for key, path in paths.items() if path.startswith("~")}
    )
    if _CONFIG.value.execution.forward_dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return _CONFIG.value


class Failed(Exception):
    """A run that did what it could with good input, and did not succeed in all of it."""


def _exit_code(error: BaseException) -> int:
    """2 for what is wrong with the input, 1 for what failed."""
    wrong = (ValueError, ImportError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    return WRONG_INPUT if isinstance(error, wrong) else FAILURE


def _end(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def run(main, *, configured: bool = True, arguments: bool = False) -> None:
    """Runs main(argv), whose flags other `arguments` may follow or not.

    An error that a user can meet ends it with one sentence, and a traceback with --verbosity=1.
    Exit codes: 2 for wrong input, 1 for a failure (a full disk, memory, a run that was stopped, an error of ours).
    SIGTERM, the notice that a pre-empted machine gets, ends it in order, so that temporary files are removed. --help
    shows the keys of --config, too, where the script reads one (`configured`).
    """

    def parse(argv):
        try:
            return flags.FLAGS([_HOME.sub(r"\1" + os.path.expanduser("~"), word) for word in argv])
        except flags.Error as error:
            _end(str(error), WRONG_INPUT)
        except SystemExit:  # the flags were shown, in a way that counts as a failure
            if not config_help.asked(argv):
                raise
            if configured:
                print(f"\n{config_help.config_help()}")
            sys.exit(0)
        except (AttributeError, KeyError, TypeError) as error:  # what ml_collections raises for a key of --config
            said = config_help.unknown_key(argv) or f"--config has no such key, or one of another type: {error}"
            _end(said, WRONG_INPUT)

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX reports every kind of device that it does not find
        try:
            if argv[1:] and not arguments:
                raise ValueError(f"unexpected arguments {' '.join(argv[1:])}; a setting is given as --config.key=value")
            _keep_compiled_code()
            hosts.join()
            with contextlib.ExitStack() as stack:
                if not hosts.first():
                    stack.enter_context(
                        contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
                    )
                main(argv)
        except (ValueError, OSError, ImportError, Failed) as error:
            if logging.level_debug():
                raise
            _end(str(error), _exit_code(error))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or logging.level_debug():
                raise
            _end(f"out of memory; lower data.batch_size or set options.channel_chunk ({str(error)[:200]})", FAILURE)
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from here")

    sys.stdout.reconfigure(errors="replace")  # a character that the terminal does not know must not end a run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; the same command goes on from here"))
    app.run(guarded, flags_parser=parse)


def _keep_compiled_code() -> None:
    if _CACHE.value and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def make_execution(
    config: ConfigDict, folder: Path | None = None, devices: Sequence[jax.Device] | None = None
) -> Execution:
    """How config.execution says that models are run: storage, dtype, devices. ValueError on what is not known.

    Calibration data waits in the folder, or in a temporary one where there is none. The devices are all that there are,
    unless given.
    """
    fields = config.execution.to_dict()
    return Execution(**fields | {"mesh": make_mesh(**fields["mesh"], devices=devices)}, folder=folder)


def forward_function(apply, execution: Execution):
    """The jitted function (params, batch) → outputs, floating point as float32, and whole on every device.

    Parameters may be packed, as `load_packed` gives them.
    """
    placement, run = Placement(execution.mesh), functools.partial(run_in, execution.forward_dtype, apply)

    def forward(params, batch):
        outputs = run_packed(run)(params, batch)
        outputs = jax.tree.map(lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, outputs)
        return placement.constrained(outputs, placement.replicated)

    return jax.jit(forward)
