"""Small training runs, a small comparison of methods, and what interrupts a run: a kill, or Ctrl-C."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import SMALL, WORDS, make_inputs, tree
from models import build

from minilora import files as checkpoint
from minilora.adapters.attach import attach_lora
from minilora.backend import to_numpy
from minilora.cli import main
from minilora.data import Batch, Split
from minilora.jobs import demo, methods, methods_cells, text
from minilora.jobs.methods import run as run_of_a_comparison
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.transformer import Transformer
from minilora.ops import IGNORE
from minilora.training import fit


def learner(dtype: str = "float32", dropout: float = 0.0) -> Transformer:
    """A small adapted model, its lora_B no longer 0."""
    model, rng = build("llama", dtype=dtype), np.random.default_rng(3)
    attach_lora(model, "all-linear", 2, rng=rng, dropout=dropout)
    for path, parameter in model.trainable_parameters().items():
        if path.endswith("lora_B"):
            parameter.data = (0.1 * rng.standard_normal(parameter.data.shape)).astype(dtype)
    return model


def some(seed: int, B: int = 4, T: int = 6, padded: bool = False) -> Batch:
    """Rows with unequal numbers of labels; with padding, of unequal length too."""
    rng = np.random.default_rng([5, seed])
    ids = rng.integers(0, 13, (B, T))
    real = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    labelled = (rng.random((B, T)) < rng.random((B, 1))) & (real | (not padded))
    targets = np.where(labelled, rng.integers(0, 13, (B, T)), IGNORE)
    return Batch(ids, targets, *((real, rng.integers(0, 3, (B, T))) if padded else ()))


def bits(model: Transformer) -> dict[str, bytes]:
    return {path: to_numpy(data).tobytes() for path, data in model.state_dict().items()}


def quietly(model: Transformer, batches: Callable[[int], Batch] = some, steps: int = 6, **options: Any) -> Any:
    return fit(model, batches, steps, description=None, **options)


SPLIT = Split(WORDS, WORDS[:400], WORDS[200:900])


def small_model(source: Any = "builtin") -> Transformer:
    return llama(Config(**SMALL | {"d_model": 32, "d_ff": 40}), np.random.default_rng(1))


def small_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, text and task in the place of the built-in ones, and no recorded rates."""
    small = {"load_pretrained": small_model, "python_source": lambda: SPLIT, "BATCH": 2, "LENGTH": 16}
    for module in (methods, methods_cells, demo):
        for name in small.keys() & vars(module):
            monkeypatch.setattr(module, name, small[name])
    monkeypatch.setattr(methods, "STEPS", 3)
    monkeypatch.setattr(methods, "RATES", Path("none.json"))
    monkeypatch.setattr(methods, "methods_figure", lambda report, titles: "\n".join(titles).encode())


def run_small(*call: Any) -> float:
    """A run of a comparison in another process, where small_comparison() was not called."""
    with pytest.MonkeyPatch.context() as patched:
        small_comparison(patched)
        return run_of_a_comparison(*call)


class Killed(BaseException):
    """Nobody catches this."""


def watch(monkeypatch: pytest.MonkeyPatch, hook: Callable[[str], None]) -> list[Path]:
    """Call `hook` before and after each batch and each moment at which something reaches the disk.

    Returns the files that were opened for writing and may not have reached it yet, a list that follows the run.
    """
    unsynced: list[Path] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            hook(f"before {name}")
            result = original(*arguments, **options)
            if name == "fsync":
                unsynced.clear()
            hook(f"after {name}")
            return result

        return call

    def opened(path: Path, mode: str) -> Any:
        unsynced.append(path.absolute())
        hook("before open")
        return open(path, mode)

    def windows(*arguments: Any) -> Callable[[int], Batch]:
        return watched("a batch", random_windows(*arguments))

    random_windows = text.random_windows
    monkeypatch.setattr(text, "random_windows", windows)
    for name in ("fsync", "replace", "mkdir"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    return unsynced


def undisturbed(folder: Path, command: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The files that the command writes to `folder`, where its inputs are made, and the events that watch() sees."""
    events: list[str] = []
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        watch(patched, events.append)
        assert main(command) == 0
    return tree(folder), events


def tear(folder: Path, copy: Path, unsynced: list[Path], rng: np.random.Generator) -> None:
    """What a killed process leaves: all as it is now, but files that have not reached the disk cut at any byte."""
    shutil.copytree(folder, copy)
    for path in unsynced:
        torn = copy / path.relative_to(folder)
        content = torn.read_bytes() if torn.exists() else b""
        torn.write_bytes(content[: rng.integers(0, len(content) + 1)])


def interrupting(monkeypatch: pytest.MonkeyPatch, *moments: tuple[str, int]) -> None:
    """Ctrl-C at the n-th event of a name, for each (name, n)."""
    seen: list[str] = []

    def hook(event: str) -> None:
        seen.append(event)
        if (event, seen.count(event)) in moments:
            signal.raise_signal(signal.SIGINT)

    def reading(*arguments: Any) -> Any:
        hook("evaluation")
        return all_windows(*arguments)

    all_windows = text.all_windows
    watch(monkeypatch, hook)
    monkeypatch.setattr(text, "all_windows", reading)
