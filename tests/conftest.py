import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


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
