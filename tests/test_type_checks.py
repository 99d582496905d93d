from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import beacon_jax
from beacon_jax import METHODS, GramStats, QuantizedMatrix
from beacon_jax.quant.metrics import cosines
from beacon_jax.quant.products import code_matmul
from tests.type_checks import MODULES

PACKAGE = Path(beacon_jax.__file__).parent
N, C = 5, 3


@pytest.fixture
def matrix():
    return QuantizedMatrix(jnp.ones((N, C), jnp.uint8), jnp.asarray([-1.0, 1.0]), jnp.ones(C))


@pytest.fixture
def stats(rng):
    return GramStats.zeros(N).update(jnp.asarray(rng.normal(size=(20, N)), jnp.float32))


def test_a_wrong_shape_or_dtype_is_caught(matrix, stats):
    with pytest.raises(jaxtyping.TypeCheckError, match=r"parameters of beacon_jax\.quant\.metrics\.cosines"):
        cosines(jnp.ones(N), matrix, stats)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'q'"):
        code_matmul(jnp.ones((N, N)), jnp.ones((C, N)))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'scale'"):
        QuantizedMatrix(matrix.codes, matrix.alphabet, jnp.ones(N))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'codes'"):
        QuantizedMatrix(matrix.codes.astype(jnp.float32), matrix.alphabet, matrix.scale)


def test_traced_arrays_are_checked(matrix, stats):
    def measure(kernel):
        return cosines(kernel, matrix, stats)

    assert jax.eval_shape(measure, jax.ShapeDtypeStruct((N, C), jnp.float32)).shape == (C,)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'kernel'"):
        jax.eval_shape(measure, jax.ShapeDtypeStruct((N,), jnp.float32))


def test_jax_makes_trees_of_what_it_likes(matrix):
    assert jax.tree.map(lambda a: a.ndim, matrix) == QuantizedMatrix(2, 1, 1)
    assert jax.tree.map(lambda a: a.sum(), matrix).codes.shape == ()


@pytest.mark.parametrize("checked", [True, False])
def test_users_are_told_in_the_functions_own_words(matrix, stats, monkeypatch, checked):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", not checked)
    kernel = np.ones((C, N), np.float32)
    with pytest.raises(ValueError, match=r"the statistics are for 5 inputs, but the kernel of shape \(3, 5\) has 3"):
        METHODS["rtn"](kernel, stats, "2")
    with pytest.raises(ValueError, match="x has width 3, but these statistics are for 5 inputs"):
        stats.update(jnp.ones((N, C)))
    with pytest.raises(ValueError, match=r"expected a kernel that is an array, .* got list and GramStats"):
        METHODS["rtn"](kernel.tolist(), stats, "2")


def test_without_the_checks_the_package_is_as_it_is(matrix, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert QuantizedMatrix(matrix.codes, matrix.alphabet, jnp.ones(N)).scale.shape == (N,)


def test_all_that_has_shapes_is_checked():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("beacon_jax", *path.relative_to(PACKAGE).with_suffix("").parts))
        if "from jaxtyping import" in path.read_text(encoding="utf-8"):
            assert any(f"{name}.".startswith(f"{module}.") for module in MODULES), name
