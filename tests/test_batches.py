import numpy as np
import pytest

from beacon_jax.batches import Rebatched, content_digest, example_count, fingerprint, is_read_once, padded


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


def test_a_digest_of_all_that_is_read(rng):
    x, y = rng.normal(size=(10, 40, 3)).astype(np.float32), np.arange(10)

    def cut(x, y, size):
        return [{"x": x[i : i + size], "y": y[i : i + size]} for i in range(0, len(x), size)]

    digest, largest = content_digest(cut(x, y, 4))
    assert largest == 4 and content_digest(cut(x, y, 10)) == (digest, 10)
    one = x.copy()
    one[9, 39, 2] += 1e-3
    others = [cut(one, y, 4), cut(-x, y, 4), cut(x[::-1], y, 4), cut(x, y[::-1], 4), cut(x[:9], y[:9], 4)]
    others += [cut(x.reshape(10, 3, 40), y, 4), cut(x.view(np.int32), y, 4), [(x, y)]]
    assert len({digest, *(content_digest(other)[0] for other in others)}) == 1 + len(others)
