"""What a training run does between its steps: read the losses, evaluate, stop early, write checkpoints."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from ..data import Batch
from ..nn import Sequential
from ..nn.optim import Optimizer
from .checkpoint import load_checkpoint, save_checkpoint, trainable_state
from .evaluation import evaluate
from .history import History
from .interruption import interruption
from .not_finite import first_not_finite

READ_EVERY = 10  # steps: reading a loss waits for the device


@dataclass
class Run:
    """The state of one run of fit(). The fields without a default are the arguments of fit."""

    model: Sequential
    optimizer: Optimizer
    batches: Callable[[int], Batch]
    steps: int
    accumulate: int
    clip: float
    shards: int
    seed: int
    held_out: Callable[[], Iterable[Batch]] | None
    watch: Callable[[], Iterable[Batch]] | None
    evaluate_every: int
    patience: int
    checkpoint: Path | None
    checkpoint_every: int
    after_step: Any
    history: History = field(default_factory=History)
    best: dict[str, Array] = field(default_factory=dict)  # the parameters of the best evaluation, with patience
    unread: list[tuple[Array, Array | float]] = field(default_factory=list)  # losses and norms, still on the device
    finite: Array | bool = True  # whether all losses and norms so far are, still on the device

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of range, FileNotFoundError for a checkpoint in a missing folder."""
        least = {"steps": 0, "accumulate": 1, "shards": 1, "patience": 0, "evaluate_every": 0, "checkpoint_every": 1}
        for name, lowest in least.items():
            n = getattr(self, name)
            if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < lowest:
                raise ValueError(f"{name} = {n!r} is not a whole number from {lowest} up")
        if not self.clip > 0:
            raise ValueError(f"clip = {self.clip!r} is not above 0")
        if self.patience and self.held_out is None:
            raise ValueError(f"patience = {self.patience} needs evaluations: give held_out")
        if self.watch and self.held_out is None:
            raise ValueError("watch needs held_out: both are evaluated at the same steps")
        if self.checkpoint and not self.checkpoint.parent.is_dir():
            raise FileNotFoundError(f"no folder {self.checkpoint.parent} for the checkpoint: make it first")

    def settings(self) -> dict[str, Any]:
        """The settings that a run which resumes from the checkpoint must share with this one."""
        own = {"seed": int(self.seed), "steps": int(self.steps), "accumulate": int(self.accumulate)}
        return own | {"clip": float(self.clip), "shards": int(self.shards), **self.optimizer.settings()}

    def step_batches(self, step: int) -> list[Batch]:
        """The batches whose gradients are summed in a step."""
        return [self.batches(step * self.accumulate + i) for i in range(self.accumulate)]

    def start(self, resume: bool) -> None:
        """Load the checkpoint if there is one. Raises ValueError if there is and `resume` is False."""
        if self.checkpoint and self.checkpoint.exists():
            if not resume:
                raise ValueError(f"{self.checkpoint} is there already: resume, or choose another place")
            self.history, self.best = load_checkpoint(
                self.checkpoint, self.model, self.optimizer, self.after_step, self.settings()
            )

    @contextmanager
    def remaining_steps(self, description: str | None) -> Iterator[Iterator[int]]:
        """The steps still to do, with a progress bar called `description` (None: no bar). Ctrl-C stops between two."""
        from tqdm import tqdm

        done, disable = len(self.history.loss), None if description else True
        with (
            tqdm(initial=done, total=self.steps, desc=description, unit="step", leave=False, disable=disable) as bar,
            interruption() as interrupted,
        ):
            yield self.each_step(bar, interrupted)

    def each_step(self, bar: Any, interrupted: threading.Event) -> Iterator[int]:
        """Yield each step still to do. When the caller asks for the next, the losses of this one are read, the model
        is evaluated and the checkpoint saved, where that is due.

        Raises KeyboardInterrupt after a step during which `interrupted` was set.
        """
        if self.held_out and not self.history.evaluations:
            self.evaluate()
        for step in range(len(self.history.loss), self.steps):
            if self.history.stopped_early:
                return
            yield step
            bar.update()
            done, stop = step + 1, interrupted.is_set()
            last = done == self.steps
            if stop or last or done % READ_EVERY == 0:
                self.read_losses()
                bar.set_postfix_str(f"loss {self.history.loss[-1]:.3f}")
            if self.held_out and (last or (self.evaluate_every and done % self.evaluate_every == 0)):
                self.evaluate()
            if self.checkpoint and (stop or last or self.history.stopped_early or done % self.checkpoint_every == 0):
                self.save(self.checkpoint)
            if stop:
                kept = f", which is kept in {self.checkpoint}" if self.checkpoint else ""
                raise KeyboardInterrupt(f"stopped after step {done}{kept}")

    def record(self, loss: Array, norm: Array | float) -> Array | bool:
        """Record a step's loss and gradient norm, not waiting for the device. Returns whether all so far are finite."""
        xp = get_array_module(loss)
        self.unread.append((loss, norm))
        self.finite = self.finite & xp.isfinite(loss) & xp.isfinite(norm)
        return self.finite

    def read_losses(self) -> None:
        """Move the recorded losses to the history. Raises FloatingPointError if one, or its gradient, is not finite."""
        if not self.unread:
            return
        xp = get_array_module(self.unread[0][0])
        for loss, norm in to_numpy(xp.stack([xp.stack(pair) for pair in self.unread])).tolist():
            if not math.isfinite(loss + norm):
                step = len(self.history.loss)
                what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
                found = (first_not_finite(self.model, batch) for batch in self.step_batches(step))
                module, saved = next(filter(None, found), "the backward"), self.checkpoint and self.checkpoint.exists()
                kept = f"; {self.checkpoint} holds the last good state" if saved else ""
                raise FloatingPointError(
                    f"the {what} of step {step + 1} is {value}, first in {module}: lower the learning rate{kept}"
                )
            self.history.loss.append(loss)
        self.unread = []

    def evaluate(self) -> None:
        """Evaluate on the held-out data, keep the parameters if they are the best so far, decide whether to stop."""
        assert self.held_out is not None
        self.read_losses()
        loss = evaluate(self.model, self.held_out(), shards=self.shards)
        if self.patience and loss < self.history.best():
            self.best = trainable_state(self.model)
        self.history.evaluations.append([len(self.history.loss), loss])
        if self.watch:
            watched = evaluate(self.model, self.watch(), shards=self.shards)
            self.history.watched.append([len(self.history.loss), watched])
        self.history.stopped_early = 0 < self.patience <= self.history.evaluations_since_best()

    def save(self, path: Path) -> None:
        self.read_losses()
        save_checkpoint(path, self.model, self.optimizer, self.after_step, self.history, self.best, self.settings())

    def restore_best(self) -> None:
        """Set the parameters to those of the best evaluation, if there was `patience`."""
        for name, data in self.best.items():
            self.model.trainable_parameters()[name].data = data
