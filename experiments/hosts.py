"""Runs of several processes: how they find each other, and what only the first of them does."""

import pickle
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes that a TPU pod, SLURM or MPI started.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, where nothing else knows it.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "With --coordinator: the number of processes.")
_PROCESS = flags.DEFINE_integer("process", -1, "With --coordinator: which of them this is, from 0.")
_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes.")


def join() -> None:
    """Joins the other processes where flags say that there are any; before anything else uses JAX.

    Raises:
      ValueError: --coordinator without --processes and --process, or these without it.
    """
    given = _COORDINATOR.value != "", _PROCESSES.value > 0, _PROCESS.value >= 0
    if any(given):
        if not all(given):
            raise ValueError("--coordinator, --processes and --process go together")
        if _PROCESS.value >= _PROCESSES.value:
            raise ValueError(f"--process={_PROCESS.value} is not one of {_PROCESSES.value} processes, counted from 0")
        jax.distributed.initialize(
            _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, initialization_timeout=_TIMEOUT.value
        )
    elif _DISTRIBUTED.value:
        jax.distributed.initialize(initialization_timeout=_TIMEOUT.value)


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there are no other processes."""
    return jax.process_count() == 1


def from_first(value: Any) -> Any:
    """The first process's value, in every process; what the others pass is not looked at."""
    if alone():
        return value
    data = np.frombuffer(pickle.dumps(value) if first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(data.size)))
    data = multihost_utils.broadcast_one_to_all(data if first() else np.zeros(size, np.uint8))
    return pickle.loads(np.asarray(data).tobytes())
