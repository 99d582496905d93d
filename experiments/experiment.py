"""One cell of a table, from the config to its result."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from beacon_jax import QuantizedModel, QuantSpec, evaluate, quantize_model
from beacon_jax.data import Batches
from beacon_jax.devices import Placement, make_mesh
from beacon_jax.evaluate import Evaluation, logits_of
from beacon_jax.layers import Layer, find_layers
from beacon_jax.models.stages import stages_of
from beacon_jax.norm_tuning import TunedNorms, tune_norms
from beacon_jax.pipeline import plan_layers
from experiments import common
from experiments.grid import Cell, norm_tuning
from experiments.results import LayerStore


class Experiment:
    """The float model and the data of a config, and what is done with them for one cell of a table."""

    def __init__(self, config):
        self.config = config
        self.model, self.params = common.load_model(config)
        self.placement = Placement(make_mesh(config.mesh.data, config.mesh.model))
        forward = self.model, config.forward_dtype, self.placement
        self.predict, self.apply = common.predictor(*forward), common.apply_function(*forward)
        self.train, self.test = common.batches(config, "train"), common.test_batches(config)
        if self.train.unsplit and not config.data.shared_images:
            raise ValueError(
                f"{config.data.root} has no folders train and test, so the calibration would see the test images; "
                "data.shared_images=True accepts that"
            )
        self.skipped: dict[str, int] = {}  # unreadable images left out of the latest calibration, tuning and test
        # One set of images at a time: decoded images, and statistics of the float model that rows share.
        self._calibration: dict[tuple, Batches] = {}
        self._float_stats: dict[tuple, dict] = {}
        self._tuning_batches: dict[tuple, Batches] = {}

    @property
    def images(self) -> list[int]:
        """How many training and test images there are, by which results of other data are told apart."""
        return [self.train.size, self.test.size]

    @functools.cached_property
    def float_logits(self) -> list:
        """The float model's logits of the test images."""
        return logits_of(
            self.predict(self.params), tqdm(self.test, desc="float model", unit="batch", leave=False, disable=None)
        )

    def quantize(self, cell: Cell, store: LayerStore) -> QuantizedModel:
        """Quantizes as the cell says; layers go into the store as they are done, and those in it are not done again."""
        spec, finished = QuantSpec.from_dict(cell.quant), store.load()
        drawn_by = cell.calibration_images, cell.seed
        self._float_stats = {drawn_by: self._float_stats.get(drawn_by, {})}
        self._calibration = {drawn_by: self._calibration.get(drawn_by) or self.train.subset(*drawn_by, cache=True)}
        drawn = self._calibration[drawn_by]
        with tqdm(desc="layers", unit="layer", initial=len(finished), leave=False, disable=None) as bar:

            def on_layer(report, matrix, total):
                store.save(report, matrix)
                bar.total = total
                bar.update()

            shared = dict(
                finished=finished, float_stats=self._float_stats[drawn_by], on_layer=on_layer, mesh=self.placement.mesh
            )
            images = (batch["image"] for batch in drawn)
            done = quantize_model(self.model, self.params, images, spec, **shared)
        self.skipped["calibration"] = len(drawn.skipped)
        return done

    def tune(self, cell: Cell, params) -> TunedNorms:
        """Tunes the normalization layers as the cell says."""
        tuning, drawn_by = norm_tuning(cell.tuning), self._tuned_on(cell)
        self._tuning_batches = {drawn_by: self._tuning_batches.get(drawn_by) or self._draw(*drawn_by)}
        batches = self._tuning_batches[drawn_by]
        with tqdm(desc="norm tuning", unit="step", total=tuning.steps, leave=False, disable=None) as bar:

            def on_step(_step, loss):
                bar.update()
                bar.set_postfix(loss=f"{loss:.3g}")

            tuned = tune_norms(self.apply, params, self.predict(self.params), batches, tuning, on_step=on_step)
        self.skipped["tuning"] = len(batches.skipped)
        return tuned

    @staticmethod
    def _tuned_on(cell: Cell) -> tuple[int, int, int]:
        return cell.tuning["images"] or cell.calibration_images, cell.seed, cell.tuning["batch_size"]

    def _draw(self, count: int, seed: int, batch_size: int) -> Batches:
        return self.train.subset(count, seed, batch_size=batch_size, cache=True)

    def check(self, cells: list[Cell]) -> None:
        """Raises ValueError for what can be known to fail before any cell runs.

        That is more training images asked for than there are, fewer than a layer needs, a batch too small to hold
        images out of, or a pattern that matches no layer.
        """
        found = functools.cache(self._layers)
        for cell in (cell for cell in cells if cell.quant is not None):
            self.train.subset(cell.calibration_images, cell.seed)
            images = cell.calibration_images
            plan_layers(found(images), QuantSpec.from_dict(cell.quant), images)
            if cell.tuning is not None:
                count, seed, batch_size = self._tuned_on(cell)
                if min(count, batch_size) < 2:
                    raise ValueError(f"norm tuning needs batches of two images or more, got {count} by {batch_size}")
                self._draw(count, seed, batch_size)

    def _layers(self, images: int) -> dict[str, Layer]:
        shape = (images, self.model.image_size, self.model.image_size, self.model.channels)
        return find_layers(stages_of(self.model), self.params, {(shape, np.dtype(np.float32)): 1})

    def evaluate(self, params) -> Evaluation:
        """Accuracy on the test images, and the error of the logits against the float model's."""
        batches = tqdm(self.test, desc="evaluate", unit="batch", leave=False, disable=None)
        return evaluate(self.predict(params), batches, reference=self.float_logits)

    def results(self, group: list[Cell], store: LayerStore) -> Iterator[dict]:
        """Yields the result of every cell of a group that shares one quantized model."""
        quantized, about = self.params, {}
        if group[0].quant is not None:
            done = self.quantize(group[0], store)
            quantized, reports = done.params, done.reports
            about = dict(  # of the layers, which norm tuning leaves as they are
                layer_error=float(np.mean([report.output_error for report in reports])),
                seconds=sum(report.solve_seconds for report in reports),
                layers=[dataclasses.asdict(report) for report in reports],
            )
        for cell in group:
            result, params = dataclasses.asdict(cell), quantized
            if cell.tuning is None:
                result |= about
            else:
                tuned = self.tune(cell, quantized)
                params = tuned.params
                result["tuned"] = tuned.summary()
            evaluation = self.evaluate(params)
            self.skipped["test"] = len(self.test.skipped)
            result |= dataclasses.asdict(evaluation) | dict(top1_stderr=evaluation.top1_stderr)
            yield {**result, "images": self.images, "skipped": dict(self.skipped)}
