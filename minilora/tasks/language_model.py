"""Language modelling over bytes: pretraining the built-in base, and fine-tuning with LoRA."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import text
from ..accounting import count_parameters
from ..checkpoint import check_writable, load_tensors, read_json, to_json, write_files, write_folder
from ..families import llama
from ..lora import attach_lora
from ..modules import Module
from ..optim import AdamW, Schedule, cosine_schedule
from ..peft import CONFIG, WEIGHTS, adapter_files
from ..pretrained import base_hash, load_pretrained, model_files
from ..training import evaluate, fit
from ..transformer import Config, Transformer

SETTINGS, CHECKPOINT, HISTORY, PRETRAINING = (
    "settings.json",
    "checkpoint.safetensors",
    "history.json",
    "pretraining.json",
)
FILES = (SETTINGS, CHECKPOINT, HISTORY, CONFIG, WEIGHTS)  # what fine-tuning writes

# The built-in base: a llama over bytes, and the recipe that made it.
SHAPE = Config(vocab=256, layers=5, width=128, heads=4, kv_heads=2, hidden=344, context=128)
RECIPE = {
    "steps": 1600,
    "batch": 16,
    "length": 128,
    "lr": 4e-3,
    "warmup": 50,
    "weight_decay": 0.1,
    "seed": 0,
    "shards": 2,
}


def recipe_optimizer(model: Module, recipe: dict[str, Any]) -> tuple[AdamW, Schedule]:
    """What pretraining steps with: AdamW with β₂ = 0.99 (runs are short), warm-up, half a cosine."""
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, recipe["lr"], betas=(0.9, 0.99), weight_decay=recipe["weight_decay"])
    return optimizer, cosine_schedule(recipe["steps"], recipe["warmup"])


def pretrain(out: str | Path, *, resume: bool = False, backend: ModuleType = np, **changes: Any) -> dict[str, Any]:
    """Pretrain the built-in base on English prose, as RECIPE says but for `changes`, into the folder `out`.

    `out` then holds config.json, model.safetensors and pretraining.json: the recipe, what it ran on, a hash of
    the text, the loss of every step in nats, and bits per byte on the held-out text beside those of compressors.
    """
    recipe = RECIPE | changes
    english = text.english()
    batches = text.random_windows(english.train, recipe["batch"], recipe["length"], recipe["seed"])
    model = llama(SHAPE, np.random.default_rng(recipe["seed"]))
    model.to(backend)
    settings = recipe | {"corpus_sha256": hashlib.sha256(english.train).hexdigest()}
    folder = training_folder(out, settings, resume)
    optimizer, schedule = recipe_optimizer(model, recipe)
    with how_to_go_on(folder):
        history = fit(
            model, batches, recipe["steps"], optimizer=optimizer, schedule=schedule, shards=recipe["shards"],
            seed=recipe["seed"], checkpoint=folder / CHECKPOINT, resume=resume, description="pretraining",
        )  # fmt: skip
        judged = judge_english(model, recipe["shards"])
    note = {
        "recipe": recipe,
        "corpus": {"name": "pydoc_data.topics", "bytes": len(english.train), "sha256": settings["corpus_sha256"]},
        "python": platform.python_version(),
        "numpy": np.__version__,
        "loss": [round(loss, 6) for loss in history.loss],
        "bits_per_byte": judged,
    }
    write_files(folder, model_files(model) | {PRETRAINING: to_json(note)})
    (folder / CHECKPOINT).unlink()
    (folder / SETTINGS).unlink()
    return note


def judge_english(model: Transformer, shards: int) -> dict[str, float]:
    """Bits per byte of the held-out English: the model's, and what knows the training text makes of it."""
    english = text.english()
    return {
        "model": bits_per_byte(model, english.test, shards, "reading English"),
        "zlib": text.zlib_bits_per_byte(english.test, english.train),
        "lzma": text.lzma_bits_per_byte(english.test, english.train),
        "bigram": text.bigram_bits_per_byte(english.test, english.train),
    }


def bits_per_byte(model: Transformer, data: bytes, shards: int, description: str) -> float:
    """What `model` needs for `data`, every byte seen with at least half a window of others before it."""
    windows = text.all_windows(data, 16, model.config.context)
    return text.bits(evaluate(model, windows, shards=shards, description=description))


def finetune(
    base: str,
    data: str,
    out: str | Path,
    *,
    targets: str | list[str] = "all-linear",
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    rslora: bool = False,
    lr: float = 8e-3,
    steps: int = 100,
    batch: int = 16,
    length: int = 128,
    accumulate: int = 1,
    patience: int = 0,
    evaluate_every: int = 50,
    checkpoint_every: int = 50,
    seed: int = 0,
    shards: int = 2,
    resume: bool = False,
    backend: ModuleType = np,
) -> dict[str, Any]:
    """Fine-tune `base` with LoRA on a text file, or on Python source ("builtin"), into the folder `out`.

    `out` then holds the adapter in PEFT's format, settings.json, history.json and checkpoint.safetensors. All that
    can be wrong with the input is found before the folder is made. With `resume`, the run in `out` goes on from its
    checkpoint, with the same settings or at another `lr`. Returns a summary.
    """
    model = load_pretrained(base)
    text.check_vocabulary(model.config)
    if length > model.config.context:
        raise ValueError(f"windows of {length} bytes are longer than the model's {model.config.context} positions")
    model.to(backend)
    split = text.python_source() if data == "builtin" else text.read_text(data)
    batches = text.random_windows(split.train, batch, length, seed)
    held_out = text.excerpts(split.validation, 8192)
    if len(held_out) < 2:
        raise ValueError(f"{data} leaves {len(held_out)} bytes to hold out: give more text")
    rng = np.random.default_rng(seed)
    adapted = attach_lora(model, targets, rank, alpha, rng=rng, dropout=dropout, rslora=rslora)
    settings = {
        "base": base,
        "base_sha256": base_hash(model),
        "data": data,
        "data_sha256": text_hash(split),
        "targets": targets,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "rslora": rslora,
        "lr": lr,
        "steps": steps,
        "batch": batch,
        "length": length,
        "accumulate": accumulate,
        "patience": patience,
        "evaluate_every": evaluate_every,
        "seed": seed,
        "shards": shards,
    }
    folder = training_folder(out, settings, resume)
    with how_to_go_on(folder):
        history = fit(
            model, batches, steps, lr=lr, schedule=cosine_schedule(steps, min(10, steps // 10)), accumulate=accumulate,
            shards=shards, seed=seed, held_out=lambda: text.all_windows(held_out, batch, length),
            evaluate_every=evaluate_every, patience=patience, checkpoint=folder / CHECKPOINT,
            checkpoint_every=checkpoint_every, resume=resume, description="fine-tuning",
        )  # fmt: skip
    write_files(folder, adapter_files(model) | {HISTORY: to_json(asdict(history))})
    return {
        "adapted": len(adapted),
        "trainable": count_parameters(model)["trainable"],
        "steps": len(history.loss),
        "bits_per_byte": {step: text.bits(loss) for step, loss in history.evaluations},
    }


def text_hash(split: text.Split) -> str:
    """sha256 over all of a text, what is held out too."""
    return hashlib.sha256(b"".join(split)).hexdigest()


def training_folder(out: str | Path, settings: dict[str, Any], resume: bool) -> Path:
    """The folder of a run, with its settings. A folder with settings and no checkpoint is of a run not yet begun.

    Resumed, a run may go on at another learning rate, such as a lower one after numbers that blew up; settings.json
    then says until which step the old one held. Raises ValueError if the folder is taken, or the run had
    other settings; OSError if nothing can be written there.
    """
    folder = Path(out)
    before = read_settings(folder) if (folder / SETTINGS).is_file() else {}
    begun = bool(before) and (folder / CHECKPOINT).is_file()
    if not resume:
        if begun:
            raise ValueError(f"{folder} already holds a run: --resume goes on with it, or choose another folder")
        write_folder(folder, {SETTINGS: to_json(settings)}, replaces=[SETTINGS] if before else [])
        return folder
    if not before:
        raise FileNotFoundError(f"{folder} holds no run to resume: start one without --resume")
    check_writable(folder, FILES)
    if not begun:
        write_files(folder, {SETTINGS: to_json(settings)})
        return folder
    lr, (done, stopped_early) = before.get("lr"), progress(folder)
    if settings["lr"] != lr and done < settings["steps"] and not stopped_early:
        check_settings(folder, settings | {"lr": lr})
        settings = {f"lr_until_step_{done}": lr} | before | {"lr": settings["lr"]}
        write_files(folder, {SETTINGS: to_json(settings)})
    else:
        check_settings(folder, settings)
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises ValueError for a settings.json of something else."""
    settings = read_json(folder / SETTINGS)
    lacking = next((key for key in ("steps", "seed", "batch", "length") if key not in settings), None)
    if lacking:
        raise ValueError(f"{folder / SETTINGS} is not of a run, it lacks {lacking!r}: choose another folder")
    return settings


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the run in `folder` had other settings. Base and text are told by their hashes: a file may
    go by several names."""
    before = read_settings(folder)
    key = next((key for key in settings if key not in ("base", "data") and before.get(key) != settings[key]), None)
    if key:
        changed = f"{folder} was run with {key} = {before.get(key)!r}, not {settings[key]!r}"
        if key.endswith("_sha256"):
            changed = f"the {key.removesuffix('_sha256')} is not the one that {folder} was run with"
        raise ValueError(f"{changed}: resume with the same settings, or choose another folder")


@contextmanager
def how_to_go_on(folder: Path) -> Iterator[None]:
    """When a run is stopped or blows up, say what a person can do then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        words = stop.args[0] if stop.args else "stopped"
        advice = " before the first checkpoint: start again"
        if (folder / CHECKPOINT).is_file():
            advice = "; the same command with --resume goes on"
        raise KeyboardInterrupt(words + advice) from None
    except FloatingPointError as error:
        advice = "no step is kept: start again, in the same folder"
        if (folder / CHECKPOINT).is_file():  # a rate far too high may have spoilt what it holds, finite as it is
            advice = "--resume goes on from there, or start in another folder"
        raise FloatingPointError(f"{error}; {advice}") from None


def progress(folder: Path) -> tuple[int, bool]:
    """How many steps the checkpoint in `folder` holds, 0 without one, and whether the last of them was an early stop.

    Raises ValueError for a file that is no checkpoint.
    """
    if not (folder / CHECKPOINT).is_file():
        return 0, False
    _, metadata = load_tensors(folder / CHECKPOINT)
    try:
        history = json.loads(metadata["minilora"])["history"]
        return len(history["loss"]), bool(history["stopped_early"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / CHECKPOINT} is not a checkpoint of minilora: it does not say its steps") from None


def describe_run(folder: Path) -> dict[str, str]:
    """What `minilora info` says of the folder of a run."""
    settings, (done, stopped_early) = read_settings(folder), progress(folder)
    return {
        "run": f"{done} of {settings['steps']} steps{', stopped early' * stopped_early}, seed {settings['seed']}",
        "on": f"{settings.get('data', 'English prose')}, batches of {settings['batch']} x {settings['length']} bytes",
    }
