"""One cell of a table, from the config to its result."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from beacon_jax import QuantizedModel, QuantSpec, evaluate, quantize_model
from beacon_jax.evaluate import Evaluation, logits_of
from beacon_jax.norm_tuning import NormTuning, TunedNorms, tune_norms
from experiments import common
from experiments.grid import Cell
from experiments.results import LayerStore


class Experiment:
    """The float model and the data of a config, and what is done with them for one cell of a table."""

    def __init__(self, config):
        self.config = config
        self.model, self.params = common.load_model(config)
        self.predict = common.predictor(self.model)
        self.train, self.test = common.batches(config, "train"), common.test_batches(config)
        self._float_stats: dict[tuple[int, int], dict] = {}
        with open(config.model.checkpoint, "rb") as file:
            self.checkpoint = hashlib.file_digest(file, "sha256").hexdigest()

    @functools.cached_property
    def float_logits(self) -> list:
        """The float model's logits of the test images."""
        return logits_of(
            self.predict(self.params), tqdm(self.test, desc="float model", unit="batch", leave=False, disable=None)
        )

    def quantize(self, cell: Cell, store: LayerStore) -> QuantizedModel:
        """Quantizes as the cell says; layers go into the store as they are done, and those in it are not done again."""
        spec, finished = QuantSpec.from_dict(cell.quant), store.load()
        # Rows calibrated on the float model share its statistics; those of other images are dropped.
        drawn_by = cell.calibration_images, cell.seed
        self._float_stats = {drawn_by: self._float_stats.get(drawn_by, {})}
        images = (batch["image"] for batch in self.train.subset(cell.calibration_images, cell.seed))
        with tqdm(desc="layers", unit="layer", initial=len(finished), leave=False, disable=None) as bar:

            def on_layer(report, matrix, total):
                store.save(report, matrix)
                bar.total = total
                bar.update()

            shared = dict(finished=finished, float_stats=self._float_stats[drawn_by], on_layer=on_layer)
            return quantize_model(self.model, self.params, images, spec, **shared)

    def tune(self, cell: Cell, params) -> TunedNorms:
        """Tunes the normalization layers as the cell says."""
        fields = {key: value for key, value in cell.tuning.items() if key not in ("images", "batch_size")}
        tuning, batches = NormTuning(**fields), self._tuning_batches(cell)
        with tqdm(desc="norm tuning", unit="step", total=tuning.steps, leave=False, disable=None) as bar:

            def on_step(_step, loss):
                bar.update()
                bar.set_postfix(loss=f"{loss:.3g}")

            apply, reference = common.apply_function(self.model), self.predict(self.params)
            return tune_norms(apply, params, reference, batches, tuning, on_step=on_step)

    def _tuning_batches(self, cell: Cell):
        count = cell.tuning["images"] or cell.calibration_images
        return self.train.subset(count, cell.seed, batch_size=cell.tuning["batch_size"], cache=True)

    def check(self, cells: list[Cell]) -> None:
        """Raises ValueError where a cell asks for more training images than there are, before any of them runs."""
        for cell in (cell for cell in cells if cell.quant is not None):
            self.train.subset(cell.calibration_images, cell.seed)
            if cell.tuning is not None:
                self._tuning_batches(cell)

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
                seconds=sum(report.gram_seconds + report.solve_seconds for report in reports),
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
            result |= dataclasses.asdict(evaluation)
            yield {**result, "top1_stderr": evaluation.top1_stderr, "unreadable": len(self.test.skipped)}
