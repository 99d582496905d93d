"""What a table is made of: a model, its calibration and test data, and what to measure. One Task for each model.

A Task is made by a function of the config, which --config.task=package.module:function names: one's own, from anywhere
that Python imports from (the current folder, too), or one of experiments/tasks.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from beacon_jax.batches import is_read_once
from beacon_jax.evaluate import Metric
from beacon_jax.float_stats import Fingerprint
from beacon_jax.graph.program import leaf_names


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and its data; batches are pytrees of NumPy arrays whose first axis counts the examples.

    Attributes:
      apply: (params, batch) → outputs, pytrees; any JAX function.
      params: the float parameters, a pytree of arrays.
      calibration: (count of examples, seed) → batches to calibrate on, always the same for the same arguments, to be
        iterated as often as wanted; ValueError where there are not so many. Norm tuning takes its batches from it, too.
      test: batches to evaluate on, likewise.
      metrics: {name: metric}, in the order of the tables; the first is the main number.
      weights: batch → (B,) or (B, T, …), the weight of each example or position in calibration and norm tuning, 0 for
        padding; None counts all.
      norms: regular expression over parameter paths of what norm tuning trains; None: found by structure.
      identity: a digest of what model, weights and data are (see `identity_of`), so that results of another are not
        taken for this one's; empty for one of the parameters and the first test batch.

    Batches may have `skipped`, a list of the examples left out in their latest pass, and test a `summary()` of it.

    Raises:
      ValueError: a field of another kind, or no metrics.
    """

    apply: Callable[[Any, Any], Any]
    params: Any
    calibration: Callable[[int, int], Iterable[Any]]
    test: Iterable[Any]
    metrics: Mapping[str, Metric]
    weights: Callable[[Any], Any] | None = None
    norms: str | None = None
    identity: str = ""

    def __post_init__(self):
        for name in ("apply", "calibration", *(["weights"] if self.weights is not None else [])):
            if not callable(getattr(self, name)):
                raise ValueError(f"{name} of a Task is a function, got {getattr(self, name)!r}")
        if not isinstance(self.metrics, Mapping) or not self.metrics:
            raise ValueError(f"metrics of a Task is a dict of at least one metric by name, got {self.metrics!r}")
        if not isinstance(self.test, Iterable) or is_read_once(self.test):
            raise ValueError(f"test of a Task is batches to be read several times, got {type(self.test).__name__}")

    def fingerprint(self) -> str:
        """The identity, or where it is empty a digest of the parameters and the first test batch."""
        if self.identity:
            return self.identity
        digest = Fingerprint()
        for tree in (self.params, next(iter(self.test))):
            digest.add([*leaf_names(tree), *jax.tree.leaves(tree)])
        return digest.digest()[:16]

    @property
    def main(self) -> str:
        """The name of the first metric."""
        return next(iter(self.metrics))


def identity_of(**facts: Any) -> str:
    """A digest of what can be written as JSON: names, numbers, digests of files."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def make_task(config) -> Task:
    """The Task that config.task names.

    Raises:
      ValueError: no such function, or one that does not return a Task; what the function itself raises.
    """
    module_name, colon, function_name = config.task.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"config.task names a function as package.module:function, got {config.task!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise ValueError(f"config.task={config.task!r}: there is no module {error.name!r} to import") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"config.task={config.task!r}: {module_name} has no function {function_name!r}")
    task = function(config)
    if not isinstance(task, Task):
        raise ValueError(f"config.task={config.task!r} must return an experiments.task.Task, got {type(task).__name__}")
    return task
