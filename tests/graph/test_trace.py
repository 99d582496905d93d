import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from beacon_jax.graph.program import Unsupported, leaf_names
from beacon_jax.graph.stages import piece
from beacon_jax.graph.trace import trace

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
PARAMS = {"w": np.eye(4, dtype=np.float32) + 0.1, "b": np.ones((1, 4), np.float32)}


def evaluated(program, params, batch):
    whole = piece(program, program.inputs, program.outputs)
    leaves, given = jax.tree.leaves(params), jax.tree.leaves(batch)
    return whole(
        [jnp.asarray(leaves[v]) for v in whole.leaves],
        [jnp.asarray(given[v - len(leaves)]) for v in whole.given],
        [program.constants[v] for v in whole.constants],
    )


@jax.custom_jvp
def custom(x):
    return jax.nn.relu(x)


custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0]))


def scanned(p, x):
    return lax.scan(lambda c, _: (jnp.tanh(c @ p["w"]), c.sum()), x, None, length=3)


FUNCTIONS = {
    "plain": lambda p, x: x @ p["w"] + p["b"],
    "jit in jit": lambda p, x: jax.jit(lambda a: jax.jit(jnp.tanh)(a @ p["w"]))(x),
    "remat": lambda p, x: jax.checkpoint(lambda a: jnp.sin(a @ p["w"]))(x),
    "custom derivative": lambda p, x: custom(x @ p["w"]),
    "gelu and softmax": lambda p, x: jax.nn.softmax(jax.nn.gelu(x @ p["w"])),
    "scan": scanned,
    "fori": lambda p, x: lax.fori_loop(0, 3, lambda i, a: a @ p["w"] * i, x),
    "cond": lambda p, x: lax.cond(x.sum() > 0, lambda a: a @ p["w"], lambda a: a, x) + p["b"],
    "while": lambda p, x: lax.while_loop(lambda a: a.sum() < 50, lambda a: a + p["b"] ** 2, x),
    "vmap": lambda p, x: jax.vmap(lambda a: a @ p["w"])(x),
    "dict out": lambda p, x: {"a": x @ p["w"], "b": (x, 3.0)},
    "closed over": lambda p, x: (x * np.arange(4)[None, :]) @ p["w"] + jnp.asarray(X),
    "associative scan": lambda p, x: lax.associative_scan(jnp.add, x @ p["w"]),
    "sort": lambda p, x: jnp.sort(x @ p["w"], axis=-1)[:, ::-1],
    "repeated": lambda p, x: jnp.sin(x @ p["w"]) + jnp.sin(x @ p["w"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_equations_compute_what_the_function_does(name):
    apply = FUNCTIONS[name]
    program = trace(apply, PARAMS, X)
    wrappers = {"jit", "pjit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "scan"}
    assert not wrappers & {e.name for e in program.equations}
    outs = [v for v in program.outputs if isinstance(v, int)]
    expected = [a for a in jax.tree.leaves(apply(PARAMS, X)) if not isinstance(a, float)]
    values = evaluated(trace(lambda p, x: jax.tree.leaves(apply(p, x))[: len(outs)], PARAMS, X), PARAMS, X)
    for value, own in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, own, rtol=1e-6, atol=1e-6)


def test_equal_equations_are_kept_once_and_unused_ones_not_at_all():
    def apply(p, x):
        jnp.cos(x @ p["w"])
        return jnp.sin(x @ p["w"]) * jnp.sin(x @ p["w"])

    names = [e.name for e in trace(apply, PARAMS, X).equations]
    assert names == ["dot_general", "sin", "mul"]


def test_what_a_variable_depends_on():
    program = trace(lambda p, x: (x @ p["w"], p["b"] * 2, x * 2), PARAMS, X)
    leaves, data = program.depends
    product, double, scaled = program.outputs
    assert program.leaves == ("b", "w")
    assert (leaves[product], data[product]) == ({1}, True)
    assert (leaves[double], data[double]) == ({0}, False)
    assert (leaves[scaled], data[scaled]) == (frozenset(), True)


def test_products_are_true_float32_unless_another_type_is_asked_for(x64):
    def precision(dtype):
        program = trace(lambda p, x: x @ p["w"], PARAMS, X, dtype)
        (product,) = (e for e in program.equations if e.name == "dot_general")
        return product.params["precision"], program.avals[product.outputs[0]].dtype

    highest = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    assert precision(None) == (highest, jnp.float32)
    assert precision("float64") == (highest, jnp.float64)
    assert precision("bfloat16")[0] != highest and precision("bfloat16")[1] == jnp.bfloat16


def test_names_of_leaves():
    tree = {"a": [np.zeros(1), {"kernel": np.zeros(1)}], "b": (np.zeros(1),)}
    assert leaf_names(tree) == ["a/0", "a/1/kernel", "b/0"]


def printing(p, x):
    jax.debug.print("{}", x.sum())
    return x @ p["w"]


KEPT = []


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda p: p, r"expected a function apply\(params, batch\), but <lambda> takes \(p\)"),
        (lambda p, x, train: x, r"but <lambda> takes \(p, x, train\)"),
        ({"w": 1}, r"expected a function apply\(params, batch\), got dict"),
        (lambda p, x: x if x.sum() > 0 else -x, "decides in Python, or computes in NumPy, by values"),
        (lambda p, x: x @ np.asarray(p["w"]), "decides in Python, or computes in NumPy, by values"),
        (lambda p, x: x[: int(x.sum())], "decides in Python, or computes in NumPy, by values"),
        (printing, "has side effects .* remove debug prints and callbacks"),
    ],
)
def test_what_cannot_be_read(apply, message):
    with pytest.raises(Unsupported, match=message) as error:
        trace(apply, PARAMS, X)
    assert "\n" not in str(error.value)
