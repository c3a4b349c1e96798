"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..data import Batch
from ..nn import Gradients, Sequential
from ..nn.optim import AdamW, Optimizer, Penalty, Schedule, clip_by_global_norm
from ..process import blas_threads
from .gradients import Loss, cross_entropy, sharded_loss_and_gradients, thread_pool
from .history import History
from .run import Run

AfterStep: TypeAlias = Callable[[int, Gradients], None]


@blas_threads()
def fit(
    model: Sequential,
    batches: Callable[[int], Batch],
    steps: int,
    *,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    schedule: Schedule = lambda step: 1.0,
    loss: Loss = cross_entropy,
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
    accumulate: int = 1,
    clip: float = 1.0,
    shards: int = 1,
    seed: int = 0,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    watch: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 0,
    patience: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    description: str | None = "training",
) -> History:
    """Train the trainable parameters of `model` for `steps` steps of AdamW at `lr`, or of `optimizer`.

    A step takes `accumulate` batches, `batches(i)` being the i-th, and splits each into `shards` that run on as many
    threads. It adds the loss and the gradients of `penalty` (optim.penalty), clips the gradients to the norm `clip`,
    and multiplies the learning rate by `schedule(step)`. `after_step(step, grads)` is called after the optimizer's
    step, with the clipped gradients; if it has a `state`, {name: array}, and a load_state(state), checkpoints save and
    restore it. An `optimizer` has learning rates of its own: `lr` is then ignored. `loss` is the cross-entropy, or
    another: distillation(teacher).

    `held_out()` is evaluated, without the penalty, before the first step, every `evaluate_every` steps and after the
    last. After `patience` evaluations without a new best, training stops. With `patience`, the parameters of the best
    evaluation are restored at the end; without, the last ones stay. `watch()` is further data that is evaluated at the
    same steps, and affects neither the stop nor the best evaluation.

    `checkpoint` is a file written every `checkpoint_every` steps, at the end, and on Ctrl-C. With `resume`, training
    continues from it, or starts from the beginning if there is none, and ends with the same bytes as a run that was
    never stopped. `seed`, `steps` (on which schedules depend), `accumulate`, `clip`, `shards` and the optimizer must be
    the same, learning rates excepted. `description` labels the progress bar; None shows none.

    BLAS computes on one thread, whatever the environment says, unless the caller is inside `with blas_threads(n)`. So
    the same seed gives the same bytes here and on the command line, where --threads sets n.

    Returns the History: a loss in nats for each step, the penalty included, and the evaluations. Raises ValueError for
    a number out of range, for a checkpoint that exists without `resume`, or belongs to another run; FileNotFoundError
    for a `checkpoint` in a folder that is not there; FloatingPointError when a loss or gradient is no longer finite,
    with the last good checkpoint kept; KeyboardInterrupt after Ctrl-C.
    """
    if not lr > 0:
        raise ValueError(f"lr = {lr!r} is not above 0")
    optimizer = optimizer or AdamW(model.trainable_parameters(), lr)
    run = Run(
        model, optimizer, batches, steps, accumulate, clip, shards, seed, held_out, watch, evaluate_every, patience,
        None if checkpoint is None else Path(checkpoint), checkpoint_every, after_step,
    )  # fmt: skip
    run.start(resume)
    with run.remaining_steps(description) as remaining, thread_pool(shards) as pool, np.errstate(all="ignore"):
        for step in remaining:  # between two steps it evaluates and saves: Run.each_step
            L, grads = sharded_loss_and_gradients(pool, shards, model, run.step_batches(step), [seed, step], loss)
            if penalty:
                R, dR = penalty()
                L, grads = L + R, grads + dR
            grads, norm = clip_by_global_norm(grads, clip)
            finite = run.record(L, norm)
            optimizer.step(grads, schedule(step), finite=finite)  # changes no parameter unless finite
            if after_step:
                after_step(step, grads)
    run.restore_best()
    return run.history
