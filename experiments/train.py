"""Trains a float model from scratch: python -m experiments.train --config=configs/digits.py

Writes the parameters to config.train.float_checkpoint and prints the test accuracy. Same config, same result.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import path_aware_map
from jax.scipy.ndimage import map_coordinates
from tqdm import tqdm

from beacon_jax import checkpoint, data
from beacon_jax.evaluate import evaluate
from beacon_jax.models.vit import create_vit
from experiments import common


def augment(key, image, train):
    """A random shift, rotation and zoom of one image (H, W, c), bilinear, edges repeated."""
    shift_key, rotate_key, zoom_key = jax.random.split(key, 3)
    shift = jax.random.uniform(shift_key, (2, 1), minval=-train.shift, maxval=train.shift)
    angle = jnp.deg2rad(jax.random.uniform(rotate_key, (), minval=-train.rotate, maxval=train.rotate))
    zoom = 1 + jax.random.uniform(zoom_key, (), minval=-train.zoom, maxval=train.zoom)
    height, width, _ = image.shape
    centre = jnp.array([[(height - 1) / 2], [(width - 1) / 2]])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")).reshape(2, -1)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) * zoom
    source = turn @ (grid - centre) + centre + shift
    sample = functools.partial(map_coordinates, coordinates=list(source), order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).reshape(image.shape)


def make_step(model, optimizer, train):
    def loss_fn(params, images, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, model.classes), train.label_smoothing)
        return optax.softmax_cross_entropy(model.apply({"params": params}, images), targets).mean()

    @jax.jit
    def step(params, state, key, images, labels):
        images = jax.vmap(functools.partial(augment, train=train))(jax.random.split(key, len(images)), images)
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def main(_):
    config = common.get_config()
    train = config.train
    if not train.float_checkpoint:
        raise ValueError("--config.train.float_checkpoint is empty: where should the parameters go?")
    (batch,) = data.batches(config.data.name, "train", batch_size=10**9)
    images, labels = batch["image"], batch["label"]
    steps = len(labels) // train.batch_size
    model = create_vit(config.model.name)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(model.init)(init_key, images[:1])["params"]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, train.learning_rate, train.warmup_epochs * steps, train.epochs * steps
    )
    kernels = path_aware_map(lambda path, _: path[-1] == "kernel", params)
    optimizer = optax.adamw(schedule, weight_decay=train.weight_decay, mask=kernels)
    state = optimizer.init(params)
    step = make_step(model, optimizer, train)
    rng = np.random.default_rng(config.seed)
    for epoch in (bar := tqdm(range(train.epochs), desc="train", unit="epoch")):
        order = rng.permutation(len(labels))
        for i in range(steps):
            chosen = order[i * train.batch_size : (i + 1) * train.batch_size]
            step_key = jax.random.fold_in(key, epoch * steps + i)
            params, state, loss = step(params, state, step_key, images[chosen], labels[chosen])
        bar.set_postfix(loss=f"{loss:.3f}")
    predict = common.predictor(model)
    result = evaluate(predict(params), data.batches(config.data.name, "test", config.data.batch_size))
    checkpoint.save_params(train.float_checkpoint, params)
    print(f"top-1 {result.top1:.2f} % of {result.count} test images; parameters in {train.float_checkpoint}")


if __name__ == "__main__":
    common.run(main)
