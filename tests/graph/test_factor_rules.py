import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from beacon_jax.graph.factor_rules import NONE, carries, carry, lined_up, thin
from beacon_jax.graph.trace import trace

FACTORS = np.array([0.5, 3.0, 0.25, 7.0, 1.5, 2.5])


def along(axis, shape, labels):
    """Labels that go with one axis."""
    wide = np.array(labels).reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    return np.broadcast_to(wide, shape)


def followed(function, operands, labels):
    """Labels of the output, and all labels that were lost."""
    program = trace(lambda p, batch: function(*batch), {}, operands)
    known, lost = dict(zip(program.inputs, labels, strict=True)), set()
    for equation in program.equations:
        own = [known.get(a) if isinstance(a, int) else None for a in equation.inputs]
        if any(o is not None for o in own):
            sizes = [np.shape(a.value) if not isinstance(a, int) else program.avals[a].shape for a in equation.inputs]
            shapes = [program.avals[v].shape for v in equation.outputs]
            made, stopped = carry(equation, own, sizes, shapes)
            assert all(m is None or m.shape == s for m, s in zip(made, shapes, strict=True))
            known |= dict(zip(equation.outputs, made, strict=True))
            lost |= {int(label) for one in stopped for label in np.unique(one)} - {NONE}
    (output,) = program.outputs
    found = known.get(output)
    return np.full(program.avals[output].shape, NONE) if found is None else found, lost


FEATURES = along(-1, (2, 3, 4), [0, 1, 2, 3])
HEADS = along(-2, (2, 3, 4), [0, NONE, 1])
EACH = np.arange(24).reshape(2, 3, 4) % 7 - 1
CASES = {  # name: function, labels of the first operand, of the second or None, labels lost
    "move": (lambda a: a.transpose(2, 0, 1).reshape(4, 6)[::-1], EACH, None, set()),
    "repeat": (lambda a: jnp.repeat(a[:, :, None], 2, 2).reshape(2, 6, 4), EACH, None, set()),
    "split": (lambda a: jnp.stack(jnp.split(a, 2, -1))[1], EACH, None, set()),
    "cast and sign": (lambda a: -a.astype(jnp.float16).astype(jnp.float32), EACH, None, set()),
    "scaled": (lambda a: a * 3 / 7, EACH, None, set()),
    "times data": (lambda a, b: a * b[:1], EACH, None, set()),
    "two factors": (lambda a, b: a * b, HEADS, FEATURES, {0, 1, 2, 3}),
    "divided": (lambda a, b: a / b, EACH, None, set()),
    "divides": (lambda a, b: b / a, FEATURES, None, {0, 1, 2, 3}),
    "added alike": (lambda a, b: a - b, EACH, EACH, set()),
    "added unlike": (lambda a, b: a + b, FEATURES, along(-1, (2, 3, 4), [0, 1, 3, NONE]), {2, 3}),
    "added to data": (lambda a, b: a + b, HEADS, None, {0, 1}),
    "chosen alike": (lambda a, b: jnp.where(np.arange(4)[None, None] > 1, a, b), EACH, EACH, set()),
    "chosen unlike": (lambda a, b: jnp.where(np.arange(4)[None, None] > 1, a, b), FEATURES, None, {0, 1, 2, 3}),
    "summed over others": (lambda a: a.sum((0, 1)), FEATURES, None, set()),
    "summed over": (lambda a: a.sum(-1), FEATURES, None, {0, 1, 2, 3}),
    "summed over in part": (lambda a: a.sum(-1), along(1, (2, 3, 4), [0, 1, NONE]), None, set()),
    "joined": (lambda a, b: jnp.concatenate([b, a], -1), FEATURES, None, set()),
    "stacked": (lambda a, b: jnp.stack([a, b], 1)[:, 0], EACH, None, set()),
    "cut": (lambda a: lax.dynamic_slice(a, (1, 1, 0), (1, 2, 4)), FEATURES, None, set()),
    "cut along": (lambda a: lax.dynamic_slice(a, (1, 1, 1), (1, 2, 2)), FEATURES, None, {0, 1, 2, 3}),
    "mixed positions": (lambda a, b: jnp.einsum("bqd,bkd,bke->bqe", b, b, a), FEATURES, None, set()),
    "two kinds of groups": (lambda a, b: jnp.einsum("hxd,hyd->xdy", a, b), FEATURES, None, set()),
    "groups": (lambda a, b: jnp.einsum("btd,bsd->dts", a, b), FEATURES, None, set()),
    "the second": (lambda a, b: jnp.einsum("btd,bsd->dts", b, a), FEATURES, None, set()),
    "contracted": (lambda a, b: jnp.einsum("btd,bsd->bts", a, b), FEATURES, None, {0, 1, 2, 3}),
    "one in each": (lambda a, b: jnp.einsum("btd,bsd->bts", a, b), HEADS, HEADS, {0, 1}),
    "exp": (lambda a: jnp.exp(a), FEATURES, None, {0, 1, 2, 3}),
    "relu": (lambda a: jax.nn.relu(a), EACH, None, set()),
    "leaky relu": (lambda a: jax.nn.leaky_relu(a), EACH, None, set()),
    "below 0": (lambda a: jnp.minimum(0, a), EACH, None, set()),
    "relu6": (lambda a: jax.nn.relu6(a), HEADS, None, {0, 1}),
    "compared": (lambda a, b: jnp.where(a > 0.5, b, 2 * b), HEADS, HEADS, {0, 1}),
    "larger alike": (lambda a, b: jnp.maximum(a, b), EACH, EACH, set()),
    "larger unlike": (lambda a, b: jnp.maximum(a, b), HEADS, None, {0, 1}),
    "largest": (lambda a: jnp.stack([a.max(1), a.min(1)]), FEATURES, None, set()),
    "largest of": (lambda a: a.max(-1), FEATURES, None, {0, 1, 2, 3}),
    "pooled": (lambda a: nn.max_pool(a, (2,), (1,), "SAME") + nn.avg_pool(a, (2,), (1,), "SAME"), FEATURES, None,
               set()),
    "pooled over": (lambda a: nn.max_pool(a, (2,), (1,)), HEADS, None, {0, 1}),
    "to integers": (lambda a: a.astype(int), HEADS, None, {0, 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_for_multiplied_operands(case, rng):
    function, *labels, expected = case
    operands = [rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(function.__code__.co_argcount)]
    labels = labels[: len(operands)]
    made, lost = followed(function, operands, labels)
    assert lost == expected
    assert expected or (made != NONE).any()
    # With 1 for the lost ones the function does carry the factors.
    r = np.array([1.0 if i in lost else factor for i, factor in enumerate(FACTORS)] + [1.0])
    scaled = [a if own is None else (a * r[own]).astype(np.float32) for a, own in zip(operands, labels, strict=True)]
    np.testing.assert_allclose(function(*scaled), function(*operands) * r[made], rtol=2e-3)


def test_labels_stay_small_however_many_rows(rng):
    shape = (1000, 200, 64)
    program = trace(lambda p, x: (x.reshape(-1, 64) * 2).reshape(1000, 200, 4, 16), {}, np.zeros(shape, np.float32))
    labels = along(-1, shape, np.arange(64))
    for equation in program.equations:
        operands = [labels, None][: len(equation.inputs)]
        ((labels,), _) = carry(equation, operands, [], [program.avals[v].shape for v in equation.outputs])
    assert labels.shape == (1000, 200, 4, 16) and thin(labels)[0].shape == (1, 1, 4, 16)


def test_lined_up():
    labels = np.array([[0, 0, NONE], [1, 2, 1], [3, 3, 3]])
    first, lost = lined_up(labels, (1,))
    np.testing.assert_array_equal(first, [[NONE], [NONE], [3]])
    assert set(lost.tolist()) == {0, 1, 2, NONE}


def test_what_carries():
    program = trace(lambda p, x: jnp.exp(x.T) * 2, {}, np.zeros((2, 3), np.float32))
    assert {e.name: carries(e) for e in program.equations} == {"transpose": True, "exp": False, "mul": True}
