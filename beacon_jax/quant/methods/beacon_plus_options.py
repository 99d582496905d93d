"""The options of beacon_plus (beacon_plus.py says what its steps are), and which steps each effort takes."""

import dataclasses

from beacon_jax.quant.methods import beacon
from beacon_jax.quant.methods.options import option

STARTS = ("scan", "greedy")
MOST_RESIDUAL = 2.0  # 1 repairs all of the change
MOST_RIDGE = 1e6  # beyond it float32 knows nothing else
# With so few inputs good scales lie far apart, and a beam at many of them costs nothing.
FEW = 32


@dataclasses.dataclass(frozen=True)
class Effort:
    """Which of the costly steps are taken; `beam_scales` are of the scale found."""

    redecode: bool
    beam: int
    pairs: int
    beam_scales: tuple[float, ...] = (1.0, 1.1)


EFFORTS = {
    "fast": Effort(redecode=False, beam=0, pairs=0),
    "default": Effort(redecode=True, beam=8, pairs=0),
    "thorough": Effort(redecode=True, beam=16, pairs=2, beam_scales=(0.9, 1.0, 1.1, 1.2)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeaconPlusOptions(beacon.SizeOptions):
    """Options of beacon_plus. What is None follows from `effort`."""

    effort: str = option(
        "default", "fast, default or thorough: which of the costly steps are taken", choices=tuple(EFFORTS)
    )
    bias: bool = option(True, "let the layer's bias change, where it has one")
    ridge: float | None = option(
        None,
        "added to the diagonal of the statistics; None for inputs / (2 · rows)",
        unit="of the diagonal",
        at_least=0,
    )
    offset: bool = option(False, "an offset of each output channel: one more number to store")
    residual: float = option(
        0.0,
        "how much of the change of the residual stream a layer that is added to it is to repair",
        unit="of the change",
        at_least=0,
    )
    start: str = option("scan", "scan: decoded at several scales; greedy: as in Beacon", choices=STARTS)
    sweeps: int = option(6, "passes over the codes after each of the other steps, at most", unit="passes", at_least=0)
    redecode: bool | None = option(None, "decode again near the scale found")
    beam: int | None = option(None, "lanes of a beam, a power of two up to 64; 0 for no beam", unit="lanes", at_least=0)
    pairs: int | None = option(None, "rounds of moves of two codes", unit="rounds", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.beam and (self.beam & (self.beam - 1) or self.beam > 64):
            raise ValueError(f"beam must be 0 or a power of two up to 64, got {self.beam}")
        if self.ridge is not None and self.ridge > MOST_RIDGE:
            raise ValueError(f"ridge must be at most {MOST_RIDGE:g}, got {self.ridge!r}")
        if self.residual > MOST_RESIDUAL:
            raise ValueError(f"residual must be at most {MOST_RESIDUAL:g}, got {self.residual!r}")
        if self.residual and self.start == "greedy":
            raise ValueError(
                "start='greedy' knows nothing of a residual stream; with residual above 0 use start='scan'"
            )

    def frees_bias(self, has_bias: bool) -> bool:
        """Whether the bias is free: it is there, and is not to stay."""
        return self.bias and has_bias

    @property
    def reads_residual(self) -> bool:
        """Whether the change of the residual stream is aimed at."""
        return self.residual > 0

    def steps(self, inputs: int) -> Effort:
        """The costly steps for a layer of so many inputs, None filled in."""
        own = EFFORTS[self.effort]
        if inputs <= FEW and not own.beam:
            own = dataclasses.replace(own, beam=EFFORTS["default"].beam)
        given = {name: getattr(self, name) for name in ("redecode", "beam", "pairs")}
        return dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})
