import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax.norms import norm_paths


def tree(**shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


TREE = {
    "a": {"norm": tree(scale=4, bias=4), "fc": tree(kernel=(4, 4), bias=4)},
    "bn": tree(scale=4, bias=4, mean=4, var=4),
    "haiku": tree(scale=4, offset=4),
    "equinox": [tree(weight=4, bias=4), tree(weight=(4, 4), bias=4), tree(weight=(9, 4))],
    "out": tree(scale=4),
    "scaled": tree(scale=4, kernel=(4, 4)),
    "other": tree(scale=1, bias=4),
    "whole": {"scale": np.arange(4)},
}


def test_norms_are_found_by_their_parameters():
    assert norm_paths(TREE) == [
        "a/norm/bias", "a/norm/scale", "bn/bias", "bn/scale", "equinox/0/bias", "equinox/0/weight",
        "haiku/offset", "haiku/scale", "out/scale"]  # fmt: skip


def test_they_may_be_named():
    assert norm_paths(TREE, r".*/scale") == [
        "a/norm/scale", "bn/scale", "haiku/scale", "other/scale", "out/scale", "scaled/scale"]  # fmt: skip
    assert norm_paths(TREE, ["out/scale", "a/fc/bias"]) == ["a/fc/bias", "out/scale"]


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (None, "no normalization layers to tune: no module of one scale.* among .* fc/bias, fc/kernel$"),
        ("norm.*", "no path that matches 'norm.*' among the floating-point parameters fc/bias, fc/kernel"),
        ("(", "norms='\\(' is not a regular expression"),
        (["norm/scale"], "names the parameter 'norm/scale', which is none of fc/bias, fc/kernel, steps"),
        (["steps"], "names the parameter 'steps', which is not floating point"),
        ([], "no path given"),
    ],
)
def test_nothing_found(norms, message):
    with pytest.raises(ValueError, match=message):
        norm_paths({"fc": tree(kernel=(4, 4), bias=4), "steps": jnp.arange(2)}, norms)


def test_parameters_must_be_arrays():
    with pytest.raises(ValueError, match="pytree of arrays, but act is a function"):
        norm_paths({"act": lambda x: x})
