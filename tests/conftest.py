import hashlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # simulated ones, for meshes; all else runs on the first


def pytest_configure(config):
    """Compiled code is shared on disk between the test processes, and with the scripts that they run.

    Not between runs with different XLA_FLAGS: code for one set of instructions must not stand in for another's.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    folder = str(config.cache.mkdir("jax" if not flags else f"jax-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def _compiled_code_is_let_go(request):
    """Linux gives a process some 65,000 memory maps, and every compiled function takes some of them."""
    yield
    session = request.session
    session.tests_done = getattr(session, "tests_done", 0) + 1
    maps = Path("/proc/self/maps")
    if session.tests_done % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_quickly():
    """For files that take most of their time to compile, and of which no test is about how a solver is compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def torchvision_operators():
    """Lets torchvision, which both libraries import, load beside a torch that its build was not made for."""
    try:
        import torch
    except ImportError:
        yield
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets) -> Tensor"):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    yield
