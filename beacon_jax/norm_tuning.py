"""Tunes the normalization layers of a quantized model, and nothing else, so that it matches the float model."""

import dataclasses
import functools
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from beacon_jax.batches import is_read_once
from beacon_jax.graph.program import leaf_names
from beacon_jax.leaves import as_jax_arrays
from beacon_jax.metrics.base import Key, floats, pick
from beacon_jax.norms import norm_paths
from beacon_jax.tuning_data import TuningData, weights_over


def _kl(outputs, target):
    return optax.losses.kl_divergence(jax.nn.log_softmax(outputs), jax.nn.softmax(target))


def _mse(outputs, target):
    squares = jnp.square(outputs - target)
    return squares.mean(-1) if squares.ndim > 1 else squares


def _ce(outputs, target):
    # Where the weight is 0 a label may be anything, and stands for class 0 if negative.
    return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(target, 0))


# Of the quantized model's outputs (B, …, classes or features) and the target, which is the float model's outputs, or
# labels (B, …) for "ce"; by position (B, …).
LOSSES = {"kl": _kl, "mse": _mse, "ce": _ce}
OPTIMIZERS = {"adamw": optax.adamw, "lion": optax.lion, "sgd": lambda rate, weight_decay: optax.sgd(rate, 0.9)}


@dataclasses.dataclass(frozen=True)
class NormTuning:
    """How to tune.

    The paper's recipe is not public; COMQ (arXiv 2403.07134) runs Adam at 1e-4 with weight decay 1e-6 on the labels of
    the whole training set. The defaults here are for few unlabelled examples.

    Attributes:
      loss: "kl", the Kullback-Leibler divergence from the float model's class probabilities, of logits (B, …, classes);
        "mse" between the outputs; "ce", cross-entropy of logits with labels (B, …).
      optimizer: a key of OPTIMIZERS; sgd has momentum 0.9 and no weight decay.
      learning_rate: its peak, at the start; it falls to zero as a cosine over `steps`.
      weight_decay: of the optimizer.
      steps: at most so many, one batch each.
      held_out: fraction of every batch that is not trained on but decides which step is best, in (0, 1).
      check_every: steps between two measurements on the held-out part.
      patience: stop after so many measurements without improvement.
      output: key of what the loss is of in the outputs; None for the outputs themselves, of which "mse" takes the sum
        over several arrays.
      label: key of the labels in a batch, for "ce".

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
    output: Key = None
    label: Key = "label"

    def __post_init__(self):
        for what, value, known in (("loss", self.loss, LOSSES), ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r} of norm tuning; expected one of {', '.join(known)}")
        for what in ("steps", "check_every", "patience"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{what} of norm tuning must be an integer of at least 1, got {value!r}")
        for what in ("held_out", "learning_rate", "weight_decay"):
            value = getattr(self, what)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real or not 0 <= value < math.inf:
                raise ValueError(f"{what} of norm tuning must be a finite number of at least 0, got {value!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out of norm tuning is a fraction between 0 and 1, got {self.held_out}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate of norm tuning must be positive, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True)
class TunedNorms:
    """The parameters with tuned normalization layers, and the loss on the held-out examples before and after.

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
    apply: Callable[[Any, Any], Any],
    params: Any,
    reference: Callable[[Any], Any],
    batches: Iterable[Any],
    tuning: NormTuning = NormTuning(),
    *,
    norms: str | Sequence[str] | None = None,
    weights: Callable[[Any], Any] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TunedNorms:
    """Trains scale and bias of every normalization layer; all other parameters come back bit for bit.

    Args:
      apply: (params, batch) → outputs, pytrees whose first axis counts the B examples. Pass the same function for
        several models of one shape, and the training step compiles once.
      params: the quantized model's parameters, a pytree of arrays; not modified.
      reference: the float model, batch → outputs. They are computed once per batch and kept (4 bytes per number).
      batches: pytrees of arrays of B examples; iterated again and again, so a list or the like, not a generator, and
        always the same in the same order, since each is matched to the float model's outputs of the first time.
      tuning: the options.
      norms: which parameters are trained; a regular expression over paths such as blocks_0/norm1/scale, or paths; None
        for those that `norms.norm_paths` finds.
      weights: batch → (B,) or (B, T, …), the weight of each example, or of each position; 0 for padding. Where outputs
        have fewer axes, an example counts by its largest weight.
      on_step: called after every step with its number and the loss of its batch.

    Raises:
      ValueError: nothing to tune; no batches, batches that can be read only once, are others the next time, or have too
        few examples to hold some out; outputs or labels that do not fit the loss; weights that do not fit; outputs that
        are not finite. A loss that is not finite later on counts as no improvement.
    """
    if is_read_once(batches):
        raise ValueError("norm tuning reads its batches several times; pass a list or the like, not a generator")
    static = Training.of(apply, params, tuning, norms)
    parts, rest = static.split(params)
    names = [leaf_names(params)[i] for i in static.places]
    tuned = as_jax_arrays(dict(zip(names, parts, strict=True)))
    parts = [tuned[name] for name in names]
    data = TuningData(
        batches,
        reference,
        lambda batch: apply(params, batch),
        weights,
        held_out=tuning.held_out,
        output=tuning.output,
        label=tuning.label,
        labelled=tuning.loss == "ce",
    )

    def loss_of(parts):
        found = [map(float, held_out_loss(parts, rest, example, static)) for _, example in data.split()]
        losses = [(loss, amount) for loss, amount in found if amount > 0]
        if not losses:
            raise ValueError(
                "norm tuning needs at least one batch of two examples of positive weight, to train on and to hold out"
            )
        return sum(amount * loss for loss, amount in losses) / sum(amount for _, amount in losses)

    before = best_loss = loss_of(parts)
    if not math.isfinite(before):
        raise ValueError("the outputs of the model to be tuned, or of the float model, are not all finite")
    best, best_step, state = parts, 0, static.begin(parts)
    epochs = (data.split() for _ in itertools.count())
    training = (part for part, _ in itertools.chain.from_iterable(epochs))
    for step, example in enumerate(itertools.islice(training, tuning.steps), 1):
        parts, state, loss = training_step(parts, state, rest, example, static)
        if on_step is not None:
            on_step(step, float(loss))
        if step % tuning.check_every == 0 or step == tuning.steps:
            measured = loss_of(parts)
            if measured < best_loss:
                best, best_loss, best_step = parts, measured, step
            elif step - best_step >= tuning.patience * tuning.check_every:
                break
    return TunedNorms(static.params(best, rest), before, best_loss, best_step, step)


@dataclasses.dataclass(frozen=True)
class Training:
    """What training steps are compiled for: which leaves of the parameters are trained, and how."""

    apply: Callable[[Any, Any], Any]
    structure: Any
    places: tuple[int, ...]
    tuning: NormTuning

    @classmethod
    def of(cls, apply: Callable[[Any, Any], Any], params: Any, tuning: NormTuning, norms: Any = None) -> "Training":
        """Of the normalization layers; arguments and errors as `tune_norms`, of `params` the shapes count."""
        chosen = set(norm_paths(params, norms))
        places = tuple(i for i, path in enumerate(leaf_names(params)) if path in chosen)
        return cls(apply, jax.tree.structure(params), places, tuning)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the parts that are trained."""
        schedule = optax.cosine_decay_schedule(self.tuning.learning_rate, self.tuning.steps)
        return OPTIMIZERS[self.tuning.optimizer](schedule, weight_decay=self.tuning.weight_decay)

    def begin(self, parts: list) -> Any:
        """The optimizer's state before the first step, on the devices of the parts, where later ones are."""
        state, placed = self.optimizer.init(parts), getattr(parts[0], "sharding", None)
        return state if placed is None or len(placed.device_set) == 1 else jax.device_put(state, placed)

    def split(self, params: Any) -> tuple[list, list]:
        """The leaves that are trained, and the others."""
        leaves, places = jax.tree.leaves(params), set(self.places)
        return [leaves[i] for i in self.places], [leaf for i, leaf in enumerate(leaves) if i not in places]

    def params(self, parts: list, rest: list) -> Any:
        """The parameters, of what is trained, in its places, and what is not."""
        trained, others, places = iter(parts), iter(rest), set(self.places)
        leaves = [next(trained if i in places else others) for i in range(self.structure.num_leaves)]
        return jax.tree.unflatten(self.structure, leaves)


def _loss(parts, rest, example, static):
    (batch, target, weights), tuning = example, static.tuning
    outputs = pick(static.apply(static.params(parts, rest), batch), tuning.output, "outputs")
    found, wanted = jax.tree.leaves(outputs), jax.tree.leaves(target)
    if len(found) != len(wanted) or (len(found) != 1 and tuning.loss != "mse"):
        raise ValueError(
            f"the loss {tuning.loss!r} is of one array of logits, the outputs have {len(found)}; set output"
        )
    means = [
        _mean(_by_position(floats(a), jnp.asarray(b), tuning.loss), weights) for a, b in zip(found, wanted, strict=True)
    ]
    return sum(mean for mean, _ in means), means[0][1]


def _by_position(outputs, target, loss):
    if loss != "ce":
        if outputs.shape != target.shape:
            raise ValueError(
                f"outputs of shape {outputs.shape} and the float model's {target.shape} cannot be compared"
            )
        target = target.astype(outputs.dtype)
    return LOSSES[loss](outputs, target)


def _mean(values, weights):
    """The mean over positions (B, …), weighted, and the sum of the weights; without weights the number of examples."""
    if weights is None:
        return values.mean(), len(values)
    weights = weights_over(weights, values.shape).astype(values.dtype)
    total = weights.sum()
    return jnp.where(weights > 0, weights * values, 0).sum() / jnp.where(total > 0, total, 1), total


@functools.partial(jax.jit, static_argnames="static")
def held_out_loss(parts: list, rest: list, example: tuple, static: Any) -> tuple[jax.Array, jax.Array]:
    """The loss, and the examples or positions that it is the mean of, by weight."""
    return _loss(parts, rest, example, static)


@functools.partial(jax.jit, static_argnames="static")
def training_step(parts: list, state: Any, rest: list, example: tuple, static: Any) -> tuple[list, Any, jax.Array]:
    """(parts, optimizer's state, loss before) after one step on an example (batch, target, weights)."""
    (loss, _), grads = jax.value_and_grad(_loss, has_aux=True)(parts, rest, example, static)
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes types, whatever the caller forbids itself
        updates, state = static.optimizer.update(grads, state, parts)
        return optax.apply_updates(parts, updates), state, loss
