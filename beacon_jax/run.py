"""One run over a model's stages: Gram statistics, solve, parameters put in place, layer by layer."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from beacon_jax.finished import deciding_options
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.metrics import output_error_and_cosines
from beacon_jax.quant.problem import NothingToCalibrateOn
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.report import LayerReport

STREAMS = {
    "float": ("float",),
    "quantized": ("quantized",),
    "both": ("float", "quantized"),
}  # by QuantSpec.calibrate_on
COSINE_SLACK = 1e-3  # of rounding
RESIDUAL = "aimed at the residual stream, too"
NO_INFLUENCE = "its rows have no influence that derivatives show, and count alike"
RESIDUAL_ROWS = 20  # calibration rows for each input, without which a layer does not aim at the residual stream


class Run:
    """One run over the stages of a model; `reports` and `layers` fill up.

    What it computes on devices goes through its calibration's placement.
    """

    def __init__(self, model, spec, plan, calibration, finished, float_stats, on_layer, leaves):
        self.model, self.spec, self.plan, self.calibration = model, spec, plan, calibration
        self.finished, self.float_stats, self.on_layer, self.leaves = finished, float_stats, on_layer, leaves
        self.reports: list[LayerReport] = []
        self.layers: dict[str, QuantizedMatrix] = {}
        self.kept: dict[str, str] = {}  # layers that stay as they are, and why
        self._by_name = {layer.name: layer for layer in model.layers}
        self._placement = calibration.placement

    def all_stages(self) -> None:
        """Quantizes all layers."""
        for stage in range(self.last_stage() + 1):
            (self.all_at_once if self.spec.calibrate_on == "float" else self.one_by_one)(stage)

    def last_stage(self) -> int:
        """The last that has a layer to quantize."""
        return max(s for s in range(self.model.stages) for g in self.model.groups(s) if self.plan.keys() & set(g))

    def _known(self, names: list[str]) -> GramStats | None:
        """Statistics of the float model for a group of layers, where they are known."""
        if self.float_stats is None or self.spec.calibrate_on == "quantized":
            return None
        return next((self.float_stats.get(name) for name in names if name in self.float_stats), None)

    def _wanted(self, names: list[str]) -> bool:
        return any(name in self.plan and name not in self.finished for name in names)

    def _more(self, stage: int) -> bool:
        """Whether statistics are wanted behind a stage."""
        behind = [g for s in range(stage + 1, self.model.stages) for g in self.model.groups(s)]
        known = self._known if self.spec.calibrate_on == "float" else lambda _: None
        return any(self._wanted(names) and known(names) is None for names in behind)

    def all_at_once(self, stage: int) -> None:
        """Float inputs do not change when layers are quantized: one pass gives all of them and the stage's output."""
        groups = self.model.groups(stage)
        wanted = [g for g, names in enumerate(groups) if self._wanted(names) and self._known(names) is None]
        stats, seconds = self.calibration.all_statistics(stage, wanted, leave=self._more(stage))
        collected = dict(zip(wanted, stats, strict=True))
        for g, names in enumerate(groups):
            known = collected.get(g, self._known(names))
            self._solve(names, known, seconds / len(wanted) if g in collected else 0.0)

    def one_by_one(self, stage: int) -> None:
        """A pass for each group of layers with the same inputs, then one for the stage's output."""
        groups, more = self.model.groups(stage), self._more(stage)
        wanted = [g for g, names in enumerate(groups) if self._wanted(names)]
        left = False
        for g, names in enumerate(groups):
            stats, seconds = None, 0.0
            if g in wanted:
                left = more and g == wanted[-1]
                stats, seconds = self.calibration.statistics(
                    stage, g, known=self._known(names), leave=left, residual=self._residual_of(names) == RESIDUAL
                )
            self._solve(names, stats, seconds)
        if more:
            self.calibration.leave(stage, float_too=not left)

    def _keep(self, name: str, why: str) -> None:
        """Leaves a layer in float."""
        if self.spec.strict:
            raise ValueError(f"strict: layer {name} cannot be quantized: {why}")
        logging.warning("layer %s stays in float: %s", name, why)
        self.kept[name] = why

    def can_aim_at_residual(self) -> bool:
        """Whether some layer can, where any is asked to."""
        asked = [name for name, plan in self.plan.items() if plan.reads_residual]
        return not asked or any(name in self.model.first.residuals for name in asked)

    def _residual_of(self, names: list[str]) -> str | None:
        """What a group's reports say of the residual stream: RESIDUAL where it is aimed at, or why it is not.

        None where no layer asks for it, or none is added to a residual stream.
        """
        asking = [name for name in names if name in self.plan and self.plan[name].reads_residual]
        added = [name for name in asking if name in self.model.first.residuals]
        if not added:
            return None
        if len(names) > 1:
            return f"not aimed at the residual stream: its inputs are also those of {len(names) - 1} other layers"
        rows, inputs = self.calibration.rows(added[0]), self._by_name[added[0]].shape[-2]
        if rows < RESIDUAL_ROWS * inputs:
            return (
                f"not aimed at the residual stream: {rows} calibration rows are fewer than {RESIDUAL_ROWS} for each of "
                f"the {inputs} inputs"
            )
        return RESIDUAL

    def _residual_note(self, name: str, names: list[str]) -> str:
        """What the report of a layer of a group says of the residual stream."""
        if not self.plan[name].reads_residual or name not in self.model.first.residuals:
            return ""
        return self._residual_of(names) or ""

    def _influence_note(self, name: str) -> str:
        return NO_INFLUENCE if self.calibration.without_influence(name) else ""

    def _solve(self, names: list[str], stats: GramStats | None, seconds: float) -> None:
        """Quantizes a group's layers, in order, and puts them in place."""
        todo = sum(self._wanted([name]) for name in names)
        for name in names:
            if name not in self.plan:
                continue
            if name in self.finished:
                report, matrix = self.finished[name][0], self._placement.everywhere(self.finished[name][1])
            else:
                assert stats is not None, "a layer that is not finished has statistics"
                try:
                    report, matrix = self.quantize_layer(name, names, stats, seconds / todo)
                except NothingToCalibrateOn as why:
                    self._keep(name, str(why))
                    continue
                if self.float_stats is not None and self.spec.calibrate_on != "quantized":
                    self.float_stats.add(name, self._placement.call(GramStats.float_part, stats))
            self.finish_layer(name, report, matrix)

    def finish_layer(self, name: str, report: LayerReport, matrix: QuantizedMatrix) -> None:
        """Puts a quantized layer in place, and tells of it."""
        self.calibration.quantized.put(self._by_name[name], matrix)
        self.layers[name] = matrix
        self.reports.append(report)
        if self.on_layer is not None and name not in self.finished:
            self.on_layer(report, matrix, len(self.plan))

    def quantize_layer(
        self, name: str, names: list[str], stats: GramStats, gram_seconds: float
    ) -> tuple[LayerReport, QuantizedMatrix]:
        """A layer of a group, quantized, and what was done to it. Raises NothingToCalibrateOn as methods do."""
        layer, plan = self._by_name[name], self.plan[name]
        kernel = jax.device_put(layer.place.read(self.leaves[layer.leaf]))
        start = time.perf_counter()
        try:
            matrix, note = self.solved(name, kernel, stats)
        except NothingToCalibrateOn:
            raise
        except ValueError as why:
            raise ValueError(f"layer {layer.name}: {why}") from why
        jax.block_until_ready(matrix)
        seconds = gram_seconds, time.perf_counter() - start
        notes = note, self._residual_note(name, names), self._influence_note(name)
        error, cosine = self.measured(kernel, matrix, stats)
        said = "; ".join(filter(None, notes))
        return _report(layer, plan, error, cosine, matrix, said, stats, seconds), matrix

    def solved(self, name: str, kernel: jax.Array, stats: GramStats) -> tuple[QuantizedMatrix, str | None]:
        """A layer's kernel (N, C), or (E, N, C), quantized, whole on every device, and what the solution notes."""
        plan, has_bias, channels = self.plan[name], name in self.model.biases, kernel.shape[-1]
        dtype = jnp.float64 if kernel.dtype == jnp.float64 else jnp.float32
        placed = self._placement.by_channels(kernel) if kernel.ndim == 2 else kernel

        def solve(kernel, stats):
            if stats.residual is not None:
                stats = dataclasses.replace(stats, residual=stats.residual.padded(kernel.shape[-1]))
            return METHODS[plan.method].solve(kernel, stats, plan.alphabet, has_bias=has_bias, **plan.options)

        solution = self._placement.call(solve, placed, stats)
        whole = self._placement.everywhere(solution.matrix)
        return self._placement.call(lambda m: m.first_channels(channels).astype(dtype), whole), solution.note

    def measured(self, kernel: jax.Array, matrix: QuantizedMatrix, stats: GramStats) -> tuple[jax.Array, jax.Array]:
        """The layer's relative output error, and the cosine of each channel."""
        return self._placement.call(output_error_and_cosines, kernel, matrix, stats)


_dead = jax.jit(lambda stats: stats.dead)
_OPTIONAL = {"sweeps": "sweeps", "fixed_points": "fixed_point"}


def _report(layer, plan, error, cosine, matrix, note, stats, seconds) -> LayerReport:
    # In NumPy, where small sums need no compilation.
    error, cosine, dead, rows = map(np.asarray, (error, cosine, _dead(stats), stats.rows))
    if not (error >= 0 and np.isfinite(error)) or not (np.abs(cosine) <= 1 + COSINE_SLACK).all():
        raise ValueError(
            f"layer {layer.name}: an output error of {float(error):.3g} and cosines up to "
            f"{float(np.abs(cosine).max()):.3g} come of numbers beyond the statistics' {stats.dtype}"
        )
    cosine = np.clip(cosine, -1, 1)
    return LayerReport(
        layer=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        method=plan.method,
        alphabet=plan.alphabet_name,
        output_error=float(error),
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        dead=int(dead.sum()),
        rows=int(rows.max()),
        gram_seconds=seconds[0],
        solve_seconds=seconds[1],
        note=note,
        options=deciding_options(plan),
        **{
            key: float(np.asarray(matrix.info[field]).mean())
            for key, field in _OPTIONAL.items()
            if field in matrix.info
        },
    )
