"""What a result was made of beside its settings: the data really drawn, the methods' versions, the arithmetic.

All of it is readable, so that what differs between two results of the same settings can be said.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from beacon_jax import METHODS, Execution
from beacon_jax.batches import content_digest
from beacon_jax.float_stats import Fingerprint
from beacon_jax.graph.program import leaf_names
from experiments import hosts
from experiments.grid import Cell
from experiments.methods import rounding_only
from experiments.processor import processor, xla_flags
from experiments.task import Task

REUSE = ("same", "any")
Facts = dict[str, str]


class Provenance:
    """The facts of a task's results; data is read once for each draw.

    Attributes:
      task: the task.
      execution: in which it is run.
      drawn: (count, seed) → its calibration batches.
    """

    def __init__(self, task: Task, execution: Execution, drawn: Callable[[int, int], Iterable[Any]]):
        self.task, self.execution, self.drawn = task, execution, drawn
        self._digest_of_draw = functools.cache(lambda count, seed: _digest(lambda: drawn(count, seed)))

    def of(
        self, quant: Mapping[str, Any] | None, count: int, seed: int, tuning: Mapping[str, Any] | None = None
    ) -> Facts:
        """The facts of a cell's fields (see grid.Cell); those of the tests begin with "test"."""
        facts = dict(self._common)
        if quant is not None:
            facts["calibration_data"], facts["calibration_batch"] = self._digest_of_draw(count, seed)
            facts |= _methods(quant, self.execution.forward_dtype)
        if tuning is not None:
            facts["tuning_data"], _ = self._digest_of_draw(tuning["images"] or count, seed)
        return facts

    def add_to(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells with their facts. ValueError for data that cannot be read."""
        return [
            dataclasses.replace(cell, made_with=self.of(cell.quant, cell.calibration_images, cell.seed, cell.tuning))
            for cell in cells
        ]

    @functools.cached_property
    def _common(self) -> Facts:
        parameters = Fingerprint()
        parameters.add([*leaf_names(self.task.params), *jax.tree.leaves(self.task.params)])
        test, batch = _digest(lambda: self.task.test)
        return machine(self.execution) | {
            "parameters": parameters.digest()[:16],
            "test_data": test,
            "test_batch": batch,
        }


def machine(execution: Execution) -> Facts:
    """What decides the rounding: devices, mesh, the version of jax, XLA's flags, and on CPUs what they can do."""
    mesh = "none" if execution.mesh is None else " × ".join(map(str, execution.mesh.shape.values()))
    facts = {"devices": f"{jax.device_count()} {jax.devices()[0].device_kind}", "mesh": mesh, "jax": jax.__version__}
    if jax.default_backend() == "cpu":
        facts["processor"] = hosts.from_first(processor())
    flags = xla_flags()
    return facts | ({"xla_flags": flags} if flags else {})


def _digest(batches: Callable[[], Iterable[Any]]) -> tuple[str, str]:
    """(digest, batch size), as the first process reads them."""
    digest, size = hosts.from_first(content_digest(batches()) if hosts.first() else None)
    return digest[:16], str(size)


def _methods(quant: Mapping[str, Any], forward_dtype: str) -> Facts:
    """The versions of the methods in the fields of a QuantSpec, and what decides their rounding."""
    rules = [rule for rule in quant.get("rules", ()) if rule.get("method")]
    names = list(dict.fromkeys([quant["method"], *(rule["method"] for rule in rules)]))
    facts = {"methods": ", ".join(f"{name} {METHODS[name].version}" for name in names)}
    if forward_dtype == "float64":  # in which the order of sums changes no codes
        return facts
    own = METHODS[quant["method"]]
    given = {key: value for key, value in quant["options"].items() if value is not None}
    options = own.check(**{key: value for key, value in given.items() if key in own.rounding_only})
    return facts | {name: str(getattr(options, name)) for name in sorted(own.rounding_only & rounding_only())}


def difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """What is other in `theirs`, in words."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} {theirs.get(name, 'none')} instead of {ours.get(name, 'none')}" for name in names)


def taken(
    wanted: Sequence[tuple[str, Mapping[str, str]]],
    found: Sequence[tuple[str, Mapping[str, str], Any]],
    reuse: str,
    what: str,
    *,
    tell: bool = True,
) -> list[Any]:
    """For each (settings, facts) that is wanted what was found for it, None where there is nothing.

    Of the same settings and other facts nothing is taken with reuse "same", and the latest with "any"; either is
    printed, with what differs, unless `tell` is False.

    Args:
      wanted: the settings' digest and the facts of each.
      found: (settings, facts, item), the latest last.
      reuse: one of REUSE.
      what: what the items are and where they lie, for the sentence.
    """
    check_reuse(reuse)
    chosen, others = [], {}
    for settings, facts in wanted:
        alike = [(theirs, item) for known, theirs, item in found if known == settings]
        same = [item for theirs, item in alike if dict(theirs) == dict(facts)]
        chosen.append(same[-1] if same else None)
        if alike and not same:
            said = difference(alike[-1][0], facts)
            others[said] = others.get(said, 0) + 1
            chosen[-1] = alike[-1][1] if reuse == "any" else None
    for said, count in others.items() if tell else ():
        then = "taken, by --config.reuse=any" if reuse == "any" else "not taken (--config.reuse=any takes them)"
        print(f"{count} of the {what} have the same settings, but were made with {said}: {then}")
    return chosen


def check_reuse(reuse: str) -> None:
    """Raises ValueError on what is not in REUSE."""
    if reuse not in REUSE:
        raise ValueError(f"unknown reuse {reuse!r}; expected one of {', '.join(REUSE)}")
