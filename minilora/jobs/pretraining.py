"""Pretraining the built-in base: a llama over bytes, on English prose."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..data import all_windows, bits, english, random_windows
from ..data.bits import bigram_bits_per_byte, lzma_bits_per_byte, zlib_bits_per_byte
from ..files import to_json, write_files
from ..models.config import Config
from ..models.families.llama import llama
from ..models.saving import model_files
from ..models.transformer import Transformer
from ..nn import Module
from ..nn.optim import AdamW, Schedule, cosine_schedule
from ..training import evaluate, fit
from .runs import CHECKPOINT, SETTINGS, training_folder

SHAPE = Config(vocab_size=256, n_layers=5, d_model=128, n_heads=4, n_kv_heads=2, d_ff=344, max_length=128)
RECIPE = {"steps": 1600, "batch": 16, "length": 128, "lr": 4e-3, "warmup": 50, "weight_decay": 0.1}
RECIPE |= {"seed": 0, "shards": 2}


def recipe_optimizer(model: Module, recipe: dict[str, Any]) -> tuple[AdamW, Schedule]:
    """AdamW with β₂ = 0.99, as runs are short, and its schedule: warm-up, then half a cosine."""
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, recipe["lr"], betas=(0.9, 0.99), weight_decay=recipe["weight_decay"])
    return optimizer, cosine_schedule(recipe["steps"], recipe["warmup"])


def pretrain(out: str | Path, *, resume: bool = False, backend: ModuleType = np, **changes: Any) -> dict[str, Any]:
    """Pretrain the built-in base with RECIPE | changes, into the folder `out`.

    `out` then holds config.json, model.safetensors and pretraining.json, which is also returned: the recipe, the
    versions of Python and NumPy, a hash of the text, the loss of every step in nats, and bits per byte of the held-out
    text beside those of compressors.
    """
    recipe, text = RECIPE | changes, english().train
    sha256 = hashlib.sha256(text).hexdigest()
    model = llama(SHAPE, np.random.default_rng(recipe["seed"]))
    model.to(backend)
    with training_folder(out, recipe | {"corpus_sha256": sha256}, resume) as folder:
        batches = random_windows(text, recipe["batch"], recipe["length"], recipe["seed"])
        optimizer, schedule = recipe_optimizer(model, recipe)
        history = fit(
            model, batches, recipe["steps"], optimizer=optimizer, schedule=schedule, shards=recipe["shards"],
            seed=recipe["seed"], checkpoint=folder / CHECKPOINT, resume=resume, description="pretraining",
        )  # fmt: skip
        report = {
            "recipe": recipe,
            "corpus": {"name": "pydoc_data.topics", "bytes": len(text), "sha256": sha256},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "loss": [round(loss, 6) for loss in history.loss],
            "bits_per_byte": evaluate_english(model, recipe["shards"]),
        }
        write_files(folder, model_files(model) | {"pretraining.json": to_json(report)})
        for name in (CHECKPOINT, SETTINGS):  # the folder of a model holds no run
            (folder / name).unlink()
    return report


def evaluate_english(model: Transformer, shards: int) -> dict[str, float]:
    """Bits per byte of the held-out English: of the model, and of compressors that were given the training text."""
    corpus = english()
    return {
        "model": bits_per_byte(model, corpus.test, shards, "reading English"),
        "zlib": zlib_bits_per_byte(corpus.test, corpus.train),
        "lzma": lzma_bits_per_byte(corpus.test, corpus.train),
        "bigram": bigram_bits_per_byte(corpus.test, corpus.train),
    }


def bits_per_byte(model: Transformer, data: bytes, shards: int, description: str) -> float:
    """Bits per byte of `data` under `model`; every byte has at least half a window of bytes before it."""
    windows = all_windows(data, 16, model.config.max_length)
    return bits(evaluate(model, windows, shards=shards, description=description))
