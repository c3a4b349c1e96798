"""Pretraining the built-in base: a llama over bytes, on English prose."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..data import (
    all_windows,
    bigram_bits_per_byte,
    bits,
    english,
    lzma_bits_per_byte,
    random_windows,
    zlib_bits_per_byte,
)
from ..files import to_json
from ..models.config import Config
from ..models.families.llama import llama
from ..models.saving import model_files
from ..models.transformer import Transformer
from ..nn import Module
from ..nn.optim import AdamW, Schedule, cosine_schedule
from ..training import History, evaluate, fit
from .finetuning import Job
from .runs import CHECKPOINT, SETTINGS

PRETRAINING = "pretraining.json"

SHAPE = Config(vocab_size=256, n_layers=5, d_model=128, n_heads=4, n_kv_heads=2, d_ff=344, max_length=128)
RECIPE = {"steps": 1600, "batch": 16, "length": 128, "lr": 4e-3, "warmup": 50, "weight_decay": 0.1}
RECIPE |= {"seed": 0, "shards": 2}


def recipe_optimizer(model: Module, recipe: dict[str, Any]) -> tuple[AdamW, Schedule]:
    """What pretraining steps with: AdamW with β₂ = 0.99 (runs are short), warm-up, half a cosine."""
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, recipe["lr"], betas=(0.9, 0.99), weight_decay=recipe["weight_decay"])
    return optimizer, cosine_schedule(recipe["steps"], recipe["warmup"])


class Pretraining(Job):
    """The built-in base from nothing, as `recipe` says."""

    def __init__(self, recipe: dict[str, Any], backend: ModuleType) -> None:
        self.recipe, self.corpus = recipe, english()
        self.model = llama(SHAPE, np.random.default_rng(recipe["seed"]))
        self.model.to(backend)
        self.saved = recipe | {"corpus_sha256": hashlib.sha256(self.corpus.train).hexdigest()}

    def fit(self, **options: Any) -> History:
        recipe, text = self.recipe, self.corpus.train
        batches = random_windows(text, recipe["batch"], recipe["length"], recipe["seed"])
        optimizer, schedule = recipe_optimizer(self.model, recipe)
        return fit(
            self.model, batches, recipe["steps"], optimizer=optimizer, schedule=schedule, shards=recipe["shards"],
            seed=recipe["seed"], description="pretraining", **options,
        )  # fmt: skip

    def results(self, history: History) -> tuple[dict[str, Any], dict[str, bytes]]:
        text = self.corpus.train
        report = {
            "recipe": self.recipe,
            "corpus": {"name": "pydoc_data.topics", "bytes": len(text), "sha256": self.saved["corpus_sha256"]},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "loss": [round(loss, 6) for loss in history.loss],
            "bits_per_byte": evaluate_english(self.model, self.recipe["shards"]),
        }
        return report, model_files(self.model) | {PRETRAINING: to_json(report)}

    def write(self, folder: Path, files: dict[str, bytes]) -> None:
        """The folder of a model holds no run."""
        super().write(folder, files)
        (folder / CHECKPOINT).unlink()
        (folder / SETTINGS).unlink()


def pretrain(out: str | Path, *, resume: bool = False, backend: ModuleType = np, **changes: Any) -> dict[str, Any]:
    """Pretrain the built-in base as RECIPE says but for `changes`, into the folder `out`.

    `out` then holds config.json, model.safetensors and pretraining.json, which is also returned: the recipe, what it
    ran on, a hash of the text, the loss of every step in nats, and bits per byte of the held-out text beside those of
    compressors.
    """
    return Pretraining(RECIPE | changes, backend).run(out, resume=resume)


def evaluate_english(model: Transformer, shards: int) -> dict[str, float]:
    """Bits per byte of the held-out English: the model's, and what knows the training text makes of it."""
    corpus = english()
    return {
        "model": bits_per_byte(model, corpus.test, shards, "reading English"),
        "zlib": zlib_bits_per_byte(corpus.test, corpus.train),
        "lzma": lzma_bits_per_byte(corpus.test, corpus.train),
        "bigram": bigram_bits_per_byte(corpus.test, corpus.train),
    }


def bits_per_byte(model: Transformer, data: bytes, shards: int, description: str) -> float:
    """What `model` needs for `data`, every byte seen with at least half a window of others before it."""
    windows = all_windows(data, 16, model.config.max_length)
    return bits(evaluate(model, windows, shards=shards, description=description))
