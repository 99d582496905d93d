import os

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.streams import STORAGES, ActivationStream


@pytest.mark.parametrize("storage", STORAGES)
def test_append_iterate_advance(rng, storage):
    batches = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 4, 2)]
    with ActivationStream(storage) as stream:
        for batch in batches:
            stream.append(batch)
        for _ in range(2):  # it can be read again
            for read, batch in zip(stream, batches, strict=True):
                np.testing.assert_array_equal(read, batch)
        stream.advance(lambda x: x[:, :2] + 1)
        for read, batch in zip(stream, batches, strict=True):
            np.testing.assert_array_equal(read, batch[:, :2] + 1)
        folder = stream._folder
        assert len(stream) == 3
    assert folder is None or not os.path.exists(folder.name)


@pytest.mark.parametrize("storage", STORAGES)
def test_bfloat16_survives(rng, storage):
    batch = jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16)
    with ActivationStream(storage) as stream:
        stream.append(batch)
        (read,) = stream
        assert read.dtype == jnp.bfloat16
        np.testing.assert_array_equal(read, batch)


def test_unknown_storage():
    with pytest.raises(ValueError, match="unknown storage 'tape' for activations; expected one of disk, memory"):
        ActivationStream("tape")
