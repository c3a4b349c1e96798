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
from .evaluation import evaluate
from .gradients import sharded_loss_and_gradients, thread_pool
from .interruption import interruption
from .run import History, Run

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
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
    accumulate: int = 1,
    clip: float = 1.0,
    shards: int = 1,
    seed: int = 0,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 0,
    patience: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    description: str | None = "training",
) -> History:
    """Train what is trainable in `model` for `steps` steps of AdamW at `lr` (or `optimizer`); return the history.

    `batches(i)` is the i-th batch; a step takes `accumulate` of them, each split into `shards` for as many threads.
    An `optimizer` brings its own rates: `lr` is then ignored. A `penalty` (optim.penalty) is added to the training
    loss, also in the history; held-out data is evaluated without it. The gradient is clipped to the norm `clip`.
    `after_step(step, grads)` is called after each step of the optimizer, with the clipped gradients. `held_out()` is
    evaluated before the first step, every `evaluate_every` steps, and after the last; after `patience` evaluations
    without a new best, training stops. Then, or after the last step, the best parameters are put back; without
    `patience` the last ones stay. `checkpoint` names a file written every `checkpoint_every` steps, at the end, and
    on Ctrl-C; with `resume`, training goes on from it, to the very bytes of a run never stopped, or starts from the
    beginning if there is none yet. It must be of the same `seed`, `steps` (on which schedules depend), `accumulate`,
    `clip` and `shards`, and of the same optimizer but for its rates. `description` labels the progress bar; None shows
    none.

    BLAS computes on one thread, whatever the environment says, unless process.blas_threads(n) is open: the same seed
    gives the same bytes here and on the command line, where --threads opens it.

    Raises FloatingPointError when the loss is no longer finite, with the last good checkpoint kept; ValueError for
    a number that makes no sense, and for a checkpoint that is there without `resume`, or is of other parameters or of
    another run; FileNotFoundError for a folder of `checkpoint` that is not there; KeyboardInterrupt after Ctrl-C.
    """
    from tqdm import tqdm

    counts = {"steps": (steps, 0), "accumulate": (accumulate, 1), "shards": (shards, 1), "patience": (patience, 0)}
    check_counts(counts | {"evaluate_every": (evaluate_every, 0), "checkpoint_every": (checkpoint_every, 1)})
    for name, rate in (("lr", lr), ("clip", clip)):
        if not rate > 0:
            raise ValueError(f"{name} = {rate!r} is not above 0")
    if patience and held_out is None:
        raise ValueError(f"patience = {patience} waits for evaluations: give held_out")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(checkpoint).parent} for the checkpoint: make it first")
    optimizer = optimizer or AdamW(model.trainable_parameters(), lr)
    settings = {"seed": int(seed), "steps": int(steps), "accumulate": int(accumulate), "clip": float(clip)}
    settings |= {"shards": int(shards), **optimizer.settings()}
    run = Run(model, optimizer, None if checkpoint is None else Path(checkpoint), settings)
    run.start(resume)
    done = len(run.history.loss)

    def batches_of(step: int) -> list[Batch]:
        return [batches(step * accumulate + i) for i in range(accumulate)]

    bar = tqdm(
        total=steps, initial=done, desc=description, disable=None if description else True, unit="step", leave=False
    )
    with bar, thread_pool(shards) as pool, interruption() as interrupted, np.errstate(all="ignore"):
        if held_out and not run.history.evaluations:
            run.record_evaluation(evaluate(model, held_out(), shards=shards), patience)
        for step in range(done, steps):
            if run.history.stopped_early:
                break
            loss, grads = sharded_loss_and_gradients(pool, shards, model, batches_of(step), [seed, step])
            if penalty:
                more, more_grads = penalty()
                loss, grads = loss + more, grads + more_grads
            grads, norm = clip_by_global_norm(grads, clip)
            run.step(loss, grads, norm, schedule(step))
            if after_step:
                after_step(step, grads)
            bar.update()
            stop, last = interrupted.is_set(), step + 1 == steps
            if stop or last or (step + 1) % 10 == 0:
                run.read_losses(batches_of)
                bar.set_postfix_str(f"loss {run.history.loss[-1]:.3f}")
            if held_out and (last or (evaluate_every and (step + 1) % evaluate_every == 0)):
                run.read_losses(batches_of)
                run.record_evaluation(evaluate(model, held_out(), shards=shards), patience)
            if run.path and (stop or last or run.history.stopped_early or (step + 1) % checkpoint_every == 0):
                run.read_losses(batches_of)
                run.save()
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step + 1}{run.about_checkpoint(', which is kept in {}')}")
    run.restore_best()
    return run.history


def check_counts(counts: dict[str, tuple[int, int]]) -> None:
    """Raise ValueError unless each of {name: (number, least)} is a whole number from its least up."""
    for name, (number, least) in counts.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} = {number!r} is not a whole number from {least} up")
