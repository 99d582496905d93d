"""Results in TensorBoard or Weights & Biases, for those that config.log names: a set of numbers for each result.

Numbers of one row are a curve over the bits of its alphabets, since that is what a table compares: in TensorBoard a run
for each row, whose steps are hundredths of a bit, in Weights & Biases a chart for each number, over `bits`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from beacon_jax.places import local_only
from experiments import hosts
from experiments.grid import check_once
from experiments.reports.series import bits_of
from experiments.results import Result

FOLDER = "tensorboard"
Log = Callable[[Result], None]


def numbers(result: Result) -> dict[str, float]:
    """What is logged of a result: its metrics, and of a quantized model the layers' error, bits and seconds."""
    found = {name: measured.value for name, measured in result.metrics.items()}
    if result.layers:
        found |= {"layer_error": result.layer_error, "seconds": result.seconds}
        found |= {"bits_per_parameter": result.coverage["bits_per_parameter"]} if result.coverage else {}
    return found


def _bits(result: Result) -> float:
    """Of its column; 0 for the float model."""
    return bits_of(result.cell.alphabet) if result.cell.alphabet else 0.0


def _name(result: Result) -> str:
    """The run of a result: its row, and its seed where it has one that others may differ in."""
    return f"{result.cell.row}, seed {result.cell.seed}" if result.cell.quant else result.cell.row


@contextlib.contextmanager
def _tensorboard(config: Any) -> Iterator[Log]:
    folder = local_only(config.out, "--config.out, with --config.log='(\"tensorboard\",)',") / FOLDER
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("config.log has tensorboard, which needs: pip install beacon-jax[tensorboard]") from error

    def log(result: Result) -> None:
        # A result is rare, and a writer for each leaves nothing unwritten when the run is killed.
        with SummaryWriter(
            str(folder / _name(result).replace("/", "∕")), filename_suffix=f".{result.cell.key}"
        ) as writer:
            for name, value in numbers(result).items():
                writer.add_scalar(name, value, round(100 * _bits(result)))

    yield log


@contextlib.contextmanager
def _wandb(config: Any) -> Iterator[Log]:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("config.log has wandb, which needs: pip install beacon-jax[wandb]") from error
    # Project, mode and folder are told by its own variables (WANDB_PROJECT, WANDB_MODE, WANDB_DIR).
    with wandb.init(config=config.to_dict(), group=str(config.out)) as run:
        run.define_metric("bits")
        run.define_metric("*", step_metric="bits")

        def log(result: Result) -> None:
            found = {f"{name}/{_name(result)}": value for name, value in numbers(result).items()}
            run.log({"bits": _bits(result), **found})

        yield log


LOGS = {"tensorboard": _tensorboard, "wandb": _wandb}


def check_logs(names: Sequence[str]) -> None:
    """Raises ValueError for names that are not in LOGS, or there twice."""
    check_once("config.log", names)
    for name in names:
        if name not in LOGS:
            raise ValueError(f"unknown log {name!r} in config.log; expected some of {', '.join(LOGS)}")


@contextlib.contextmanager
def open_logs(config: Any) -> Iterator[Log]:
    """A function that logs a result wherever config.log says; only in the first process.

    Raises:
      ValueError: as `check_logs`; TensorBoard for a folder that is no local one.
      ImportError: a package that is not installed.
    """
    names = tuple(config.log)
    check_logs(names)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(LOGS[name](config)) for name in names if hosts.first()]

        def log(result: Result) -> None:
            for own in opened:
                own(result)

        yield log
