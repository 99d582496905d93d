"""The source of a user's own task."""

MODULE = '''
"""A network in plain JAX that predicts the next of a sequence of numbers; padded positions have mask 0."""
import jax
import jax.numpy as jnp
import numpy as np

from beacon_jax.evaluate import Mean, RelativeOutputError
from experiments.task import Task


def apply(params, batch):
    x = jax.nn.gelu(batch["x"] @ params["inner"]["w"] + params["inner"]["b"])
    x = params["norm"]["scale"] * (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    return {"next": x @ params["out"]}


def data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3, 6)).astype(np.float32)
    mask = (np.arange(3) < rng.integers(1, 4, size=(count, 1))).astype(np.float32)
    return [{"x": x[i : i + 16], "mask": mask[i : i + 16]} for i in range(0, count, 16)]


def loss(outputs, batch, _):
    return (jnp.square(outputs["next"]).mean(-1) * batch["mask"]).sum(1), batch["mask"].sum(1)


def task(config):
    keys = jax.random.split(jax.random.key(config.seed), 2)
    params = {
        "inner": {"w": jax.random.normal(keys[0], (6, 8)), "b": jnp.zeros((1, 1, 8))},
        "norm": {"scale": jnp.ones((1, 1, 8))},
        "out": jax.random.normal(keys[1], (8, 4)),
    }
    metrics = {"size": Mean(loss, title="Mean square", shown=".3f", better="lower")}
    metrics["error"] = RelativeOutputError(mask="mask", output="next")
    return Task(apply, params, data, data(40, 1000), metrics, weights=lambda batch: batch["mask"])


nothing = 3


def number(config):
    return 3
'''
