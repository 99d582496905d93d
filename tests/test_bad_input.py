"""What `quantize` says of functions, parameters and batches that it cannot take: one sentence each, before any work."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from beacon_jax import Execution, LayerRule, QuantSpec, quantize, save_quantized
from beacon_jax.checkpoint import save_layer, save_params

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)}
BATCHES = [np.random.default_rng(1).normal(size=(10, 6)).astype(np.float32)]
SPEC = QuantSpec(method="rtn", alphabet="4")


def product(params, x):
    return x @ params["w"]


def refusal(apply, params=PARAMS, batches=BATCHES):
    """The message of the error, which must be one sentence of the user's own terms."""
    with pytest.raises((ValueError, TypeError)) as error:
        quantize(apply, params, batches, SPEC)
    message = str(error.value)
    assert "\n" not in message and 10 < len(message) < 600, message
    return message


def test_the_same_call_with_good_input_works():
    assert list(quantize(product, PARAMS, BATCHES, SPEC).layers) == ["w"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x, r"apply\(params, batch\)"),
        (lambda params, x, mask: x @ params["w"], r"apply\(params, batch\).*mask"),
        (lambda params, x, *, train: x @ params["w"], r"apply\(params, batch\)"),
        ("model", r"apply\(params, batch\).*str"),
        (None, r"apply\(params, batch\).*NoneType"),
    ],
    ids=["one", "three", "keyword", "text", "none"],
)
def test_no_function_of_params_and_batch(function, says):
    assert re.search(says, refusal(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda params, x: x + params["w"][0, 0],
        lambda params, x: jnp.zeros(3),
        lambda params, x: (x @ params["w"], None)[1],
        lambda params, x: {"mean": x.mean()},
    ],
    ids=["added", "constant", "nothing", "data"],
)
def test_outputs_that_depend_on_no_layer(function):
    assert re.search("no output.*depends", refusal(function))


def branches_on_data(params, x):
    return x @ params["w"] if x.sum() > 0 else x @ -params["w"]


def branches_on_params(params, x):
    return x @ params["w"] if (params["w"] > 0).any() else x


def computes_in_numpy(params, x):
    return np.tanh(np.asarray(x)) @ params["w"]


def reads_a_number(params, x):
    return x @ params["w"] * float(x.max())


def counts_by_data(params, x):
    for _ in range(int(x.sum())):
        x = x @ params["w"]
    return x


@pytest.mark.parametrize(
    "function", [branches_on_data, branches_on_params, computes_in_numpy, reads_a_number, counts_by_data]
)
def test_python_that_depends_on_data(function):
    assert re.search("Python|NumPy", refusal(function))


def prints(params, x):
    jax.debug.print("{}", x.sum())
    return x @ params["w"]


def calls_back(params, x):
    io_callback(lambda a: None, None, x)
    return x @ params["w"]


def test_side_effects():
    for function in (prints, calls_back):
        assert re.search("side effect", refusal(function))


def test_values_that_leave_the_function():
    """A batch of another length is traced anew, and then sees a value of the first trace."""
    kept = []

    def keeps(params, x):
        kept.append(x @ params["w"])
        return kept[-1] + kept[0][:1]

    assert re.search("an earlier call left behind", refusal(keeps, batches=[BATCHES[0], BATCHES[0][:8]]))


class TorchLike:
    """Looks like a torch.nn.Module: called with one array, holds its own weights."""

    def __init__(self):
        self.weight = np.ones((4, 6), np.float32)

    def state_dict(self):
        return {"weight": self.weight}

    def __call__(self, x):
        return x @ self.weight.T


def test_modules_of_other_frameworks():
    assert re.search("TorchLike", refusal(TorchLike()))
    assert re.search("TorchLike|type", refusal(TorchLike))


def test_an_equinox_module():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    assert re.search("Linear", refusal(module))
    mlp = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))  # holds functions beside its arrays
    message = refusal(lambda p, x: jax.vmap(p)(x), mlp)
    assert re.search("activation.*function|partition", message)


def test_a_haiku_transform():
    hk = pytest.importorskip("haiku")
    net = hk.transform(lambda x: hk.Linear(4)(x))
    params = jax.jit(net.init)(jax.random.key(0), BATCHES[0])
    assert re.search("Transformed", refusal(net, params))
    # apply of a transform that may draw random numbers takes them in between.
    assert re.search(r"apply\(params, batch\)", refusal(net.apply, params))


def test_a_bound_linen_method_and_variables_with_their_collection():
    net = nn.Dense(4)
    variables = jax.jit(net.init)(jax.random.key(0), BATCHES[0])
    assert re.search("params", refusal(net, variables))


@pytest.mark.parametrize(
    ("leaf", "says"), [(lambda x: x, "function"), ("relu", "str"), (object(), "object"), (3, "int"), (0.5, "float")]
)
def test_params_with_leaves_that_are_no_arrays(leaf, says):
    message = refusal(product, {**PARAMS, "extra": {"kind": leaf}})
    assert "extra/kind" in message and says in message


def test_no_params():
    assert refusal(lambda p, x: x, {})
    assert refusal(lambda p, x: x, None)


def test_batches_whose_structure_changes():
    pair = (BATCHES[0], np.ones(10, np.float32))
    named = {"x": BATCHES[0]}

    def apply(params, batch):
        return jax.tree.leaves(batch)[0] @ params["w"]

    for batches in ([BATCHES[0], pair], [named, BATCHES[0]], [named, {"y": BATCHES[0]}]):
        assert re.search("structure", refusal(apply, batches=batches))


def test_batches_of_another_width():
    assert re.search("6|shape", refusal(product, batches=[np.ones((10, 7), np.float32)]))
    assert re.search("6|shape", refusal(product, batches=[BATCHES[0], np.ones((10, 7), np.float32)]))


def test_batches_that_are_none():
    assert re.search("no batches|batch", refusal(product, batches=[]))
    assert re.search("batch|array", refusal(product, batches=["a sentence"]))
    assert re.search("finite|NaN|nan", refusal(product, batches=[np.full((10, 6), np.nan, np.float32)]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(rules=LayerRule("a")), "rules is a list of LayerRule or of dicts"),
        (dict(rules=None), "rules is a list of LayerRule or of dicts"),
        (dict(rules=[3]), "rules is a list of LayerRule or of dicts, got 3 in it"),
        (dict(options={1: 2}), "the name of an option is a string, got 1"),
        (dict(layers=["a"]), "layers is a regular expression, got"),
        (dict(rules=[LayerRule(["a"])]), "layers is a regular expression, got"),
        (dict(method=["rtn"]), "method is a name, got"),
        (dict(options=["x"]), "options is a dict, got"),
        (dict(rules=[{"kind": "linear"}]), "unknown kind 'linear'; expected one of dense, grouped, conv"),
    ],
)
def test_specs_of_other_types(fields, says):
    with pytest.raises(ValueError, match=says):
        QuantSpec(**fields)


def test_arguments_of_other_types():
    params = {"w": np.ones((6, 4), np.float32)}

    def apply(p, x):
        return x @ p["w"]

    for arguments, says in (
        ((params, BATCHES, {"method": "rtn"}), "expected a QuantSpec and an Execution, got dict and Execution"),
        ((params, None, SPEC), "expected batches to iterate over, got NoneType"),
    ):
        with pytest.raises(ValueError, match=says):
            quantize(apply, *arguments)
    with pytest.raises(ValueError, match="weights is a function of a batch, got ndarray"):
        quantize(apply, params, BATCHES, SPEC, weights=np.ones(10))
    with pytest.raises(ValueError, match="calibration batch 0 holds NaN or infinity"):
        quantize(apply, params, [np.full((9, 6), 1e300)], SPEC)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: save_quantized(path, None), "expected the QuantizedModel that quantize returned, got NoneType"),
        (lambda path: save_quantized(path, PARAMS), "expected the QuantizedModel that quantize returned, got dict"),
        (lambda path: save_layer(path, None, {}), "expected a QuantizedMatrix, got NoneType"),
        (lambda path: save_params(path, None), "there are no parameters to write, got NoneType"),
    ],
)
def test_what_is_to_be_written_is_something_else(tmp_path, write, says):
    with pytest.raises(ValueError, match=says):
        write(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_weights_that_leave_no_rows():
    with pytest.raises(ValueError, match="none of the 10 calibration examples gives layer w a row of positive weight"):
        quantize(product, PARAMS, BATCHES, SPEC, weights=lambda x: np.zeros(len(x)))


def test_kernels_are_for_one_device():
    spec, one = QuantSpec(options=dict(block="pallas")), np.eye(2, dtype=np.float32)
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"block='pallas' is for one device, and a mesh is given \(layer w\)"):
        quantize(lambda p, x: x @ p["w"], {"w": one}, [one], spec, execution=Execution(mesh=mesh))
