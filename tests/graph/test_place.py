import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.graph.place import Place, part_of

CASES = {  # a leaf's shape, and its kernel as a function of it
    "matrix": ((4, 6), lambda a: a),
    "transposed": ((4, 6), lambda a: a.T),
    "slice of a stack": ((3, 4, 6), lambda a: a[1]),
    "columns": ((4, 6), lambda a: a[:, 2:5]),
    "two contracted axes": ((2, 3, 5), lambda a: a.reshape(6, 5)),
    "contracted axes apart": ((2, 5, 3), lambda a: a.transpose(0, 2, 1).reshape(6, 5)),
    "reversed": ((4, 6), lambda a: a[::-1]),
    "every second row": ((4, 6), lambda a: a[::2]),
    "groups": ((3, 4, 6), lambda a: a),
    "groups in the middle": ((4, 3, 6), lambda a: a.transpose(1, 0, 2)),
    "one output": ((4,), lambda a: a[:, None]),
    "one element": ((1, 1), lambda a: a),
    "convolution": ((3, 3, 4, 6), lambda a: a.transpose(2, 0, 1, 3).reshape(36, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_reads_and_writes_what_numpy_does(case, rng):
    shape, kernel_of = CASES[case]
    leaf = rng.normal(size=shape).astype(np.float32)
    place = Place.of(kernel_of(np.arange(leaf.size).reshape(shape)))
    expected = kernel_of(leaf)
    assert place.shape == expected.shape
    np.testing.assert_array_equal(place.read(leaf), expected)
    new = rng.normal(size=expected.shape)
    written = place.write(leaf, new)
    assert written.dtype == leaf.dtype and written is not leaf
    np.testing.assert_array_equal(kernel_of(written), new.astype(np.float32))
    untouched = np.ones(leaf.size, bool)
    untouched[place.indices().reshape(-1)] = False
    np.testing.assert_array_equal(written.reshape(-1)[untouched], leaf.reshape(-1)[untouched])
    assert place.bounds == (place.indices().min(), place.indices().max())
    put = place.put(jnp.asarray(leaf.reshape(-1)), jnp.asarray(new, jnp.float32))
    np.testing.assert_array_equal(put, written.reshape(-1))


def test_boxes_are_put_without_an_index_for_each_element():
    for case, (shape, kernel_of) in CASES.items():
        leaf = jnp.zeros(shape).reshape(-1)
        place = Place.of(kernel_of(np.arange(leaf.size).reshape(shape)))
        put = str(jax.make_jaxpr(place.put)(leaf, jnp.ones(place.shape)))
        assert ("scatter" in put) == (case == "reversed")


def test_what_is_no_place():
    mixed = np.arange(24).reshape(4, 6)[:, :5].reshape(5, 4)  # rows and columns mixed
    assert Place.of(mixed) is None
    assert Place.of(np.array([[0, 1], [2, 5]])) is None


def test_random_compositions_are_found(rng):
    """Transposes, slices and splits of a box of any shape, compared with the same on an array."""
    for _ in range(200):
        shape = tuple(rng.integers(1, 5, size=rng.integers(2, 5)))
        a = np.arange(np.prod(shape)).reshape(shape)
        a = a.transpose(rng.permutation(a.ndim))
        a = a[tuple(slice(int(rng.integers(0, n)), None) for n in a.shape)]
        cut = int(rng.integers(1, a.ndim))
        kernel = a.reshape(int(np.prod(a.shape[:cut])), -1)
        place = Place.of(kernel)
        np.testing.assert_array_equal(place.indices().reshape(kernel.shape), kernel)
        assert place.bounds == (kernel.min(), kernel.max())


def test_parts_have_names():
    a = np.arange(60).reshape(3, 4, 5)
    cases = {
        "": a,
        "[1]": a[1],
        "[:,0:2]": a[:, :2],
        "[2,1:3]": a[2, 1:3],
        "[:,:,4]": a[..., 4],
        "[0…3]": a[0, 0, [0, 3]],
    }
    for name, part in cases.items():
        assert part_of(part, a.shape) == name
    names = [part_of(a[i, j], a.shape) for i, j in itertools.product(range(3), range(4))]
    assert len(set(names)) == 12
