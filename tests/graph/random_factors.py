"""Folds with factors drawn at random: whatever they are, the function must stay the same."""

import jax
import numpy as np

from beacon_jax.graph.factor_rules import NONE
from beacon_jax.graph.folds import find_folds
from beacon_jax.graph.model import Model


def folds_of(apply, params, batch):
    """The folds for all layers, and the model."""
    model = Model(apply, params)
    model.add(batch)
    return find_folds(model.first.program, model.layers, model.layers), model


def with_random_factors(found, params, rng):
    """The parameters with every fold's factors drawn between 1/4 and 4."""
    leaves, structure = jax.tree.flatten(params)
    leaves = list(map(np.asarray, leaves))

    def scale(layer, factors):
        kernel = layer.place.read(leaves[layer.leaf])
        leaves[layer.leaf] = layer.place.write(leaves[layer.leaf], kernel * factors)

    for fold in found.folds:
        r = np.append(4 ** rng.uniform(-1, 1, fold.count), 1)
        if fold.column:
            scale(fold.column[0], r[fold.column[1]][..., None, :])
        for leaf, labels in fold.leaves.items():
            leaves[leaf] = (leaves[leaf] * r[labels]).astype(leaves[leaf].dtype)
        for layer, labels in fold.rows:
            assert (labels != NONE).any()
            scale(layer, 1 / r[labels][..., None])
    return jax.tree.unflatten(structure, leaves)
