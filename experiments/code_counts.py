"""How often each level is used by the codes of each layer."""

from collections.abc import Mapping, Sequence

import numpy as np

from beacon_jax import QuantizedModel

CodeCounts = dict[str, tuple[int, ...]]  # {layer: how many of its codes are of each level, in ascending order}


def code_counts(quantized: QuantizedModel) -> CodeCounts:
    """{layer: the number of its codes at each of its alphabet's levels} of all quantized layers."""
    return {
        name: tuple(np.bincount(np.asarray(matrix.codes).ravel(), minlength=len(matrix.alphabet)).tolist())
        for name, matrix in quantized.layers.items()
    }


def read_counts(stored: Mapping[str, Sequence[int]] | None) -> CodeCounts:
    """The counts as a line has them, none for lines from before there were any."""
    return {layer: tuple(counts) for layer, counts in (stored or {}).items()}


def entropy(counts: Sequence[int]) -> float:
    """Σ −p log₂ p of the shares p of the levels, in bits: what a code costs where they are coded by their frequency."""
    shares = np.asarray([count for count in counts if count], np.float64) / sum(counts)
    return float(-(shares * np.log2(shares)).sum() + 0.0)  # no −0
