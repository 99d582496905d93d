"""Row scales in the scripts: with balance_rows a cell quantizes other parameters of the same function.

The float model that results are compared with stays the task's own.
"""

import re
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from beacon_jax import QuantSpec, balance_rows
from beacon_jax.graph.model import Model
from beacon_jax.pipeline import plan_layers
from experiments.task import Task

KEY = "balance_rows"


def wanted(quant: Mapping[str, Any] | None) -> bool:
    """Whether a cell's fields ask for row scales, those of the float model (None) never; ValueError on no bool."""
    asked = (quant or {}).get(KEY, False)
    if not isinstance(asked, bool):
        raise ValueError(f"{KEY} is True or False, got {asked!r}")
    return asked


class RowScales:
    """The parameters of a task with its rows of one size, computed once for the layers to be quantized."""

    def __init__(self, task: Task):
        self._task = task
        self._done: dict[tuple[str, ...], Any] = {}

    def params(self, model: Model, spec: QuantSpec, batch: Any) -> Any:
        """The parameters to quantize; what was folded and what was not is printed, once.

        Args:
          model: the task's, traced.
          spec: what is to be quantized: only these layers' rows count.
          batch: a batch, of which only structure, shapes and dtypes count.

        Raises:
          ValueError: as `plan_layers` and `balance_rows`.
        """
        names = tuple(plan_layers(model, spec))
        if names not in self._done:
            pattern = "|".join(map(re.escape, names))
            balanced = balance_rows(self._task.apply, self._task.params, batch, pattern)
            tqdm.write(f"row scales: {balanced}")
            self._done = {names: balanced.params}
        return self._done[names]
