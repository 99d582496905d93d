import numpy as np
import pytest

from beacon_jax.batches import Rebatched, example_count, fingerprint, is_read_once, padded


def batches(sizes):
    start = 0
    for n in sizes:
        yield {"x": np.arange(start, start + n)[:, None], "all": np.float32(3)}
        start += n


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_rebatched_keeps_every_example_in_order(size):
    found = list(Rebatched(list(batches((4, 4, 3))), size))
    assert [len(b["x"]) for b in found[:-1]] == [size] * (len(found) - 1) and 1 <= len(found[-1]["x"]) <= size
    np.testing.assert_array_equal(np.concatenate([b["x"][:, 0] for b in found]), np.arange(11))
    assert all(b["all"] == 3 for b in found)


def test_a_short_batch_is_filled_up_with_its_last_example():
    (_, four), (last, two) = padded(batches((4, 2)))
    assert (four, two) == (4, 2)
    np.testing.assert_array_equal(last["x"][:, 0], [4, 5, 5, 5])
    assert last["all"] == 3


def test_generators_are_told_apart():
    assert is_read_once(batches((1,))) and not is_read_once(list(batches((1,)))) and not is_read_once(Rebatched([], 2))


def test_errors():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Rebatched([], 0)
    with pytest.raises(ValueError, match="a batch holds no examples"):
        example_count({"all": np.float32(1)})


def test_fingerprints_tell_batches_apart(rng):
    x = rng.normal(size=(5, 40, 30)).astype(np.float32)
    batch = {"x": x, "y": np.arange(5), "all": np.float32(1)}
    changed = x.copy()
    changed[3] = rng.normal(size=(40, 30))
    others = [
        {"x": x[::-1], "y": np.arange(5), "all": np.float32(1)},
        {**batch, "x": changed},
        {**batch, "x": x.astype(np.float64)},
        {**batch, "x": x.reshape(5, 30, 40)},
        {**batch, "y": np.arange(5)[::-1]},
        {**batch, "all": np.float32(2)},
        {"z": x, "y": np.arange(5), "all": np.float32(1)},
    ]
    assert len({fingerprint(b) for b in (batch, *others)}) == 1 + len(others)
    assert fingerprint(batch) == fingerprint({**batch, "x": np.asfortranarray(x)})
