"""Names of chips to compile for."""

import importlib.util

import jax
import pytest

from experiments.targets import CHIPS, EXAMPLES, find_target


def test_the_devices_that_there_are():
    for name, count in (("cpu", 1), ("cpu:8", 8)):
        target = find_target(name)
        assert list(target.devices) == jax.devices("cpu")[:count] and target.name == name


@pytest.mark.parametrize(
    "name", ["", "h1000", "v5e:2x", "v5e:x2", "v5e:-1", "V5E", "cpu 1", "cpu:0", "h100:0", "v5e:2x0"]
)
def test_unknown_chips(name):
    with pytest.raises(ValueError, match=f"unknown target {name!r}; expected a chip of {', '.join(CHIPS)}, such as"):
        find_target(name)


@pytest.mark.parametrize("name", ["cpu:9", "cpu:2x2"])
def test_more_devices_than_there_are(name):
    with pytest.raises(ValueError, match=f"'{name}' is not 1 to 8 of the devices that there are"):
        find_target(name)


@pytest.mark.parametrize(("name", "package"), [("v5e:2x2", "jax[tpu]"), ("h100", "jax[cuda12]")])
def test_a_missing_compiler_is_one_sentence(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ImportError) as raised:
        find_target(name)
    said = f"compiling for {name} takes the compiler of its chip: pip install {package}=={jax.__version__}"
    assert str(raised.value) == said


def test_examples_name_chips():
    assert {name.split(":")[0] for name in EXAMPLES.split(", ")} <= CHIPS.keys()
    assert all(chip.platform == "cpu" or chip.memory > 10**10 for chip in CHIPS.values())
