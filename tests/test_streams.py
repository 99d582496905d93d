import os

import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.streams import STORAGES, ActivationStream


@pytest.mark.parametrize("storage", STORAGES)
def test_append_iterate_put(rng, storage):
    batches = [[rng.normal(size=(n, 3)).astype(np.float32), rng.random(n) > 0.5, np.arange(2)] for n in (4, 4, 2)]
    with ActivationStream(storage) as stream:
        for batch in batches:
            stream.append(batch)
        for _ in range(2):  # it can be read again
            for read, batch in zip(stream, batches, strict=True):
                for a, b in zip(read, batch, strict=True):
                    np.testing.assert_array_equal(a, b)
                    assert a.dtype == b.dtype
        stream.put(1, [np.ones((2, 2)), np.float32(7)])
        assert [len(read) for read in stream] == [3, 2, 3]
        np.testing.assert_array_equal(stream[1][0], np.ones((2, 2)))
        assert stream[1][1] == 7 and stream[1][1].shape == ()
        np.testing.assert_array_equal(stream[2][0], batches[2][0])
        folder = stream._folder
        assert len(stream) == 3
    assert folder is None or not os.path.exists(folder.path)


@pytest.mark.parametrize("storage", STORAGES)
def test_bfloat16_survives(rng, storage):
    batch = jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16)
    with ActivationStream(storage) as stream:
        stream.append([batch])
        ((read,),) = stream
        assert read.dtype == jnp.bfloat16
        np.testing.assert_array_equal(read, batch)


def test_unknown_storage():
    with pytest.raises(ValueError, match="unknown storage 'tape' for activations; expected one of disk, memory"):
        ActivationStream("tape")
