import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import Execution
from beacon_jax.execution import FORWARD_DTYPES, run_in


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(forward_dtype="int8"), "unknown forward_dtype 'int8'; expected one of float32, bfloat16, float64"),
        (dict(forward_dtype="float64"), "forward_dtype='float64' needs double precision in JAX: set JAX_ENABLE_X64=1"),
        (dict(mesh=8), "mesh is a jax.sharding.Mesh, as make_mesh gives, or None, got 8"),
        (dict(folder=3), "folder is a path or None, got 3"),
        (dict(activations="tape"), "unknown activations 'tape'; expected one of disk, memory"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        Execution(**changes)


@pytest.mark.parametrize("dtype", FORWARD_DTYPES)
def test_a_model_runs_in_a_dtype(x64, rng, dtype):
    params, batch = (
        {"w": rng.normal(size=(40, 3)).astype(np.float32)},
        {"x": np.ones((2, 40), np.float32), "n": np.arange(2)},
    )

    def apply(p, b):
        assert b["n"].dtype == jnp.int64
        return jnp.asarray(b["x"]) @ p["w"]

    out = run_in(dtype, apply, params, batch)
    assert out.dtype == dtype
    exact = np.ones((2, 40)) @ params["w"].astype(np.float64)
    np.testing.assert_allclose(
        np.asarray(out, np.float64),
        exact,
        rtol={"bfloat16": 0.1}.get(dtype, 1e-5),
        atol=0.2 if dtype == "bfloat16" else 1e-5,
    )
    assert Execution(forward_dtype=dtype).cast == (None if dtype == "float32" else dtype)
