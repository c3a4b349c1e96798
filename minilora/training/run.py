"""The state of a training run: what a checkpoint holds, saved and loaded; and its history."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from ..data import Batch
from ..files import load_tensors, save_tensors
from ..nn import Gradients, Sequential, check_fit, shapes_of
from ..nn.optim import Optimizer
from .not_finite import first_not_finite


@dataclass
class History:
    """The losses of a run; no times, so that the same seed gives the same bytes."""

    loss: list[float] = field(default_factory=list)  # nats, one for each step
    evaluations: list[list[float]] = field(default_factory=list)  # [steps done, nats on held-out data]
    stopped_early: bool = False

    def best(self) -> float:
        return min((loss for _, loss in self.evaluations), default=math.inf)


class Run:
    """What a checkpoint holds: parameters, optimizer state, history, the best parameters so far, and the settings that
    tell this run from another."""

    def __init__(self, model: Sequential, optimizer: Optimizer, path: Path | None, settings: dict[str, Any]) -> None:
        self.model, self.optimizer, self.path, self.settings = model, optimizer, path, settings
        self.history = History()
        self.unread: list[tuple[Array, Array | float]] = []  # losses and norms of the gradient, still on the device
        self.finite: Array | bool = True  # were they all? on the device, too
        self.best: dict[str, Array] = {}

    def state(self) -> dict[str, Array]:
        return {name: parameter.data for name, parameter in self.model.trainable_parameters().items()}

    def start(self, resume: bool) -> None:
        """Go on from the checkpoint if there is one. Raises ValueError if there is and `resume` is False."""
        if self.path and self.path.exists():
            if not resume:
                raise ValueError(f"{self.path} is there already: resume, or choose another place")
            self.load()

    def about_checkpoint(self, words: str) -> str:
        """`words` with the path of the checkpoint, if there is one; else nothing."""
        return words.format(self.path) if self.path and self.path.exists() else ""

    def step(self, loss: Array, grads: Gradients, norm: Array | float, factor: float) -> None:
        """One step of the optimizer, which changes nothing once a loss or gradient was not finite. Nothing is fetched
        from the device here; read_losses() finds out."""
        xp = get_array_module(loss)
        self.finite = self.finite & xp.isfinite(loss) & xp.isfinite(norm)
        self.optimizer.step(grads, factor, self.finite)
        self.unread.append((loss, norm))

    def read_losses(self, at: Callable[[int], list[Batch]]) -> None:
        """Fetch the losses. Raises FloatingPointError if one, or its gradient, is not finite; at(step) is its data."""
        if not self.unread:
            return
        xp = get_array_module(self.unread[0][0])
        for loss, norm in to_numpy(xp.stack([xp.stack(pair) for pair in self.unread])).tolist():
            if not math.isfinite(loss + norm):
                step = len(self.history.loss)
                what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
                culprits = (first_not_finite(self.model, batch) for batch in at(step))
                culprit = next(filter(None, culprits), "the backward")
                raise FloatingPointError(
                    f"the {what} of step {step + 1} is {value}, first in {culprit}: "
                    f"lower the learning rate{self.about_checkpoint('; {} holds the last good state')}"
                )
            self.history.loss.append(loss)
        self.unread = []

    def record_evaluation(self, loss: float, patience: int) -> None:
        """Add an evaluation to the history, and decide whether to stop early.

        The optimizer replaces arrays and never writes into them, so a reference to the best ones is a snapshot.
        """
        if patience and loss < self.history.best():
            self.best = self.state()
        self.history.evaluations.append([len(self.history.loss), loss])
        values = [value for _, value in self.history.evaluations]
        since_best = len(values) - 1 - int(np.nanargmin(values)) if np.isfinite(values).any() else len(values)
        self.history.stopped_early = bool(patience) and since_best >= patience

    def restore_best(self) -> None:
        """Put the best parameters back, if there was patience to look for them."""
        for name, data in self.best.items():
            self.model.trainable_parameters()[name].data = data

    def save(self) -> None:
        """Write the checkpoint, unless a parameter is not finite: the last good one is worth more."""
        assert self.path is not None
        tensors = {f"parameter.{name}": data for name, data in self.state().items()}
        bad = next((name for name, data in tensors.items() if not np.isfinite(to_numpy(data)).all()), None)
        if bad:
            raise FloatingPointError(f"{bad} is not finite after step {self.optimizer.t}: lower the learning rate")
        tensors |= {f"optimizer.{name}": data for name, data in self.optimizer.state.items()}
        tensors |= {f"best.{name}": data for name, data in self.best.items()}
        note = {"t": self.optimizer.t, "history": asdict(self.history), "settings": self.settings}
        save_tensors(self.path, tensors, {"minilora": json.dumps(note, sort_keys=True)})

    def load(self) -> None:
        """Go back to a checkpoint. Raises ValueError, with nothing changed, if it is damaged or of another run."""
        assert self.path is not None
        tensors, metadata = load_tensors(self.path)
        kinds: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "optimizer": {}, "best": {}}
        for name, data in tensors.items():
            kind, _, rest = name.partition(".")
            kinds.get(kind, {})[rest] = data
        parameters = self.model.trainable_parameters()
        try:
            check_fit(kinds["parameter"], shapes_of(self.state()))
            check_fit(kinds["optimizer"], shapes_of(self.optimizer.state))
            check_fit(kinds["best"], shapes_of(self.state() if kinds["best"] else {}))
            note = json.loads(metadata["minilora"])
            t, history = int(note["t"]), History(**note["history"])
            check_settings(note.get("settings"), self.settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a checkpoint of this run: {error}") from None
        for name, parameter in parameters.items():
            parameter.data = get_array_module(parameter.data).asarray(kinds["parameter"][name])
        self.optimizer.load_state(kinds["optimizer"], t)
        self.best = {name: get_array_module(parameters[name].data).asarray(x) for name, x in kinds["best"].items()}
        self.history = history


def check_settings(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise ValueError where a run was begun with other settings than it is resumed with, or does not say them."""
    if before is None:
        raise ValueError("it does not say its seed and steps, as those of older versions: start again")
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(f"it was begun with {key} = {before.get(key)!r}, not {value!r}: resume with the same")
