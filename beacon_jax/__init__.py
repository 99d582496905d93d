"""Beacon post-training quantization (arXiv 2508.20293) in JAX/Flax."""

from beacon_jax.bit_widths import BitPlan, LayerBits, choose_alphabets
from beacon_jax.checkpoint import load_params, save_params
from beacon_jax.devices import make_mesh
from beacon_jax.evaluate import evaluate
from beacon_jax.execution import Execution
from beacon_jax.float_stats import FloatStats
from beacon_jax.norm_tuning import NormTuning, tune_norms
from beacon_jax.packed import PackedLeaf, dequantize, pack_params
from beacon_jax.packed_function import run_packed
from beacon_jax.pipeline import quantize
from beacon_jax.quant.alphabets import make_alphabet
from beacon_jax.quant.gram import GramStats
from beacon_jax.quant.methods.table import METHODS
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quantized_file import ModelRecord, load_packed, load_quantized, load_record, save_quantized
from beacon_jax.quantized_model import QuantizedModel
from beacon_jax.report import Coverage, LayerReport, LeafCoverage
from beacon_jax.row_scales import BalancedRows, FoldedRows, balance_rows
from beacon_jax.spec import LayerRule, QuantSpec
from beacon_jax.version import VERSION as __version__

__all__ = [
    "METHODS",
    "BalancedRows",
    "BitPlan",
    "Coverage",
    "Execution",
    "FloatStats",
    "FoldedRows",
    "GramStats",
    "LayerBits",
    "LayerReport",
    "LayerRule",
    "LeafCoverage",
    "ModelRecord",
    "NormTuning",
    "PackedLeaf",
    "QuantSpec",
    "QuantizedMatrix",
    "QuantizedModel",
    "__version__",
    "balance_rows",
    "choose_alphabets",
    "dequantize",
    "evaluate",
    "load_packed",
    "load_params",
    "load_quantized",
    "load_record",
    "make_alphabet",
    "make_mesh",
    "pack_params",
    "quantize",
    "run_packed",
    "save_params",
    "save_quantized",
    "tune_norms",
]
