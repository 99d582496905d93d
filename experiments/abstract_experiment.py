"""What an experiment runs on its devices, cell by cell, from the shapes of its model and data alone.

The order of the calls is that of experiment.py.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from beacon_jax import METHODS, Execution, FloatStats
from beacon_jax.abstract_run import AbstractPlacement, quantize_shapes
from beacon_jax.evaluate import measure_batch
from beacon_jax.metrics.base import pick
from beacon_jax.norm_tuning import Training, held_out_loss, training_step
from beacon_jax.tuning_data import trained_on
from experiments import common, mixed
from experiments.grid import Cell, norm_tuning
from experiments.programs import Programs
from experiments.task import Task


class AbstractExperiment:
    """A task on devices that need not be there."""

    def __init__(self, task: Task, execution: Execution, placement: AbstractPlacement, programs: Programs):
        """The task's parameters and batches are arrays or shapes; the placement's recorder is `programs`."""
        self.task, self.placement, self.programs = task, placement, programs
        self.execution = dataclasses.replace(execution, mesh=placement.mesh, activations="memory", folder=None)
        self.apply = common.forward_function(task.apply, self.execution)
        self.left_out: dict[str, str] = {}  # what is not compiled ahead, and why
        self._params = placement.everywhere(task.params)
        self._float_stats = functools.lru_cache(maxsize=1)(lambda key: FloatStats())
        self._drawn = functools.lru_cache(maxsize=2)(lambda count, seed: list(task.calibration(count, seed)))
        self._reference_made = False

    def run(self, groups: Iterable[Sequence[Cell]]) -> None:
        """All that `Experiment.results` does for groups of cells that share one quantized model."""
        for group in groups:
            if group[0].quant is not None and not self.quantize(group[0]):
                continue
            for cell in group:
                if cell.tuning is not None:
                    self.tune(cell)
                self.evaluate()

    def quantize(self, cell: Cell) -> bool:
        """Quantizes the model as a cell says; False where that depends on numbers, as `left_out` then says."""
        if mixed.is_mixed(cell.quant):
            self.left_out[cell.row] = "its alphabets are chosen by numbers"
            return False
        if cell.quant["row_weights"] != "uniform":
            self.left_out[cell.row] = "its rows count by numbers"
            return False
        spec = mixed.spec_of(cell.quant)
        logging.info("%s, %s bit", cell.row, cell.alphabet)
        options = METHODS[spec.method].check(**spec.options)
        self.programs.most = max(getattr(options, "sweeps", 1), 1)
        quantize_shapes(
            self.task.apply,
            self.task.params,
            self._drawn(cell.calibration_images, cell.seed),
            spec,
            self.placement,
            execution=self.execution,
            weights=self.task.weights,
            float_stats=self._float_stats(cell.float_stats_key),
        )
        return True

    def evaluate(self) -> None:
        """The task's metrics on the test batches, and on the first call what they need of the float model."""
        first, count = None, 0
        for batch in self.task.test:
            first, count = batch if first is None else first, count + 1
        with self.programs.times(count):
            outputs = self._outputs(first)
            if not self._reference_made:
                self._reference_made = True
                if any(metric.compares for metric in self.task.metrics.values()):
                    self._outputs(first)
            kept = {
                name: jax.eval_shape(metric.keep, outputs)
                for name, metric in self.task.metrics.items()
                if metric.compares
            }
            measure = functools.partial(measure_batch, tuple(self.task.metrics.items()))
            self.placement.call(measure, outputs, first, kept or None)

    def tune(self, cell: Cell) -> None:
        """Norm tuning as a cell says, with as many steps and measurements as it makes at most."""
        tuning, count = norm_tuning(cell.tuning), cell.tuning["images"] or cell.calibration_images
        training = Training.of(self.apply, self._params, tuning, self.task.norms)
        parts, rest = training.split(self._params)
        state = self.placement.everywhere(jax.eval_shape(training.optimizer.init, parts))
        step = functools.partial(training_step, static=training)
        held_out = functools.partial(held_out_loss, static=training)
        sizes = _batch_sizes(count, cell.tuning["batch_size"])
        for size, batches in sizes.items():
            example, cut = self._tuning_example(cell, count, size, batches), trained_on(size, tuning.held_out)
            with self.programs.times(math.ceil(tuning.steps * batches / sum(sizes.values()))):
                self.placement.call(step, parts, state, rest, _first(example, cut))
            with self.programs.times(batches * (1 + math.ceil(tuning.steps / tuning.check_every))):
                self.placement.call(held_out, parts, rest, _first(example, size - cut))

    def _tuning_example(self, cell: Cell, count: int, size: int, batches: int):
        """(batch, target, weights) of so many examples; the float model gives the targets of all of these batches."""
        drawn = self._drawn(count, cell.seed)[0]
        batch, key, label = _first(drawn, size), cell.tuning["output"], cell.tuning["label"]
        weights = None if self.task.weights is None else np.shape(self.task.weights(drawn))[1:]
        weights = None if weights is None else jax.ShapeDtypeStruct((size, *weights), jnp.float32)
        if cell.tuning["loss"] == "ce":
            return batch, pick(batch, label, "batch"), weights
        with self.programs.times(batches):
            outputs = pick(self._outputs(batch), key, "outputs")
        return batch, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), outputs), weights

    def _outputs(self, batch):
        return self.placement.call(self.apply, self._params, jax.tree.map(self.placement.rows, batch))


def _batch_sizes(count: int, size: int) -> dict[int, int]:
    """{examples of a batch: how many such batches} of so many examples; a single example is left out."""
    sizes = {size: count // size, count % size: 1}
    return {examples: batches for examples, batches in sizes.items() if examples > 1 and batches}


def _first(tree: Any, count: int) -> Any:
    """The shapes of so many examples."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]) if np.ndim(a) else (), a.dtype), tree)
