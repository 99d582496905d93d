"""Tunes the normalization layers of a quantized model, and nothing else, so that it matches the float model."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

LOSSES = {  # of the quantized model's logits and the target, which is the float model's logits, or labels for "ce"
    "kl": lambda logits, target: optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target)).mean(),
    "mse": lambda logits, target: jnp.square(logits - target).mean(),
    "ce": lambda logits, target: optax.losses.softmax_cross_entropy_with_integer_labels(logits, target).mean(),
}
OPTIMIZERS = {"adamw": optax.adamw, "lion": optax.lion, "sgd": lambda rate, weight_decay: optax.sgd(rate, 0.9)}


@dataclasses.dataclass(frozen=True)
class NormTuning:
    """How to tune.

    The paper's recipe is not public; COMQ (arXiv 2403.07134) runs Adam at 1e-4 with weight decay 1e-6 on the labels of
    the whole training set. The defaults here are for few unlabelled images.

    Attributes:
      loss: "kl", the Kullback-Leibler divergence from the float model's class probabilities; "mse" between the logits;
        "ce", cross-entropy with the labels.
      optimizer: a key of OPTIMIZERS; sgd has momentum 0.9 and no weight decay.
      learning_rate: its peak, at the start; it falls to zero as a cosine over `steps`.
      weight_decay: of the optimizer.
      steps: at most so many, one batch each.
      held_out: fraction of every batch that is not trained on but decides which step is best, in (0, 1).
      check_every: steps between two measurements on the held-out part.
      patience: stop after so many measurements without improvement.

    Raises:
      ValueError: an unknown name, or a number out of range.
    """

    loss: str = "kl"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    steps: int = 200
    held_out: float = 0.2
    check_every: int = 20
    patience: int = 3

    def __post_init__(self):
        for what, value, known in (("loss", self.loss, LOSSES), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r} of norm tuning; expected one of {', '.join(known)}")
        for what in ("steps", "check_every", "patience"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} of norm tuning must be at least 1, got {getattr(self, what)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out of norm tuning is a fraction between 0 and 1, got {self.held_out}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate of norm tuning must be positive, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class TunedNorms:
    """The parameters with tuned normalization layers, and the loss on the held-out images before and after.

    `step` is the step that the parameters are from (0: nothing was better), `steps` the number of steps done.
    """

    params: Any
    before: float
    after: float
    step: int
    steps: int

    def summary(self) -> dict[str, float]:
        """The numbers alone."""
        return dict(before=self.before, after=self.after, step=self.step, steps=self.steps)


def tune_norms(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    reference: Callable[[jax.Array], jax.Array],
    batches: Iterable[dict[str, np.ndarray]],
    tuning: NormTuning = NormTuning(),
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> TunedNorms:
    """Trains scale and bias of every normalization layer; all other parameters come back bit for bit.

    Args:
      apply: (parameters, images (B, …)) → logits (B, classes). Pass the same function for several models of one shape,
        and the training step compiles once.
      params: the quantized model's parameters; not modified.
      reference: the float model, images (B, …) → logits (B, classes). Its logits are computed once per image and kept
        (4 bytes per image and class).
      batches: dicts with image (B, …) and, for the loss "ce", label (B,); iterated again and again, so a list or a
        `data.Batches`, not a generator.
      tuning: the options.
      on_step: called after every step with its number and the loss of its batch.

    Raises:
      ValueError: no normalization layers, no batches, batches that can be read only once or have too few images to hold
        some out, or a model whose logits are not finite. A loss that is not finite later on counts as no improvement.
    """
    if iter(batches) is batches:
        raise ValueError("norm tuning reads its batches several times; pass a list or a data.Batches, not a generator")
    flat = flatten_dict(unfreeze(params))
    norms = {path: flat[path] for path in norm_paths(params)}
    rest = {path: value for path, value in flat.items() if path not in norms}
    targets: list[np.ndarray] = []

    def split_batches():
        """(images, targets) to train on and (images, targets) held out, of every batch."""
        for i, batch in enumerate(batches):
            if len(targets) <= i:
                targets.append(_target(batch, reference, tuning))
            count = len(targets[i])
            if count > 1:
                cut = count - max(1, round(tuning.held_out * count))
                yield (batch["image"][:cut], targets[i][:cut]), (batch["image"][cut:], targets[i][cut:])

    def held_out_loss(norms):
        losses = [(len(x), float(_loss(norms, rest, x, y, apply, tuning))) for _, (x, y) in split_batches()]
        if not losses:
            raise ValueError("norm tuning needs at least one batch of two images, to train on and to hold out")
        return sum(count * loss for count, loss in losses) / sum(count for count, _ in losses)

    before = best_loss = held_out_loss(norms)
    if not math.isfinite(before):
        raise ValueError("the logits of the model to be tuned are not all finite")
    best, best_step, state = norms, 0, _optimizer(tuning).init(norms)
    epochs = (split_batches() for _ in itertools.count())
    training = (part for part, _ in itertools.chain.from_iterable(epochs))
    for step, (images, target) in enumerate(itertools.islice(training, tuning.steps), 1):
        norms, state, loss = _step(norms, state, rest, images, target, apply, tuning)
        if on_step is not None:
            on_step(step, float(loss))
        if step % tuning.check_every == 0 or step == tuning.steps:
            measured = held_out_loss(norms)
            if measured < best_loss:
                best, best_loss, best_step = norms, measured, step
            elif step - best_step >= tuning.patience * tuning.check_every:
                break
    return TunedNorms(unflatten_dict(flat | best), before, best_loss, best_step, step)


def norm_paths(params: Any) -> list[tuple[str, ...]]:
    """Paths of the normalization layers' parameters: a Flax norm holds a scale, perhaps a bias, and nothing else.

    Raises:
      ValueError: there are none.
    """
    layers: dict[tuple[str, ...], set[str]] = {}
    for *layer, leaf in flatten_dict(unfreeze(params)):
        layers.setdefault(tuple(layer), set()).add(leaf)
    norms = {layer: leaves for layer, leaves in layers.items() if "scale" in leaves and leaves <= {"scale", "bias"}}
    paths = [(*layer, leaf) for layer, leaves in norms.items() for leaf in sorted(leaves)]
    if not paths:
        raise ValueError("the model has no normalization layers with a scale, so there is nothing to tune")
    return paths


def _target(batch, reference, tuning: NormTuning) -> np.ndarray:
    if tuning.loss != "ce":
        return np.asarray(reference(batch["image"]), np.float32)
    if "label" not in batch:
        raise ValueError("the loss 'ce' of norm tuning needs batches with labels")
    return np.asarray(batch["label"])


def _optimizer(tuning: NormTuning) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(tuning.learning_rate, tuning.steps)
    return OPTIMIZERS[tuning.optimizer](schedule, weight_decay=tuning.weight_decay)


@functools.partial(jax.jit, static_argnames=("apply", "tuning"))
def _loss(norms, rest, images, target, apply, tuning):
    return LOSSES[tuning.loss](apply(unflatten_dict(rest | norms), images), target)


@functools.partial(jax.jit, static_argnames=("apply", "tuning"))
def _step(norms, state, rest, images, target, apply, tuning):
    loss, grads = jax.value_and_grad(_loss)(norms, rest, images, target, apply, tuning)
    updates, state = _optimizer(tuning).update(grads, state, norms)
    return optax.apply_updates(norms, updates), state, loss
