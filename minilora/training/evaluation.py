"""The mean loss on held-out data."""

from __future__ import annotations

from collections.abc import Iterable

from ..data import Batch
from ..nn import Sequential
from ..process import blas_threads
from .gradients import Loss, count_labels, cross_entropy, loss_of, thread_pool


@blas_threads()
def evaluate(
    model: Sequential,
    batches: Iterable[Batch],
    *,
    shards: int = 1,
    loss: Loss = cross_entropy,
    description: str | None = None,
) -> float:
    """Mean loss of all batches in nats per labelled position, without dropout: the cross-entropy, or another `loss`.

    `shards` batches run at a time, on as many threads. `description` labels a progress bar; None shows none. Raises
    ValueError when no position has a label, or a label is not one of the model's classes.
    """
    from tqdm import tqdm

    def total_loss(batch: Batch) -> tuple[float, int]:
        n = count_labels(batch)
        return n * float(loss_of(model, batch, count=n, loss=loss, needs_cache=False)[0]), n

    batches = list(batches)
    with thread_pool(shards) as pool:
        losses = pool.map(total_loss, batches)
        bar = tqdm(losses, description, len(batches), disable=None if description else True, leave=False)
        total, count = map(sum, zip(*bar, strict=True)) if batches else (0.0, 0)
    if not count:
        raise ValueError("nothing to evaluate: no position has a label")
    return total / count
