"""What compiled code does, read from the text of the optimized HLO module that XLA gives for every backend."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Opcodes that are no work on a device: names for parts of other values, and control that its parts are counted of.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all add-dependency opt-barrier domain partition-id "
    "replica-id while conditional call get-dimension-size".split()
)
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_NO_WORK = ("AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")  # targets of custom calls
_BITS = {"pred": 8, "bf16": 16, "token": 0}  # others have them in their names
_TRUE_FLOAT32 = ("dot_f32_f32_f32", "dot_bf16_bf16_f32_x6", "dot_bf16_bf16_f32_x9")  # algorithms of products

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|called_computations|(?:branch|true|false)_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)
_PRECISION = re.compile(r'operand_precision"?\s*[=:]\s*[\[{]([^\]}]*)[\]}]')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as in the text.
      type: of its value, with layouts.
      operands: the names of its operands.
      attributes: the text behind them.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """{role: names of the computations that it calls so}."""
        found = _CALLED.findall(self.attributes)
        return {role: tuple(re.findall(r"[\w.\-]+", names)) for role, names in found}

    @property
    def trips(self) -> int | None:
        """How often a loop runs, where the compiler knows."""
        known = re.search(r'known_trip_count"?[=:]\{"?n"?[=:]"?(\d+)', self.attributes)
        return int(known[1]) if known else None

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def collective(self) -> str | None:
        """Its kind, of what devices exchange; of one in two halves the first counts."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def works(self) -> bool:
        """Whether a device is given something to do: a kernel, a copy, a product, an exchange."""
        if self.opcode in _FREE or self.opcode.endswith(("-done", "-update")):
            return False
        return self.opcode != "custom-call" or self.target not in _NO_WORK

    @property
    def nbytes(self) -> int:
        """Of its value; of a pair (operand, result) in flight the larger."""
        sizes = [_nbytes(kind, dims) for kind, dims in _SHAPE.findall(self.type)]
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return max(sizes, default=0)
        return sum(sizes)


def _nbytes(kind: str, dims: str) -> int:
    bits = _BITS.get(kind) or int(re.search(r"\d+|$", kind)[0] or 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction of a program and how often a call of the program runs it, at most where `bound`; its loops."""

    instruction: Instruction
    times: int
    bound: bool
    loops: tuple[str, ...]  # the names of the loops around it, outermost first


class CompiledCode:
    """A module's computations, and what running them takes.

    Args:
      text: the module.
      most: how often a loop whose end depends on numbers runs at most, where its condition does not say.

    Raises:
      ValueError: text that is no module.
    """

    def __init__(self, text: str, most: int = 1):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._most, entry, inside = most, None, None
        for line in text.splitlines():
            if header := _HEADER.match(line):
                inside = self.computations.setdefault(header[2], {})
                entry = inside if header[1] else entry
            elif line.startswith("}"):
                inside = None
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                inside[found[1]] = _instruction(found[1], found[2])
        if entry is None:
            raise ValueError("no text of an HLO module: it has no ENTRY computation")
        self._entry = entry

    @functools.cached_property
    def visits(self) -> list[Visit]:
        """What is run, outside of fused computations, of a choice all branches."""
        return list(self._visits(self._entry, 1, False, (), every=True))

    @functools.cached_property
    def _likely(self) -> list[Visit]:
        """The same, of a choice the branch with the most kernels."""
        return list(self._visits(self._entry, 1, False, (), every=False))

    @property
    def launches(self) -> tuple[int, bool]:
        """How many kernels and other pieces of work a call gives to each device, and whether that is a bound."""
        working = [v for v in self._likely if v.instruction.works]
        return sum(v.times for v in working), any(v.bound for v in working)

    @property
    def innermost(self) -> tuple[int, int] | None:
        """(kernels in an iteration, iterations) of the innermost loop with the most iterations; None without loops."""
        around = {v.loops[:-1] for v in self._likely if v.loops}
        inner: dict[tuple, list[Visit]] = {}
        for v in self._likely:
            if v.loops and v.loops not in {a[: len(v.loops)] for a in around if len(a) >= len(v.loops)}:
                inner.setdefault(v.loops, []).append(v)
        if not inner:
            return None
        visits = max(inner.values(), key=lambda own: max(v.times for v in own))
        return sum(v.instruction.works for v in visits), max(v.times for v in visits)

    def collectives(self) -> list[Visit]:
        """What devices exchange."""
        return [v for v in self.visits if v.instruction.collective]

    def custom_calls(self) -> dict[str, int]:
        """{target: how many there are in the code}."""
        found: dict[str, int] = {}
        for v in self.visits:
            if v.instruction.opcode == "custom-call" and v.instruction.target not in _NO_WORK:
                found[v.instruction.target] = found.get(v.instruction.target, 0) + 1
        return found

    def rough_products(self) -> list[str]:
        """Products of float32 numbers in less than float32: their types, fused ones included."""
        found = []
        for computation in self.computations.values():
            for own in computation.values():
                kinds = [_SHAPE.search(computation[name].type) for name in own.operands if name in computation]
                product = own.opcode in ("dot", "convolution") or re.match("__cu(blas|dnn)", own.target)
                if product and [kind and kind[1] for kind in kinds[:2]] == ["f32", "f32"] and not _is_true(own):
                    found.append(own.type.split("{")[0])
        return found

    def _visits(self, computation, times, bound, loops, every) -> Iterator[Visit]:
        for own in computation.values():
            yield Visit(own, times, bound, loops)
            if own.opcode == "while":
                count, known = (own.trips, True) if own.trips is not None else (self._at_most(own), False)
                inner = times * count, bound or not known, (*loops, own.name)
                roles = ("body",) if known else ("body", "condition")
                for name in (name for role in roles for name in own.called[role]):
                    yield from self._visits(self.computations[name], *inner, every)
            elif own.opcode in ("call", "conditional"):
                names = [name for names in own.called.values() for name in names]
                options = [list(self._visits(self.computations[n], times, bound, loops, every)) for n in names]
                if not options:
                    raise ValueError(f"{own.opcode} {own.name} without computations: {own.attributes[:100]}")
                if own.opcode == "conditional" and not every:
                    options = [max(options, key=lambda visits: sum(v.times for v in visits if v.instruction.works))]
                for visits in options:
                    yield from visits

    def _at_most(self, loop: Instruction) -> int:
        """What the loop's condition compares its counter with, where it does."""
        waiting, numbers = list(loop.called["condition"]), []
        while waiting:
            for own in self.computations[waiting.pop()].values():
                waiting += [name for names in own.called.values() for name in names if name in self.computations]
                if own.opcode == "constant" and (
                    found := re.match(r"s32\[\]\S* (\d+)$", f"{own.type} {own.attributes}")
                ):
                    numbers.append(int(found[1]))
        return max(numbers, default=self._most)


def _is_true(product: Instruction) -> bool:
    if any(
        f"algorithm={name}" in product.attributes or f'"{name.upper()}"' in product.attributes.upper()
        for name in _TRUE_FLOAT32
    ):
        return True
    found = _PRECISION.search(product.attributes)
    return found is not None and set(re.findall(r"\w+", found[1].lower())) == {"highest"}


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:end], rest[end + 1 :]
    if opcode == "constant":
        return Instruction(name, opcode, kind, (), inside)
    return Instruction(name, opcode, kind, tuple(re.findall(r"%([\w.\-]+)", inside)), attributes)


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    return len(text)
