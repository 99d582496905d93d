"""Trains a float model from scratch: python -m experiments.train --config=configs/digits.py

Writes the parameters to config.train.float_checkpoint and prints the test accuracy. The whole state is saved beside it
every config.train.save_every steps, and a run that was stopped goes on from there: same config, same result.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from flax.traverse_util import path_aware_map
from tqdm import tqdm

from beacon_jax import Execution, checkpoint
from beacon_jax.batches import content_digest
from beacon_jax.disk import disk_errors, replace_file, try_place
from beacon_jax.evaluate import Top1, evaluate
from beacon_jax.places import local_only
from experiments import common
from experiments.augment import AUGMENTATIONS
from experiments.locks import Lock
from experiments.networks import Network, create_network
from experiments.provenance import check_reuse, difference, machine
from experiments.tasks.images import batches


def make_optimizer(muon: Callable, train, params, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW, or Muon and AdamW for the rest; a cosine after a linear warm-up.

    `muon` maps path and value of a parameter to the dimensions that Muon takes it by, None where AdamW trains it.
    """

    def schedule(peak):
        warmup, total = round(train.warmup_epochs * steps_per_epoch), train.epochs * steps_per_epoch
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total)

    kernels = path_aware_map(lambda path, _: path[-1] == "kernel", params)
    if train.optimizer == "adamw":
        return optax.adamw(schedule(train.learning_rate), weight_decay=train.weight_decay, mask=kernels)
    if train.optimizer == "muon":
        return optax.contrib.muon(
            schedule(train.muon_learning_rate),
            weight_decay=train.weight_decay,
            consistent_rms=0.2,
            adam_learning_rate=schedule(train.learning_rate),
            muon_weight_dimension_numbers=path_aware_map(muon, params),
        )
    raise ValueError(f"unknown optimizer {train.optimizer!r}; expected adamw or muon")


def make_step(network: Network, optimizer, train):
    """The jitted step: (params, state, key, images, labels) → (params, state, loss).

    The state is what else changes from step to step: {"optimizer": …, "statistics": …}.
    """
    if train.augmentation not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {train.augmentation!r}; expected one of {', '.join(AUGMENTATIONS)}")
    augment = AUGMENTATIONS[train.augmentation]

    def loss_fn(params, statistics, images, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, network.classes), train.label_smoothing)
        logits, statistics = network.train(params, statistics, images)
        return optax.softmax_cross_entropy(logits, targets).mean(), statistics

    @jax.jit
    def step(params, state, key, images, labels):
        loss_and_grads = jax.value_and_grad(loss_fn, has_aux=True)
        images = augment(key, images, train)
        (loss, statistics), grads = loss_and_grads(params, state["statistics"], images, labels)
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], params)
        return optax.apply_updates(params, updates), {"optimizer": optimizer_state, "statistics": statistics}, loss

    return step


def fingerprint(config) -> str:
    """Of all that decides the training, wherever its files lie."""
    train = {key: v for key, v in config.train.to_dict().items() if key not in ("float_checkpoint", "save_every")}
    data = {key: config.data[key] for key in ("name", "preset", "on_unreadable")}
    decides = dict(seed=config.seed, model=config.model.name, data=data, train=train)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


class Progress:
    """The training in a file: parameters, the state of `make_step`, and the number of steps done.

    `made_with` is to hold, before it is loaded or saved, what else than the configuration decides the training (see
    provenance.py): with config.reuse "same" a state that was made with something else is refused.
    """

    def __init__(self, path: Path, config):
        check_reuse(config.reuse)
        self._path, self._fingerprint, self._reuse = path, fingerprint(config), config.reuse
        self.made_with: dict[str, str] = {}

    def load(self, params, state):
        """(params, state, steps done), as saved, or as given where there is nothing yet.

        ValueError for a damaged file, and for one of another training.
        """
        if not self._path.exists():
            return params, state, 0
        try:
            with disk_errors(self._path, "read"):
                saved = serialization.msgpack_restore(self._path.read_bytes())
            belongs, step, made_with = saved["config"] == self._fingerprint, int(saved["step"]), saved["made_with"]
            if belongs:
                params, state = serialization.from_state_dict((params, state), saved["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is damaged ({error}); remove it to start afresh") from error
        if not belongs:
            raise ValueError(f"{self._path} belongs to another configuration; remove it to start afresh")
        if made_with != self.made_with:
            said = f"{self._path} was made with {difference(made_with, self.made_with)}"
            if self._reuse == "same":
                raise ValueError(f"{said}; remove it to start afresh, or go on from it with --config.reuse=any")
            tqdm.write(f"{said}: taken, by --config.reuse=any")
        return *jax.tree.map(jnp.asarray, (params, state)), step

    def save(self, params, state, step: int) -> None:
        """Replaces the file in one atomic step."""
        whole = {
            "config": self._fingerprint,
            "made_with": self.made_with,
            "step": step,
            "state": jax.tree.map(np.asarray, serialization.to_state_dict((params, state))),
        }
        replace_file(self._path, lambda partial: partial.write_bytes(serialization.msgpack_serialize(whole)))

    def remove(self) -> None:
        """Deletes the file, which a finished training no longer needs."""
        self._path.unlink(missing_ok=True)


def fit(config, progress: Progress):
    """What the checkpoint is to hold, trained; goes on from where `progress` stands."""
    train = config.train
    for key in ("epochs", "batch_size", "save_every"):
        if train[key] < 1:
            raise ValueError(f"train.{key} must be at least 1, got {train[key]}")
    (batch,) = batches(config, "train", batch_size=10**9)
    images, labels = batch["image"], batch["label"]
    steps = len(labels) // train.batch_size
    if not steps:
        raise ValueError(f"train.batch_size={train.batch_size} exceeds the {len(labels)} training images")
    progress.made_with = {"data": content_digest([batch])[0][:16], **machine(Execution())}
    network = create_network(config.model.name)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params, statistics = network.init(init_key, images[:1])
    optimizer = make_optimizer(network.muon, train, params, steps)
    step = make_step(network, optimizer, train)
    params, state, done = progress.load(params, {"optimizer": optimizer.init(params), "statistics": statistics})
    with tqdm(desc="train", unit="step", initial=done, total=train.epochs * steps, disable=None) as bar:
        for number in range(done, train.epochs * steps):
            epoch, i = divmod(number, steps)
            if number == done or i == 0:
                order = np.random.default_rng((config.seed, epoch)).permutation(len(labels))
            chosen = order[i * train.batch_size : (i + 1) * train.batch_size]
            params, state, loss = step(params, state, jax.random.fold_in(key, number), images[chosen], labels[chosen])
            bar.update()
            if number % 50 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")
            if (number + 1) % train.save_every == 0:
                progress.save(params, state, number + 1)
    return network.variables(params, state["statistics"])


@contextlib.contextmanager
def place_for(config, *more: Path) -> Iterator[Path]:
    """The checkpoint's path, tried and locked, and the others tried. ValueError without one, OSError for the disk."""
    if not config.train.float_checkpoint:
        raise ValueError("--config.train.float_checkpoint is empty: where should the parameters go?")
    path = local_only(config.train.float_checkpoint, "--config.train.float_checkpoint")
    for tried in (path, training_path(path), *more):
        try_place(tried)
    lock = Lock(path.with_name(path.name + ".lock"), path, "config.train.float_checkpoint")
    try:
        yield path
    finally:
        lock.close()


def training_path(path: Path) -> Path:
    """Where the state of a checkpoint's training lies."""
    return path.with_name(path.name + ".training")


def main(_):
    config = common.get_config()
    with place_for(config) as path:
        network = create_network(config.model.name)
        test = batches(config, "test")
        progress = Progress(training_path(path), config)
        variables = fit(config, progress)
        checkpoint.save_params(path, variables, model=config.model.name)
        progress.remove()
    apply, params = network.inference(variables)
    forward = jax.jit(lambda params, batch: apply(params, batch["image"]))
    top1 = evaluate(functools.partial(forward, params), test, {"top1": Top1()})["top1"]
    print(f"top-1 {top1.value:.2f} ± {top1.stderr:.2f} % of {top1.count} test images; parameters in {path}")


if __name__ == "__main__":
    common.run(main)
