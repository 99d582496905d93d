import jax.numpy as jnp
import numpy as np
import pytest

from beacon_jax import LayerRule, QuantSpec
from beacon_jax.graph.model import Model


@pytest.fixture(scope="module")
def layers():
    """Dense first and last, experts between."""

    def apply(p, x):
        x = x @ p["first"]["kernel"]
        x = jnp.einsum("ebi,eio->ebo", jnp.stack([x, x]), p["experts"]["kernel"])
        return x.sum(0) @ p["last"]["kernel"]

    shapes = {"first": (4, 4), "experts": (2, 4, 4), "last": (4, 3)}
    params = {name: {"kernel": np.ones(shape, np.float32)} for name, shape in shapes.items()}
    model = Model(apply, params)
    model.add(np.ones((5, 4), np.float32))
    return model.layers


def chosen(found, **fields):
    return {name: (p.method, p.alphabet_name, p.options) for name, p in QuantSpec(**fields).plan(found).items()}


def test_everything_by_default(layers):
    assert list(chosen(layers)) == ["first", "experts", "last"]
    assert {layer.name: layer.kind for layer in layers} == {"first": "dense", "experts": "grouped", "last": "dense"}


def test_of_several_rules_the_last_counts(layers):
    rules = [
        LayerRule("first|last", alphabet="4"),
        {"kind": "grouped", "method": "rtn"},
        {"layers": "last/kernel", "alphabet": "8", "options": {"sweeps": 2}},
    ]
    plan = chosen(layers, options={"sweeps": 5}, rules=rules)
    assert plan == {
        "first": ("beacon", "4", {"sweeps": 5}),
        "experts": ("rtn", "2", {}),  # options of another method are not its own
        "last": ("beacon", "8", {"sweeps": 2}),
    }


def test_a_rule_reaches_beyond_the_layers_of_the_spec(layers):
    assert list(chosen(layers, layers="first", rules=[{"layers": "last"}])) == ["first", "last"]
    assert list(chosen(layers, rules=[{"layers": "first|last", "skip": True}])) == ["experts"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(layers="head"), r"no layer matches 'head'; the layers are first \(dense\), experts \(grouped\)"),
        (dict(rules=[{"kind": "conv"}]), r"no layer matches '\.\*' of kind conv"),
        (dict(rules=[{"skip": True}]), "the rules skip every layer"),
    ],
)
def test_what_matches_nothing(layers, fields, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**fields).plan(layers)


def test_skip_may_name_other_parameters(layers):
    spec = QuantSpec(rules=[{"layers": "norm/.*", "skip": True}])
    assert len(spec.plan(layers, ["norm/scale"])) == 3 and spec.names("norm/scale") and not spec.names("bias")
    with pytest.raises(ValueError, match="no layer matches 'norm/"):
        spec.plan(layers, ["bias"])
