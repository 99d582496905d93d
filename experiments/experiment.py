"""One cell of a table, from the Task to its result."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from beacon_jax import FloatStats, QuantizedModel, QuantSpec, choose_alphabets, evaluate, quantize
from beacon_jax.batches import Rebatched, example_count, is_read_once
from beacon_jax.bit_budget import BitBudget
from beacon_jax.devices import Placement
from beacon_jax.evaluate import Measured, reference_of
from beacon_jax.graph.model import Model
from beacon_jax.norm_tuning import TunedNorms, tune_norms
from beacon_jax.norms import norm_paths
from beacon_jax.pipeline import plan_layers
from experiments import common, mixed, row_scales
from experiments.code_counts import code_counts
from experiments.grid import Cell, norm_tuning
from experiments.provenance import Provenance
from experiments.results import LayerStore, Result
from experiments.run_folder import RunFolder
from experiments.task import Task


class Experiment:
    """A task's float model and data, and what is done with them for one cell of a table."""

    def __init__(self, config, task: Task, folder: RunFolder | None = None):
        """Calibration data waits in the run's folder, or in a temporary one where there is none."""
        self.task, self.execution = task, common.make_execution(config, folder and folder.activations)
        self.apply = common.forward_function(task.apply, self.execution)
        self.skipped: dict[str, int] = {}  # examples left out of the latest calibration, tuning and test
        self.bit_widths = ""  # the table of those chosen for the latest cell with a budget
        self._row_scales = row_scales.RowScales(task)
        self._model: tuple[Model, int] | None = None  # as `traced` gives it
        # Examples of the latest calibration and the latest tuning, decoded once; statistics that rows share.
        self.drawn = functools.lru_cache(maxsize=2)(self._draw)
        self._float_stats = functools.lru_cache(maxsize=1)(lambda key: FloatStats())
        self.provenance = Provenance(task, self.execution, self.drawn)

    def predictor(self, params: Any):
        """The function from a batch to the outputs with these parameters."""
        placement = Placement(self.execution.mesh)
        placed = placement.everywhere(params)
        return lambda batch: self.apply(placed, jax.tree.map(placement.rows, batch))

    def quantize(self, cell: Cell, store: LayerStore) -> QuantizedModel:
        """Quantizes as the cell says; layers go into the store as they are done, and those in it are not done again."""
        finished, batches = store.load(), self.drawn(cell.calibration_images, cell.seed)
        params = self.float_params(cell.quant, batches)
        spec = self._spec(cell, store, params)
        with tqdm(desc="layers", unit="layer", initial=len(finished), leave=False, disable=None) as bar:

            def on_layer(report, matrix, total):
                store.save(report, matrix)
                bar.total = total
                bar.set_postfix_str(f"{report.layer}, error {report.output_error:.2e}", refresh=False)
                bar.update()

            done = quantize(
                self.task.apply,
                params,
                batches,
                spec,
                execution=self.execution,
                weights=self.task.weights,
                finished=finished,
                float_stats=self._float_stats(cell.float_stats_key),
                on_layer=on_layer,
            )
        self.skipped["calibration"] = _skipped(batches)
        return done

    def float_params(self, quant: Mapping[str, Any], batches: Iterable[Any]) -> Any:
        """The float parameters to quantize for a cell's fields: the task's, with balance_rows those with row scales."""
        if not row_scales.wanted(quant):
            return self.task.params
        model, _ = self.traced(batches)
        return self._row_scales.params(model, mixed.spec_of(quant), next(iter(batches)))

    def _spec(self, cell: Cell, store: LayerStore, params: Any) -> QuantSpec:
        """The cell's spec; where it has a budget, with the alphabets chosen under it, which go into the store."""
        spec = mixed.spec_of(cell.quant)
        if not mixed.is_mixed(cell.quant):
            return spec
        choice = store.load_choice()
        if choice is None:
            plan = choose_alphabets(
                self.task.apply,
                params,
                self.drawn(cell.calibration_images, cell.seed),
                spec,
                cell.quant["candidate_alphabets"],
                cell.quant["bits_per_parameter"],
                execution=self.execution,
                weights=self.task.weights,
                float_stats=self._float_stats(cell.float_stats_key),
            )
            choice = mixed.choice_of(plan, spec)
            store.save_choice(choice)
        self.bit_widths = choice["shown"]
        return mixed.chosen_spec(spec, choice)

    def tune(self, cell: Cell, params: Any) -> TunedNorms:
        """Tunes the normalization layers as the cell says."""
        tuning, batches = norm_tuning(cell.tuning), self._tuning_batches(cell)
        with tqdm(desc="norm tuning", unit="step", total=tuning.steps, leave=False, disable=None) as bar:

            def on_step(_step, loss):
                bar.update()
                bar.set_postfix(loss=f"{loss:.3g}")

            given = dict(norms=self.task.norms, weights=self.task.weights, on_step=on_step)
            tuned = tune_norms(self.apply, params, self.predictor(self.task.params), batches, tuning, **given)
        self.skipped["tuning"] = _skipped(batches)
        return tuned

    def evaluate(self, params: Any) -> dict[str, Measured]:
        """The task's metrics on the test examples."""
        measured = evaluate(
            self.predictor(params), self._test("evaluate"), self.task.metrics, reference=self._float_outputs
        )
        self.skipped["test"] = _skipped(self.task.test)
        return measured

    def results(self, group: list[Cell], store: LayerStore) -> Iterator[Result]:
        """Yields the result of every cell of a group that shares one quantized model."""
        params, done = self.task.params, None
        if group[0].quant is not None:
            done = self.quantize(group[0], store)
            params = done.params
        for cell in group:
            if cell.tuning is None:
                about = {} if done is None else about_model(done)
                yield Result(cell, self.evaluate(params), skipped=self._skipped_of(cell), **about)
            else:  # the layers stay as they are
                tuned = self.tune(cell, params)
                yield Result(cell, self.evaluate(tuned.params), skipped=self._skipped_of(cell), tuned=tuned.summary())

    def _skipped_of(self, cell: Cell) -> dict[str, int]:
        """What of `skipped` concerns a cell, whatever was computed before it."""
        concerns = {"calibration": cell.quant is not None, "tuning": cell.tuning is not None, "test": True}
        return {name: self.skipped[name] for name, concerned in concerns.items() if concerned}

    def check(self, cells: list[Cell]) -> None:
        """Raises ValueError for what can be known to fail before any cell runs.

        That is more examples asked for than there are, fewer than a layer needs, a batch too small to hold examples out
        of, no normalization layers to tune, a pattern that matches no layer, or a budget that no alphabets keep.
        """
        for cell in (cell for cell in cells if cell.quant is not None):
            batches = self.drawn(cell.calibration_images, cell.seed)
            model, examples = self.traced(batches)
            rows = {layer.name: layer.rows * cell.calibration_images // examples for layer in model.layers}
            own_rows = rows.__getitem__ if self.task.weights is None else None
            spec, examples = mixed.spec_of(cell.quant), cell.calibration_images
            if mixed.is_mixed(cell.quant):
                allowed = cell.quant["candidate_alphabets"], cell.quant["bits_per_parameter"]
                BitBudget.of(model, self.task.params, spec, *allowed, rows=own_rows, examples=examples)
            else:
                plan_layers(model, spec, own_rows, examples)
            self.float_params(cell.quant, batches)
            if cell.tuning is not None:
                norm_paths(self.task.params, self.task.norms)
                count, size = cell.tuning["images"] or cell.calibration_images, cell.tuning["batch_size"]
                if min(count, size) < 2:
                    raise ValueError(f"norm tuning needs batches of two examples or more, got {count} by {size}")
                self._tuning_batches(cell)

    def traced(self, batches: Iterable[Any]) -> tuple[Model, int]:
        """The model, traced for the first batch that there is, and its number of examples."""
        if self._model is None:
            batch = next(iter(batches), None)
            if batch is None:
                raise ValueError("calibration of the task gives no batches")
            model = Model(self.task.apply, self.task.params, self.execution.cast)
            model.add(batch)
            self._model = model, example_count(batch)
        return self._model

    @functools.cached_property
    def _float_outputs(self) -> list | None:
        """What the metrics need of the float model's outputs."""
        if not any(metric.compares for metric in self.task.metrics.values()):
            return None
        return reference_of(self.predictor(self.task.params), self._test("float model"), self.task.metrics)

    def _test(self, what: str) -> Iterable[Any]:
        return tqdm(self.task.test, desc=what, unit="batch", leave=False, disable=None)

    def _draw(self, count: int, seed: int) -> Iterable[Any]:
        batches = self.task.calibration(count, seed)
        if is_read_once(batches):
            raise ValueError("calibration of a Task must give batches to be read several times, not a generator")
        return batches

    def _tuning_batches(self, cell: Cell) -> Rebatched:
        count = cell.tuning["images"] or cell.calibration_images
        return Rebatched(self.drawn(count, cell.seed), cell.tuning["batch_size"])


def _skipped(batches: Iterable[Any]) -> int:
    return len(getattr(batches, "skipped", ()))


def about_model(done: QuantizedModel) -> dict[str, Any]:
    """What a Result says of a quantized model: layers, shares of what is quantized, and how often codes are used."""
    names = ("parameters", "quantized", "multiplications", "bits_per_parameter")
    shares = {name: getattr(done.coverage, name) for name in names}
    return dict(layers=tuple(done.reports), coverage=shares, codes=code_counts(done))
