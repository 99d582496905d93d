import dataclasses

import numpy as np
import pytest

from beacon_jax.quant.methods.options import Options, option
from beacon_jax.quant.methods.table import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Options):
    passes: int = option(3, "how often", unit="passes", at_least=1)
    chunk: int | None = option(None, "at a time", at_least=1, decides_result=False)
    way: str = option("left", "which way", choices=("left", "right"))
    strict: bool = option(False, "whether")
    share: float = option(0.5, "how much", unit="of the whole", above=0)


def test_good_values():
    given = dict(passes=np.int64(5), chunk=7, way="right", strict=True, share=1)
    assert Example(**given) == Example(**given) and hash(Example(**given)) == hash(Example(**given))
    assert Example(**given).deciding() == dict(passes=5, way="right", strict=True, share=1)
    assert Example().deciding() == dict(passes=3, way="left", strict=False, share=0.5)
    assert Example(chunk=None).chunk is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(passes=0), "passes must be an integer of at least 1, got 0"),
        (dict(passes=2.5), "passes must be an integer of at least 1, got 2.5"),
        (dict(passes=[2]), r"passes must be an integer of at least 1, got \[2\]"),
        (dict(passes=True), "passes must be an integer of at least 1, got True"),
        (dict(passes=None), "passes must be an integer of at least 1, got None"),
        (dict(chunk=0), "chunk must be an integer of at least 1, got 0"),
        (dict(way="up"), "unknown way 'up'; expected one of left, right"),
        (dict(way=["left"]), r"unknown way \['left'\]; expected one of left, right"),
        (dict(strict="no"), "strict must be True or False, got 'no'"),
        (dict(strict=1), "strict must be True or False, got 1"),
        (dict(share=0.0), "share must be a finite number above 0, got 0.0"),
        (dict(share=float("nan")), "share must be a finite number above 0, got nan"),
        (dict(share="1"), "share must be a finite number above 0, got '1'"),
    ],
)
def test_bad_values(given, message):
    with pytest.raises(ValueError, match=message):
        Example(**given)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_option_says_what_it_is(method):
    for field in dataclasses.fields(method.options):
        assert field.metadata["help"]
        assert bool(field.metadata["unit"]) == (field.type in (int, float, int | None, float | None))
        assert bool(field.metadata["choices"]) == (field.type is str)
        if field.type in (int, int | None):
            assert field.metadata["at_least"] is not None
    assert method.rounding_only <= {"block_size", "block", "channel_chunk"}
    assert set(method.options().deciding()).isdisjoint(method.rounding_only)
