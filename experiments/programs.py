"""The programs of a run, each compiled once for its target, and what is to be known of them."""

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterator

import jax
from jax.sharding import Sharding
from tqdm import tqdm

from beacon_jax.abstract_run import Program
from experiments.compiled_code import CompiledCode

LARGE = 2**20  # bytes of an array that is no small one
HELPERS = "operations between the programs"


@dataclasses.dataclass
class Row:
    """A program, compiled.

    Attributes:
      name, shapes: of the function and its largest arguments.
      runs: how often the run calls it.
      seconds: of one core, to compile it.
      arguments, temporary, outputs: bytes of each device; outputs without those in place of arguments.
      overwritten: bytes of the arguments that it may overwrite, as statistics are.
      code: what it does.
    """

    name: str
    shapes: str
    runs: int
    seconds: float
    arguments: int
    temporary: int
    outputs: int
    overwritten: int
    code: CompiledCode

    @property
    def memory(self) -> int:
        """Bytes of each device while it runs."""
        return self.arguments + self.temporary + self.outputs


class Programs:
    """A Recorder that compiles for a platform.

    Attributes:
      rows: the programs, in the order in which they were first called.
      helpers: {name: calls} of single operations and small functions of JAX's own, which are compiled only where
        their inputs are shared out over devices.
      most: how often a loop whose end depends on numbers runs at most, unless its code says.
    """

    def __init__(self, platform: str):
        self.platform, self.most = platform, 1
        self.helpers: Counter[str] = Counter()
        self._found: dict[tuple, tuple[Program, Row | None, list[Sharding] | None]] = {}
        self._times = 1
        self._bar = tqdm(desc="compiled", unit="program", leave=False, disable=None)

    @property
    def rows(self) -> list[Row]:
        """See the class."""
        return [row for _, row, _ in self._found.values() if row is not None]

    @contextlib.contextmanager
    def times(self, count: int) -> Iterator[None]:
        """Inside, each call stands for so many."""
        before, self._times = self._times, self._times * count
        yield
        self._times = before

    def ran(self, program: Program) -> list[Sharding] | None:
        """Counts a call; the first time the program is compiled."""
        if program.helper:
            self.helpers[program.name] += self._times
            if all(a.sharding.is_fully_replicated for a in program.args):
                return None
        same = str(program.code) if program.helper else id(program.code)
        key = program.name, same, tuple((a.shape, a.dtype, a.sharding) for a in program.args)
        if key not in self._found:  # the program is kept, so that its id stays its own
            self._found[key] = (program, *self._compiled(program))
        _, row, shardings = self._found[key]
        if row is not None:
            row.runs += self._times
        return shardings

    def _compiled(self, program):
        self._bar.set_postfix_str(program.name)
        self._bar.update()
        start = time.process_time()
        compiled = program.jitted().trace(*program.args).lower(lowering_platforms=(self.platform,)).compile()
        seconds = time.process_time() - start
        shardings = jax.tree.leaves(compiled.output_shardings, is_leaf=lambda a: isinstance(a, Sharding))
        if program.helper:
            return None, shardings
        memory = compiled.memory_analysis()
        row = Row(
            program.name,
            _shapes(program.args),
            0,
            seconds,
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.output_size_in_bytes - memory.alias_size_in_bytes,
            sum(a.size * a.dtype.itemsize for a, given in zip(program.args, program.donated, strict=True) if given),
            CompiledCode(compiled.as_text(), self.most),
        )
        return row, shardings


def _shapes(args) -> str:
    """The shapes of the largest arguments, in the order in which they come."""
    shapes = [a.shape for a in args if len(a.shape) > 1]
    largest = sorted(set(shapes), key=lambda shape: -math.prod(shape))[:2]
    return ", ".join("×".join(map(str, shape)) for shape in dict.fromkeys(shapes) if shape in largest)
