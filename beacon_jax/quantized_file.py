"""Quantized models in files: packed codes, all other parameters, and what was done. docs/files.md has the format."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax import version_1
from beacon_jax.checkpoint import about_kernel, kernel_of, kernel_tensors, named_leaves, named_path, tree_of
from beacon_jax.graph.place import Place
from beacon_jax.metrics.base import Measured
from beacon_jax.packed import PackedLeaf, is_packed, pack_params
from beacon_jax.quant.alphabets import NAMED
from beacon_jax.quant.quantized import QuantizedMatrix
from beacon_jax.quantized_model import QuantizedModel
from beacon_jax.report import Coverage, LayerReport, LeafCoverage
from beacon_jax.spec import QuantSpec
from beacon_jax.tensor_file import read_tensors, write_tensors
from beacon_jax.version import VERSION

_SECONDS = ("gram_seconds", "solve_seconds")  # not of the model, and other ones in every run
_UNKEPT = (*_SECONDS, "options")  # of a report; options are kept beside them, as they were given


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """What a file says of its model beside the parameters; of a file of version 1 the first field alone.

    Attributes:
      version: of the format.
      spec: by which it was quantized.
      options: {layer: its method's options}.
      reports: of the layers, in the order in which they were quantized; without seconds (nan) and their options.
      coverage: of the parameters.
      versions: {package: version} that wrote it.
      model, fingerprint, licence, metrics: as given to `save_quantized`.
    """

    version: int
    spec: QuantSpec | None = None
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    reports: tuple[LayerReport, ...] = ()
    coverage: Coverage | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model: str = ""
    fingerprint: str | None = None
    licence: str | None = None
    metrics: Mapping[str, Measured] = dataclasses.field(default_factory=dict)


def save_quantized(
    path: str | os.PathLike,
    result: QuantizedModel,
    *,
    params: Any = None,
    model: str = "",
    fingerprint: str | None = None,
    licence: str | None = None,
    metrics: Mapping[str, Measured] | None = None,
) -> None:
    """Writes a quantized model: packed codes, scales, offsets, every other parameter as it is, and what was done.

    The same arguments give the same bytes, and so do two runs of the same computation.

    Args:
      path: the file, replaced in one atomic step.
      result: what `quantize` returned.
      params: its parameters with others than the quantized kernels changed, as norm tuning does; None: as they are.
      model: the name of the model that the parameters are of.
      fingerprint: of model, data and settings, where there is one.
      licence: under which the weights are.
      metrics: what was measured, as `evaluate` returns it.

    Raises:
      ValueError: no result of `quantize`; parameters of other shapes or dtypes than those quantized, or of a dtype that
        files do not hold; a quantized kernel that was changed; or a metric that is no Measured.
    """
    if not isinstance(result, QuantizedModel):
        raise ValueError(f"expected the QuantizedModel that quantize returned, got {type(result).__name__}")
    leaves = named_leaves(pack_params(result.params if params is None else params, result.layers, result.places))
    for leaf in result.coverage.leaves:
        own = leaves.get(leaf.path)
        if own is None or (tuple(own.shape), str(own.dtype)) != (leaf.shape, leaf.dtype):
            raise ValueError(f"parameter {leaf.path!r} is not {leaf.dtype} {leaf.shape} as in the model quantized")
    tensors: dict[str, Any] = {}
    packed = {}
    for name, leaf in leaves.items():
        parts = {name: leaf} if not is_packed(leaf) else _tensors_of(name, leaf)
        if clash := tensors.keys() & parts.keys():
            raise ValueError(f"a parameter has the name {min(clash)!r}, which the file needs for a quantized kernel")
        tensors |= parts
        if is_packed(leaf):
            packed[name] = _about_leaf(leaf)
    reports = [dataclasses.asdict(report) for report in result.reports]
    about = {
        "leaves": packed,
        "spec": result.spec.to_dict(),
        "options": {name: plan.to_dict()["options"] for name, plan in result.plan.items()},
        "reports": [{key: v for key, v in report.items() if key not in _UNKEPT} for report in reports],
        "coverage": dataclasses.asdict(result.coverage),
        "versions": {"beacon_jax": VERSION, "jax": jax.__version__, "numpy": np.__version__},
        "model": model,
        "fingerprint": fingerprint,
        "licence": licence,
        "metrics": {name: _about_metric(name, measured) for name, measured in (metrics or {}).items()},
    }
    write_tensors(path, "quantized", tensors, about)


def load_quantized(path: str | os.PathLike, like: Any = None) -> tuple[Any, dict[str, QuantizedMatrix]]:
    """Reads what `save_quantized` wrote: the parameters, kernels dequantized, and {layer name: quantized kernel}.

    The parameters come as a nested dict, or as a pytree of the structure of `like`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, not a quantized model, one of another structure than `like`, or one in double
        precision where that is off.
    """
    leaves, record = read_quantized(path)
    packed = [leaf for leaf in leaves.values() if is_packed(leaf)]
    layers = {name: kernel.unpack() for leaf in packed for name, kernel in zip(leaf.layers, leaf.kernels, strict=True)}
    order = [report.layer for report in record.reports] or list(layers)
    whole = {name: leaf.dequantize() if is_packed(leaf) else jnp.asarray(leaf) for name, leaf in leaves.items()}
    return tree_of(path, whole, like), {name: layers[name] for name in order}


def load_packed(path: str | os.PathLike, like: Any = None) -> Any:
    """Reads what `save_quantized` wrote: the parameters with every leaf that is quantized as a PackedLeaf.

    `dequantize` makes float parameters of it, inside jit where they are used: what stays in memory is the codes.
    The structure is a nested dict, or that of `like`. Errors as `load_quantized`.
    """
    leaves, _ = read_quantized(path)
    return tree_of(path, jax.tree.map(jnp.asarray, leaves), like)


def load_record(path: str | os.PathLike) -> ModelRecord:
    """What a file of `save_quantized` says beside the parameters, all of it checked. Errors as `load_quantized`."""
    return read_quantized(path)[1]


def _tensors_of(name: str, leaf: PackedLeaf) -> dict[str, Any]:
    tensors = {} if leaf.rest is None else {f"{name}:rest": leaf.rest}
    for layer, kernel in zip(leaf.layers, leaf.kernels, strict=True):
        tensors |= {f"{layer}:{field}": array for field, array in kernel_tensors(kernel).items()}
    return tensors


def _about_leaf(leaf: PackedLeaf) -> dict[str, Any]:
    members = zip(leaf.layers, leaf.kernels, leaf.places, strict=True)
    layers = [{"name": n, **about_kernel(k), "place": dataclasses.asdict(place)} for n, k, place in members]
    return {"shape": list(leaf.shape), "dtype": leaf.dtype, "layers": layers}


def _about_metric(name: str, measured: Measured) -> dict[str, float | int]:
    """In JSON's types, whatever numbers a metric of one's own gave."""
    if not isinstance(measured, Measured):
        raise ValueError(f"metrics are {{name: Measured}} as evaluate returns them, but {name} is {measured!r}")
    return {"value": float(measured.value), "stderr": float(measured.stderr), "count": int(measured.count)}


def read_quantized(path: str | os.PathLike) -> tuple[dict[str, np.ndarray | PackedLeaf], ModelRecord]:
    """{name: leaf}, on the host, and the record, everything checked. Errors as `load_quantized`."""
    file = read_tensors(path)
    if file.kind != "quantized":
        raise ValueError(f"{path} holds {_OTHERS[file.kind]}, not a quantized model; read it with load_{file.kind}")
    with named_path(path):
        if file.version == 1:
            leaves, record = version_1.leaves_of(file.tensors, file.about), ModelRecord(1)
        else:
            leaves, record = _leaves_of(file.tensors, file.about["leaves"]), _record_of(file.about)
        for name, leaf in leaves.items():
            if is_packed(leaf):
                leaf.check()
                _check_precision(name, leaf)
        if record.coverage is not None:
            _check_record(record, record.coverage, leaves)
    return leaves, record


_OTHERS = {"params": "float parameters", "layer": "a single layer"}


def _leaves_of(tensors, about) -> dict[str, np.ndarray | PackedLeaf]:
    tensors, leaves = dict(tensors), {}
    for name, own in about.items():
        kernels = []
        for layer in own["layers"]:
            parts = {field: tensors.pop(f"{layer['name']}:{field}", None) for field in ("codes", "scale", "offset")}
            kernels.append(kernel_of(parts, layer))
        names = tuple(layer["name"] for layer in own["layers"])
        places = tuple(Place.from_dict(layer["place"]) for layer in own["layers"])
        rest = tensors.pop(f"{name}:rest", None)
        leaves[name] = PackedLeaf(tuple(kernels), rest, names, places, tuple(own["shape"]), own["dtype"])
    if both := sorted(leaves.keys() & tensors.keys()):
        raise ValueError(f"{both[0]!r} is there both packed and as floats")
    return leaves | tensors


def _record_of(about) -> ModelRecord:
    reports = [LayerReport(**fields | dict.fromkeys(_SECONDS, math.nan)) for fields in about["reports"]]
    reports = [dataclasses.replace(report, shape=tuple(report.shape)) for report in reports]
    leaves = [
        LeafCoverage(**leaf | {key: tuple(leaf[key]) for key in ("shape", "layers")})
        for leaf in about["coverage"]["leaves"]
    ]
    return ModelRecord(
        version=2,
        spec=QuantSpec.from_dict(about["spec"]),
        reports=tuple(reports),
        coverage=Coverage(tuple(leaves), about["coverage"]["multiplications"]),
        **{key: about[key] for key in ("options", "versions", "model", "fingerprint", "licence")},
        metrics={name: Measured(**fields) for name, fields in about["metrics"].items()},
    )


def _check_record(record: ModelRecord, covered: Coverage, leaves) -> None:
    """Raises ValueError where reports and coverage are of other layers and parameters than those in the file."""
    said = {leaf.path: (leaf.shape, leaf.dtype) for leaf in covered.leaves}
    held = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in leaves.items()}
    if said != held:
        wrong = min(set(said.items()) ^ set(held.items()))
        raise ValueError(f"its parameters are not those of its coverage: {wrong[0]} {wrong[1]} is in one alone")
    packed = [leaf for leaf in leaves.values() if is_packed(leaf)]
    kernels = {name: kernel for leaf in packed for name, kernel in zip(leaf.layers, leaf.kernels, strict=True)}
    if len({report.layer for report in record.reports}) < len(record.reports):
        raise ValueError("there are two reports of one layer")
    if {report.layer: report.shape for report in record.reports} != {name: k.shape for name, k in kernels.items()}:
        raise ValueError("its reports are not of its layers")
    for report in record.reports:
        levels, kernel = NAMED.get(report.alphabet), kernels[report.layer]
        if levels is not None and not np.array_equal(np.asarray(levels, kernel.scale.dtype), kernel.levels):
            raise ValueError(f"layer {report.layer!r}: its levels are not those of the alphabet {report.alphabet!r}")


def _check_precision(name: str, leaf: PackedLeaf) -> None:
    for kernel in leaf.kernels:
        if kernel.scale.dtype != jax.dtypes.canonicalize_dtype(kernel.scale.dtype):
            raise ValueError(f"{name} is in double precision, which is off; set JAX_ENABLE_X64=1 to load it")
