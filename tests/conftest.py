import gc
import hashlib
import os
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

from tests import type_checks

# Before the package is imported: what its annotations say, shapes among them, is checked at every call.
jaxtyping.install_import_hook(type_checks.MODULES, f"{type_checks.__name__}.checked")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # simulated ones, for meshes; all else runs on the first

# Most of the time that the tests take is compilation: without LLVM's optimizations, and without a step through MLIR for
# every fused loop (a setting that later versions do not have), it takes a third of it.
QUICK_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
    parser.addoption("--optimized", action="store_true", help="compile as users do, not as quickly as can be")


def pytest_configure(config):
    """How code is compiled, by the tests and by the scripts that they run: quickly, but with --optimized as users do.

    Compiled code is shared on disk between all of these processes. Not between runs with different XLA_FLAGS: code for
    one set of instructions must not stand in for another's.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not config.getoption("optimized"):
        if QUICK_FLAGS not in flags:  # a process of xdist has them from the first one
            flags = f"{flags} {QUICK_FLAGS}".strip()
        os.environ |= {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "cache"):  # with -p no:cacheprovider
        return
    folder = str(config.cache.mkdir(f"jax-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _compiled_code_is_let_go(request):
    """Linux gives a process some 65,000 memory maps, and every compiled function takes some of them."""
    yield
    session = request.session
    session.tests_done = getattr(session, "tests_done", 0) + 1
    maps = Path("/proc/self/maps")
    if session.tests_done % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


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
