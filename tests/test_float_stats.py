import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import FloatStats, GramStats
from beacon_jax.float_stats import Fingerprint


def digest(*arrays):
    fingerprint = Fingerprint()
    for a in arrays:
        fingerprint.add([a])
    return fingerprint.digest()


def test_a_fingerprint_is_of_contents_types_shapes_and_order():
    a = np.arange(6, dtype=np.float32)
    assert digest(a) == digest(a.copy()) == digest(jnp.asarray(a))
    others = [digest(a + 1), digest(a.reshape(2, 3)), digest(a.astype(np.int32)), digest(a, a), digest(a[:3], a[3:])]
    others += [digest("a"), digest(a[::-1]), digest(a.view(np.int32)), digest(jnp.asarray(a, jnp.bfloat16))]
    assert len({digest(a), *others}) == len(others) + 1


def test_statistics_belong_to_one_fingerprint():
    shared = FloatStats()
    shared.belong_to("one")
    stats, other = (GramStats.zeros(3).update(jnp.full((2, 3), value)) for value in (1.0, 2.0))
    shared.add("layer", stats)
    shared.add("layer", other)  # the first are kept
    assert shared.get("layer") is stats and "layer" in shared and len(shared) == 1
    assert shared.get("another") is None and "another" not in shared
    shared.belong_to("one")
    with pytest.raises(ValueError, match="use a FloatStats of its own for each"):
        shared.belong_to("two")
