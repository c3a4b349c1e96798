"""Checkpoints: everything that a training run needs to resume, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from ..files import load_tensors, save_tensors
from ..nn import Sequential, check_fit, shapes_of
from ..nn.optim import Optimizer
from .history import History


def trainable_state(model: Sequential) -> dict[str, Array]:
    """{path: array} of the trainable parameters. Optimizers replace arrays and write into none: it is a snapshot."""
    return {path: parameter.data for path, parameter in model.trainable_parameters().items()}


def save_checkpoint(
    path: Path,
    model: Sequential,
    optimizer: Optimizer,
    after_step: Any,
    history: History,
    best: dict[str, Array],
    settings: dict[str, Any],
) -> None:
    """Write the trainable parameters, the state of the optimizer and of the `after_step` callback, if it has one, the
    history, the best parameters and the settings.

    Raises FloatingPointError if a parameter is not finite, and leaves the older checkpoint as it is.
    """
    tensors = {f"parameter.{name}": data for name, data in trainable_state(model).items()}
    bad = next((name for name, data in tensors.items() if not np.isfinite(to_numpy(data)).all()), None)
    if bad:
        raise FloatingPointError(f"{bad} is not finite after step {optimizer.t}: lower the learning rate")
    tensors |= {f"optimizer.{name}": data for name, data in optimizer.state.items()}
    tensors |= {f"after_step.{name}": data for name, data in state_of(after_step).items()}
    tensors |= {f"best.{name}": data for name, data in best.items()}
    note = {"t": optimizer.t, "history": asdict(history), "settings": settings}
    save_tensors(path, tensors, {"minilora": json.dumps(note, sort_keys=True)})


def load_checkpoint(
    path: Path, model: Sequential, optimizer: Optimizer, after_step: Any, settings: dict[str, Any]
) -> tuple[History, dict[str, Array]]:
    """Load the parameters, and the state of the optimizer and of the `after_step` callback; return the history and the
    best parameters.

    Raises ValueError, with nothing changed, for a file that is damaged or of a run with other settings.
    """
    tensors, metadata = load_tensors(path)
    kinds: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "optimizer": {}, "after_step": {}, "best": {}}
    for name, data in tensors.items():
        kind, _, rest = name.partition(".")
        kinds.get(kind, {})[rest] = data
    parameters = model.trainable_parameters()
    shapes = shapes_of(trainable_state(model))
    try:
        check_fit(kinds["parameter"], shapes)
        check_fit(kinds["optimizer"], shapes_of(optimizer.state))
        check_fit(kinds["after_step"], shapes_of(state_of(after_step)))
        check_fit(kinds["best"], shapes if kinds["best"] else {})
        note = json.loads(metadata["minilora"])
        t, history = int(note["t"]), History(**note["history"])
        check_settings(note["settings"], settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run: {error}") from None
    for name, parameter in parameters.items():
        parameter.data = get_array_module(parameter.data).asarray(kinds["parameter"][name])
    optimizer.load_state(kinds["optimizer"], t)
    if kinds["after_step"]:
        after_step.load_state(kinds["after_step"])
    return history, {name: get_array_module(parameters[name].data).asarray(x) for name, x in kinds["best"].items()}


def state_of(after_step: Any) -> dict[str, Array]:
    state: dict[str, Array] = getattr(after_step, "state", {})
    return state


def check_settings(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError unless a checkpoint's settings are those of this run."""
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(f"it was started with {key} = {before.get(key)!r}, not {value!r}: resume with the same")
