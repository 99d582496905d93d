"""What `quantize` returns."""

import dataclasses
from typing import Any

from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.report import Coverage, LayerReport, aligned
from beacon_jax.spec import LayerPlan, QuantSpec


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizedModel:
    """The result of `quantize`.

    Attributes:
      params: the parameters, of the structure given, with quantized kernels dequantized in place.
      layers: {layer name: quantized kernel}, without layers whose inputs are zero in all rows: they stay in float.
        Where a method changes a layer's bias, `bias_change` says by how much; `params` have it already.
      places: {layer name: its leaf's path and its place in the leaf}, for files.
      reports: what was done to each layer.
      coverage: what was done to each parameter.
      spec: by which it was quantized.
      plan: {layer name: what the spec said of it}.
    """

    params: Any
    layers: dict[str, QuantizedMatrix]
    places: dict[str, tuple]
    reports: list[LayerReport]
    coverage: Coverage
    spec: QuantSpec
    plan: dict[str, LayerPlan]

    def __repr__(self) -> str:
        return f"QuantizedModel({len(self.layers)} layers; {self.coverage.summary()})"

    def summary(self) -> str:
        """A table of the layers: method, alphabet, rows, errors, seconds; below it the shares that are quantized."""
        head = ("layer", "shape", "method", "alphabet", "rows", "error", "least cosine", "Gram s", "solve s", "note")
        return "\n".join([*aligned([head, *(_row(report) for report in self.reports)]), self.coverage.summary()])


def _row(report: LayerReport) -> tuple[str, ...]:
    numbers = f"{report.output_error:.3g}", f"{report.min_cosine:.4f}"
    seconds = f"{report.gram_seconds:.2f}", f"{report.solve_seconds:.2f}"
    shape = "×".join(map(str, report.shape))
    return report.layer, shape, report.method, report.alphabet, str(report.rows), *numbers, *seconds, report.note
