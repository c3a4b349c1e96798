"""The loss of a batch and its gradients, in one piece or in shards on threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from ..data import Batch
from ..nn import Gradients, Inputs, Pass, Sequential


def loss_of(
    model: Sequential, batch: Batch, rng: np.random.Generator | None = None, count: int | None = None
) -> tuple[Array, tuple[Any, Any]]:
    """Mean cross-entropy over what has a label (a 0-d array, on the device), and the caches of model and loss.

    `model` is a Transformer, or a chain of your own parts, whose first layer takes batch.ids, whatever they are.
    `count` replaces their number where the batch is a part of a larger one; losses and gradients then add up.
    Raises ValueError for targets that are neither one of the head's outputs nor IGNORE, or do not fit its shape.
    """
    targets, where = batch.targets, None
    if "labelled" in model.layers and targets.shape == batch.ids.shape and 0 < count_labels(batch) < targets.size:
        b, t = np.nonzero(targets != ops.IGNORE)  # the logits of the others, V numbers each, would go unread
        targets, where = targets[b, t], (b, t)
    logits, cache = model.forward(batch.ids, Inputs(batch.padding, batch.segments, where), Pass(rng))
    check_targets(targets, logits.shape[-1])
    loss, ce_cache = ops.cross_entropy_forward(logits, get_array_module(logits).asarray(targets), count)
    return loss, (cache, ce_cache)


def check_targets(targets: np.ndarray, outputs: int) -> None:
    """Raise ValueError unless every label is one of the head's outputs, or IGNORE."""
    if targets.dtype.kind not in "iu":
        raise ValueError(f"labels are integers, not {targets.dtype}")
    wrong = targets[((targets < 0) | (targets >= outputs)) & (targets != ops.IGNORE)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is outside the head's outputs 0..{outputs - 1}")


def loss_and_gradients(
    model: Sequential, batch: Batch, rng: np.random.Generator | None = None, count: int | None = None
) -> tuple[Array, Gradients]:
    """The loss of a batch, as loss_of() says, and its gradients."""
    loss, (cache, ce_cache) = loss_of(model, batch, rng, count)
    dlogits, grads = ops.cross_entropy_backward(1.0, ce_cache), Gradients()
    del ce_cache  # as many numbers as there are logits, on top of the most memory that a step needs
    model.backward(dlogits, cache, grads)
    return loss, grads


def sharded_loss_and_gradients(
    pool: ThreadPoolExecutor, shards: int, model: Sequential, batches: list[Batch], seed: list[int]
) -> tuple[Array, Gradients]:
    """The same for several batches as if they were one, each split along Bto `shards` that run on threads.

    Each shard has gradients and a generator of its own; they are summed in a fixed order.
    """
    count = sum(count_labels(batch) for batch in batches)

    def one(i: int, shard: Batch) -> tuple[Array, Gradients]:
        return loss_and_gradients(model, shard, np.random.default_rng([*seed, i]), count)

    parts = [shard for batch in batches for shard in split_batch(batch, shards)]
    run = pool.map if len(parts) > 1 else map  # a thread for one part alone would only be waited for
    losses, grads = zip(*run(one, range(len(parts)), parts), strict=True)
    return sum(losses[1:], losses[0]), sum(grads, Gradients())


def split_batch(batch: Batch, shards: int) -> list[Batch]:
    """`batch` in at most `shards` parts along B, of nearly equal size."""
    shards = min(shards, len(batch.ids))
    fields = ([None] * shards if a is None else np.array_split(a, shards) for a in batch)
    return [Batch(*parts) for parts in zip(*fields, strict=True)]


def count_labels(batch: Batch) -> int:
    return int((batch.targets != ops.IGNORE).sum())


def thread_pool(n: int) -> ThreadPoolExecutor:
    """`n` threads on which NumPy does not warn of numbers that are not finite: the loop looks for those itself."""
    return ThreadPoolExecutor(n, initializer=partial(np.seterr, all="ignore"))
