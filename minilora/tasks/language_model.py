"""Language modelling over bytes: pretraining the built-in base, and fine-tuning with LoRA."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import text
from ..accounting import count_parameters
from ..checkpoint import to_json, write_files
from ..families import llama
from ..lora import attach_lora
from ..modules import Module
from ..optim import AdamW, Schedule, cosine_schedule
from ..peft import adapter_files
from ..pretrained import base_hash, load_pretrained, model_files
from ..training import evaluate, fit
from ..transformer import Config, Transformer
from .runs import CHECKPOINT, HISTORY, SETTINGS, how_to_go_on, training_folder

PRETRAINING = "pretraining.json"

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
