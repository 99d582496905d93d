"""A run without its numbers: which programs it runs on its devices, with which shapes, how often.

The pipeline's own code is run on shapes. What it would compute on devices (`Placement.call`) is traced instead, and
the compiled functions found in it are the run's programs; their outputs are shapes again. So programs can be compiled
for devices that are not there, and before there are weights or data.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Sharding, SingleDeviceSharding

from beacon_jax.calibration import Calibration
from beacon_jax.calibration_data import checked_weights
from beacon_jax.devices import Placement
from beacon_jax.execution import Execution
from beacon_jax.float_stats import FloatStats
from beacon_jax.graph.model import Model
from beacon_jax.graph.program import bind
from beacon_jax.pipeline import plan_layers
from beacon_jax.run import STREAMS, Run
from beacon_jax.spec import QuantSpec

_JAX = str(Path(jax.__file__).parent)
_CALLS = ("jit", "pjit")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function that is compiled as one, with the shapes that it is called with.

    Attributes:
      name: of the function.
      code: its equations; of two calls of one compiled function the same object.
      args: its flat arguments, with their shardings.
      donated: which of these it may overwrite.
      helper: whether it is no function of ours: a single operation between these, or a small function of JAX's own.
    """

    name: str
    code: core.ClosedJaxpr
    args: tuple[jax.ShapeDtypeStruct, ...]
    donated: tuple[bool, ...]
    helper: bool

    def jitted(self) -> Any:
        """The function under jit, of the flat arguments."""
        run = core.jaxpr_as_fun(self.code)

        def function(*args):
            return run(*args)

        function.__name__ = function.__qualname__ = self.name
        return jax.jit(function, donate_argnums=tuple(i for i, given in enumerate(self.donated) if given))


class Recorder(Protocol):
    """What is done with the programs of a run."""

    def ran(self, program: Program) -> list[Sharding] | None:
        """Called for every call of a program; how its outputs lie, None for whole on every device."""


@dataclasses.dataclass(frozen=True)
class AbstractPlacement(Placement):
    """A placement of shapes: arrays become jax.ShapeDtypeStruct with their sharding, calls go to the recorder.

    Attributes:
      device: where there is no mesh.
      recorder: told of each program.
    """

    device: jax.Device | None = None
    recorder: Recorder | None = dataclasses.field(default=None, compare=False)

    def shape_of(self, a: Any, sharding: Sharding | None = None) -> jax.ShapeDtypeStruct:
        """An array, or a shape, as a shape; by default whole on every device."""
        if not hasattr(a, "dtype"):
            a = jax.typeof(a)
        kind = a.dtype if jnp.issubdtype(a.dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(a.dtype)
        weak = bool(getattr(a, "weak_type", False))
        return jax.ShapeDtypeStruct(np.shape(a), kind, sharding=sharding or self._whole, weak_type=weak)

    @property
    def _whole(self) -> Sharding:
        return self.replicated or SingleDeviceSharding(self.device)

    def rows(self, batch: Any) -> Any:
        """As of a placement."""
        return self.shape_of(batch, self.by_rows(np.shape(batch)))

    def own_rows(self, batch: Any) -> Any:
        """The whole batch: there is but one process."""
        return self.shape_of(batch)

    def restored(self, own: Any, shape: Sequence[int]) -> Any:
        """As of a placement."""
        return self.rows(own)

    def everywhere(self, tree: Any) -> Any:
        """As of a placement."""
        return jax.tree.map(self.shape_of, tree)

    def by_channels(self, kernel: Any) -> Any:
        """As of a placement."""
        shape, sharding = self.channel_layout(kernel.shape)
        return self.shape_of(jax.ShapeDtypeStruct(shape, kernel.dtype), sharding)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The shapes of function(*args), whose programs the recorder is told of, in order."""
        leaves, structure = jax.tree.flatten(args)
        placed = [a if isinstance(a, jax.ShapeDtypeStruct) and a.sharding else self.shape_of(a) for a in leaves]
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(structure, placed))
        return jax.tree.unflatten(jax.tree.structure(shapes), self._run(closed, placed))

    def _run(self, closed, args):
        assert self.recorder is not None, "calls are told to a recorder"
        jaxpr = closed.jaxpr
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(self.shape_of, closed.consts), *args), strict=True))

        def value(atom):
            return self.shape_of(atom.aval) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            program = self._program(eqn, [value(a) for a in eqn.invars])
            own: Sequence[Sharding | None] = self.recorder.ran(program) or [None] * len(eqn.outvars)
            env.update((v, self.shape_of(v.aval, how)) for v, how in zip(eqn.outvars, own, strict=True))
        return [value(a) for a in jaxpr.outvars]

    @staticmethod
    def _program(eqn, args) -> Program:
        if eqn.primitive.name in _CALLS:
            code = eqn.params["jaxpr"]
            helper = str(code.jaxpr.debug_info.func_filename).startswith(_JAX)
            return Program(eqn.params["name"], code, tuple(args), tuple(eqn.params["donated_invars"]), helper)
        literals = {i: a for i, a in enumerate(eqn.invars) if isinstance(a, core.Literal)}
        given = [a for i, a in enumerate(args) if i not in literals]

        def operation(*own):
            given = iter(own)
            operands = [literals[i].val if i in literals else next(given) for i in range(len(args))]
            return bind(eqn, operands)

        code = jax.make_jaxpr(operation)(*given)
        return Program(eqn.primitive.name, code, tuple(given), (False,) * len(given), True)


class AbstractRun(Run):
    """The run of a pipeline on shapes: each layer is solved and measured, nothing is put in place or reported."""

    def quantize_layer(self, name, names, stats, gram_seconds) -> Any:
        """Tells of the programs that quantize a layer."""
        layer = self._by_name[name]
        kernel: Any = jax.ShapeDtypeStruct(layer.shape, self.leaves[layer.leaf].dtype)
        matrix, _ = self.solved(name, kernel, stats)
        self.measured(kernel, matrix, stats)
        return None, matrix

    def finish_layer(self, name, report, matrix) -> None:
        """Nothing: the parameters' shapes stay."""


def quantize_shapes(
    apply: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    spec: QuantSpec,
    placement: AbstractPlacement,
    *,
    execution: Execution,
    weights: Callable[[Any], Any] | None = None,
    float_stats: FloatStats | None = None,
) -> Mapping[str, Any]:
    """Runs `quantize` on shapes; the placement's recorder is told of the programs.

    Left out are what NumPy does on the host, float64 where float32 would not be enough for a layer, and the factors of
    biases, which depend on numbers.

    Args:
      apply, spec, execution, weights: as for `quantize`; execution with activations in memory.
      params, batches: pytrees of arrays, or of jax.ShapeDtypeStruct; with `weights` batches of arrays.
      placement: the devices.
      float_stats: those of earlier calls, as shapes; each with the same model, batches and dtype.

    Returns:
      What the spec does with each layer.

    Raises:
      ValueError: as `quantize`, for what does not depend on numbers; row weights by influence, which do.
    """
    if spec.row_weights == "influence":
        raise ValueError("row_weights='influence' depends on numbers and cannot be compiled ahead; use uniform")
    model = Model(apply, params, execution.cast)
    leaves = placement.everywhere(jax.tree.leaves(params))
    streams = STREAMS[spec.calibrate_on]
    with Calibration(model, leaves, streams, execution, sample=spec.sample, placement=placement) as calibration:
        for i, batch in enumerate(batches):
            own = None if weights is None else checked_weights(weights(batch), jax.tree.leaves(batch), i)
            calibration.add(jax.tree.map(placement.shape_of, batch), own)
        plan = plan_layers(model, spec, calibration.rows, calibration.examples)
        AbstractRun(model, spec, plan, calibration, {}, float_stats, None, leaves).all_stages()
    return plan
