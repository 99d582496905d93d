"""Trains the language model: python -m experiments.train_language --config=configs/language.py

Trains a byte-pair tokenizer on the training texts, then the model on windows of them, and writes both side by side:
config.train.float_checkpoint and, with the ending .tokenizer.json, the tokenizer. Then prints loss, perplexity and bits
per byte of the test texts. As in experiments/train.py the state is saved every config.train.save_every steps, and a run
that was stopped goes on from there: same config, same result.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from beacon_jax import Execution, checkpoint
from beacon_jax.batches import content_digest
from beacon_jax.disk import replace_text
from beacon_jax.models.decoder import create_decoder
from experiments import common
from experiments.provenance import machine
from experiments.text import read_corpus, split_texts
from experiments.tokens import CONTEXT, ArrayBatches, encode, tokenizer_path, train_tokenizer, windows
from experiments.train import Progress, make_optimizer, place_for, training_path


def muon(path: tuple[str, ...], _value) -> optax.contrib.MuonDimensionNumbers | None:
    """The blocks' kernels are trained by Muon."""
    inner = path[0].startswith("blocks_") and path[-1] == "kernel"
    return optax.contrib.MuonDimensionNumbers() if inner else None


def loss_sums(model, params, batch) -> tuple[jax.Array, jax.Array]:
    """(sum of the real positions' cross-entropy in nats, their number)."""
    logits = model.apply({"params": params}, batch["ids"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return jnp.sum(loss * batch["mask"]), jnp.sum(batch["mask"])


def mean_loss(model, params, batches) -> float:
    """Cross-entropy in nats per token over all real positions."""
    sums = jax.jit(lambda params, batch: loss_sums(model, params, batch))
    total, count = np.sum([np.asarray(sums(params, batch), np.float64) for batch in batches], axis=0)
    return float(total / count)


def make_step(model, optimizer):
    def loss_fn(params, key, batch):
        logits = model.apply({"params": params}, batch["ids"], train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    @jax.jit
    def step(params, state, key, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, key, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def epoch_batches(documents: list[list[int]], batch_size: int, seed: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    """One epoch's whole batches: the documents, and then their windows, in an order drawn with the seed."""
    rng = np.random.default_rng(seed)
    arrays = windows([documents[i] for i in rng.permutation(len(documents))], CONTEXT)
    full = np.flatnonzero(arrays.pop("mask").all(axis=1))
    count = len(full) // batch_size * batch_size
    chosen = rng.permutation(full)[:count]
    return list(ArrayBatches({name: array[chosen] for name, array in arrays.items()}, batch_size))


def fit(config, documents: list[list[int]], progress: Progress, report=None):
    """The trained parameters; goes on from where `progress` stands.

    Args:
      config: its model, seed and train are read.
      documents: token ids of the training texts.
      progress: the training's state in a file.
      report: called with (epochs done, parameters) after each epoch, or None.
    """
    train = config.train
    for key in ("epochs", "batch_size", "save_every"):
        if train[key] < 1:
            raise ValueError(f"train.{key} must be at least 1, got {train[key]}")
    steps = sum(len(d) + 1 for d in documents) // CONTEXT // train.batch_size
    if not steps:
        raise ValueError(f"train.batch_size={train.batch_size} windows of {CONTEXT} tokens exceed the training text")
    tokens = {"tokens": np.concatenate([np.asarray(document, np.int32) for document in documents])}
    progress.made_with = {"data": content_digest([tokens])[0][:16], **machine(Execution())}
    model = create_decoder(config.model.name)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(model.init)(init_key, jnp.zeros((1, CONTEXT), jnp.int32))["params"]
    optimizer = make_optimizer(muon, train, params, steps)
    step = make_step(model, optimizer)
    params, state, done = progress.load(params, optimizer.init(params))
    with tqdm(desc="train", unit="step", initial=done, total=train.epochs * steps, mininterval=5, disable=None) as bar:
        for number in range(done, train.epochs * steps):
            epoch, i = divmod(number, steps)
            if number == done or i == 0:
                batches = epoch_batches(documents, train.batch_size, (config.seed, epoch))
            params, state, loss = step(params, state, jax.random.fold_in(key, number), batches[i])
            bar.update()
            if number % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")
            if (number + 1) % train.save_every == 0:
                progress.save(params, state, number + 1)
            if report and i == steps - 1:
                report(epoch + 1, params)
    return params


def main(_):
    config = common.get_config()
    own = tokenizer_path(config.train.float_checkpoint or "none")
    with place_for(config, own) as path:
        model = create_decoder(config.model.name)
        training_texts, test_texts = split_texts(read_corpus())
        tokenizer = train_tokenizer(training_texts, model.vocabulary)
        test_documents = encode(tokenizer, test_texts)
        test = ArrayBatches(windows(test_documents, CONTEXT), config.train.batch_size)
        progress = Progress(training_path(path), config)

        def report(epochs, params):
            tqdm.write(f"after {epochs} epochs: test loss {mean_loss(model, params, test):.4f}")

        params = fit(config, encode(tokenizer, training_texts), progress, report)
        checkpoint.save_params(path, params, model=config.model.name)
        replace_text(own, tokenizer.to_str(pretty=False))
        progress.remove()
    loss = mean_loss(model, params, test)
    tokens, size = int(test.arrays["mask"].sum()), sum(len(text.encode()) for text in test_texts)
    bits = loss * tokens / size / math.log(2)
    print(f"test loss {loss:.4f} nats per token, perplexity {math.exp(loss):.3f}, {bits:.3f} bits per byte")
    print(f"({tokens} tokens, {size} bytes in {len(test_texts)} texts); parameters in {path}")


if __name__ == "__main__":
    common.run(main)
