"""The loss of a batch and its gradients, in one piece or in shards on threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backend import Array, Rng, generator, get_array_module
from ..data import Batch
from ..nn import Gradients, Inputs, Pass, Sequential
from ..process import BROWSER
from .gradient_sum import GradientSum

Backward = Callable[[float], Array]  # dL -> dlogits


class Loss(Protocol):
    """A loss L of the logits of a batch: a mean over the labelled positions, or over `count` of them."""

    def __call__(
        self, logits: Array, targets: Array, ids: Any, inputs: Inputs, count: int | None
    ) -> tuple[Array, Backward]:
        """L (), and its backward. `ids` and `inputs` are what the model made the logits of."""


def cross_entropy(logits: Array, targets: Array, ids: Any, inputs: Inputs, count: int | None) -> tuple[Array, Backward]:
    """The Loss of ops/cross_entropy.py."""
    L, cache = ops.cross_entropy_forward(logits, targets, count)
    return L, lambda dL: ops.cross_entropy_backward(dL, cache)


def loss_of(
    model: Sequential,
    batch: Batch,
    rng: Rng | None = None,
    count: int | None = None,
    loss: Loss = cross_entropy,
    needs_cache: bool = True,
) -> tuple[Array, tuple[Any, Backward]]:
    """The loss in nats, a mean over the labelled positions (a 0-d array), the model's cache and the loss's backward.

    `model` is a Transformer, or a Sequential of your own layers, the first of which takes batch.ids, whatever they are.
    Dropout draws from `rng`; None means no dropout. Where the batch is part of a larger one, `count` is the number of
    labels of the larger one: the losses and the gradients of the parts then add up. Without `needs_cache` the model
    keeps nothing for a backward.

    Raises ValueError for targets that do not fit the logits' shape, or are neither one of their V classes nor IGNORE.
    """
    targets, labelled = batch.targets, None
    if "labelled" in model.layers and targets.shape == batch.ids.shape and 0 < count_labels(batch) < targets.size:
        b, t = np.nonzero(targets != ops.IGNORE)  # positions without a label get no logits, which are V floats each
        targets, labelled = targets[b, t], (b, t)
    inputs, run = inputs_of(batch, labelled), Pass(None if rng is None else generator(rng), needs_cache=needs_cache)
    logits, cache = model.forward(batch.ids, inputs, run)
    check_targets(targets, logits.shape[-1])
    L, backward = loss(logits, get_array_module(logits).asarray(targets), batch.ids, inputs, count)
    return L, (cache, backward)


def inputs_of(batch: Batch, labelled: tuple[Array, Array] | None = None) -> Inputs:
    """What a model reads of a batch besides its ids."""
    _, _, padding, segments, adapters, source, source_padding = batch
    return Inputs(padding, segments, labelled, adapters, source=source, source_padding=source_padding)


def check_targets(targets: np.ndarray, outputs: int) -> None:
    """Raise ValueError unless every label is one of the head's outputs, or IGNORE."""
    if targets.dtype.kind not in "iu":
        raise ValueError(f"labels are integers, not {targets.dtype}")
    wrong = targets[((targets < 0) | (targets >= outputs)) & (targets != ops.IGNORE)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is outside the head's outputs 0..{outputs - 1}")


def loss_and_gradients(
    model: Sequential,
    batch: Batch,
    rng: Rng | None = None,
    count: int | None = None,
    dL: float = 1.0,
    loss: Loss = cross_entropy,
    grads: Gradients | None = None,
) -> tuple[Array, Gradients]:
    """The loss L of a batch, as loss_of() returns it, and the gradients of dL · L with respect to the trainable
    parameters, added to `grads` where they are given."""
    L, (cache, backward) = loss_of(model, batch, rng, count, loss)
    dlogits, grads = backward(dL), Gradients() if grads is None else grads
    del backward  # its cache is as large as the logits, and the peak of memory comes next
    model.backward(dlogits, cache, grads)
    return L, grads


def sharded_loss_and_gradients(
    pool: Executor,
    shards: int,
    model: Sequential,
    batches: list[Batch],
    seed: list[int],
    loss: Loss = cross_entropy,
) -> tuple[Array, Gradients]:
    """The loss and gradients of several batches as if they were one, each batch split along B into `shards` threads.

    Shard i draws its dropout from default_rng([*seed, i]). The bytes do not depend on which thread is faster.
    """
    count = sum(count_labels(batch) for batch in batches)

    def of_shard(i: int, shard: Batch, grads: Gradients) -> tuple[Array, Gradients]:
        return loss_and_gradients(model, shard, np.random.default_rng([*seed, i]), count, loss=loss, grads=grads)

    parts = [shard for batch in batches for shard in split_batch(batch, shards)]
    if len(parts) == 1:  # a thread would save nothing
        return of_shard(0, parts[0], Gradients())
    total = GradientSum(len(parts))
    losses = [L for L, _ in pool.map(of_shard, range(len(parts)), parts, total.parts)]
    return sum(losses[1:], losses[0]), total.total()


def split_batch(batch: Batch, shards: int) -> list[Batch]:
    """At most `shards` parts of `batch`, split along B, of nearly equal size."""
    parts = np.array_split(np.arange(len(batch.ids)), min(shards, len(batch.ids)))
    fields: list[Any] = [[None if a is None else a[part[0] : part[-1] + 1] for a in batch] for part in parts]
    return [Batch(*each) for each in fields]


def count_labels(batch: Batch) -> int:
    """The number of targets that are not IGNORE."""
    return int((batch.targets != ops.IGNORE).sum())


def thread_pool(n: int) -> Executor:
    """`n` threads on which NumPy does not warn of overflow or NaN: the training loop checks for them itself.

    In a browser, which has a single thread, what would run on others runs at once: the results are the same bytes.
    """
    return AtOnce() if BROWSER else ThreadPoolExecutor(n, initializer=partial(np.seterr, all="ignore"))


class AtOnce(Executor):
    """Runs what is submitted before it returns its Future."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future
