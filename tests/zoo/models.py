"""All models of the zoo, by name."""

from tests.zoo import linen_attention, linen_basic, linen_conv, linen_lifted, linen_recurrent, nnx_models, other
from tests.zoo.registry import MODELS

FILES = (linen_basic, linen_conv, linen_attention, linen_recurrent, linen_lifted, nnx_models, other)

__all__ = ["MODELS"]
