"""Language modelling: pretraining the built-in base over bytes, and fine-tuning any with LoRA."""

from __future__ import annotations

import hashlib
import platform
import re
import warnings
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..accounting import count_parameters
from ..adapters.attach import attach_lora
from ..adapters.peft import adapter_files
from ..data import (
    PIECE as DECODED,
)
from ..data import (
    Batch,
    Split,
    all_windows,
    bigram_bits_per_byte,
    bits,
    english,
    excerpts,
    lzma_bits_per_byte,
    perplexity,
    python_source,
    random_windows,
    split_file,
    zlib_bits_per_byte,
)
from ..data.records import LINES, SEPARATORS, columns_of, shortened
from ..display.tables import visible
from ..files import to_json, write_files
from ..models.config import Config
from ..models.families import llama
from ..models.generation import check_continues, stream
from ..models.pretrained import base_hash, load_pretrained, load_tokenizer, model_files
from ..models.tokenizer import ByteTokenizer, Tokenizer
from ..models.transformer import Transformer
from ..nn import Module
from ..nn import recompute as recompute_blocks
from ..nn.optim import AdamW, Schedule, cosine_schedule
from ..spelling import did_you_mean
from ..training import evaluate, fit
from .data import Numbers, of_tokens, warn
from .runs import CHECKPOINT, HISTORY, SAMPLES, SETTINGS, base_for, base_settings, tokenizer_hash, training_folder

PRETRAINING = "pretraining.json"
NEXT = "generate --prompt 'The '"  # what to do with an adapter
SAMPLE = 48  # tokens of a sample
PIECE, NEAR = 2**18, 256  # bytes of a text: encoded at a time, and looked at where it is cut
SEAM = re.compile(rb"(?<=\S) (?=\S)")

# The built-in base: a llama over bytes, and the recipe that made it.
SHAPE = Config(vocab_size=256, n_layers=5, d_model=128, n_heads=4, n_kv_heads=2, d_ff=344, max_length=128)
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
    corpus = english()
    batches = random_windows(corpus.train, recipe["batch"], recipe["length"], recipe["seed"])
    model = llama(SHAPE, np.random.default_rng(recipe["seed"]))
    model.to(backend)
    settings = recipe | {"corpus_sha256": hashlib.sha256(corpus.train).hexdigest()}
    optimizer, schedule = recipe_optimizer(model, recipe)
    with training_folder(out, settings, resume) as folder:
        history = fit(
            model, batches, recipe["steps"], optimizer=optimizer, schedule=schedule, shards=recipe["shards"],
            seed=recipe["seed"], checkpoint=folder / CHECKPOINT, resume=resume, description="pretraining",
        )  # fmt: skip
        held_out = evaluate_english(model, recipe["shards"])
        note = {
            "recipe": recipe,
            "corpus": {"name": "pydoc_data.topics", "bytes": len(corpus.train), "sha256": settings["corpus_sha256"]},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "loss": [round(loss, 6) for loss in history.loss],
            "bits_per_byte": held_out,
        }
        write_files(folder, model_files(model) | {PRETRAINING: to_json(note)})
        (folder / CHECKPOINT).unlink()
        (folder / SETTINGS).unlink()
    return note


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


class TextData(NamedTuple):
    """What a file teaches."""

    batches: Callable[[int], Batch]  # the i-th of them
    held_out: Callable[[], Iterable[Batch]]  # what is evaluated
    tokens_per_byte: float  # of what is held out: nats per token -> nats per byte
    prompt: str  # held out too, for the samples
    special: bool  # whether the tokenizer puts its special tokens around the prompt, or it has them already
    sha256: str  # of what the file holds
    said: str  # how much there is, for a person
    parts: dict[str, Numbers]  # how much, in numbers, of what is learned from and of what is held out
    shared: int = 0  # rows that are in both


def read_text(data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int, encoding: str = "utf-8") -> TextData:
    """Windows of `length` tokens of a text file, or of Python source ("builtin"), anywhere in the text."""
    meant = did_you_mean(data, ["builtin"])
    if meant and data != "builtin" and not Path(data).exists():
        raise FileNotFoundError(f"{meant}there is no file {data!r}")
    split = python_source() if data == "builtin" else split_file(data, encoding)
    columns = [] if data == "builtin" else columns_of(split.train[:DECODED].decode(errors="ignore"))
    if columns or data.lower().endswith((*SEPARATORS, *LINES)):
        task = "instruct" if {"prompt", "answer"} <= set(columns) else "classify"
        of = f" of the columns {shortened(', '.join(map(repr, columns)))}" if columns else ""
        warnings.warn(
            f"{data} looks like a table{of}: was --task {task} meant? As a text, the model learns to write such a file",
            stacklevel=2,
        )
    validation = excerpts(split.validation, 8192)
    train, held_out = tokens_of(split.train, tokenizer), tokens_of(validation, tokenizer)
    batches = random_windows(train, batch, length, seed)
    if len(held_out) < 2:
        raise ValueError(f"{data} leaves {len(held_out)} tokens to hold out: give more text")
    return TextData(
        batches,
        lambda: all_windows(held_out, batch, length),
        tokens_per_byte=len(held_out) / len(validation),
        prompt=(validation.partition(b"\n")[2] or validation)[:100].decode(errors="ignore"),  # the first line is cut
        special=True,
        sha256=text_hash(split),
        said=f"{len(train):,} tokens to learn from, {len(held_out):,} held out",
        parts={"to learn from": of_tokens(train, tokenizer), "held out": of_tokens(held_out, tokenizer)},
    )


def tokens_of(data: bytes, tokenizer: Tokenizer) -> bytes | np.ndarray:
    """(N,) uint16 or int32; or `data`, where the tokens are its bytes. A letter cut at an end of it is left out.

    A long text is encoded in pieces: beside each token, the package keeps a hundred bytes for as long as it encodes.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return data
    ids, start = array("H" if tokenizer.vocab <= 2**16 else "i"), 0  # it grows in place
    while start < len(data):
        stop, following = seam(data, start + PIECE, tokenizer)
        piece = data[start:stop].decode(errors="ignore")
        ids.frombytes(tokenizer.encode(piece, special=False).astype(ids.typecode).tobytes())
        start = following
    return np.frombuffer(ids, ids.typecode)


def seam(data: bytes, start: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """The first place from `start` on, between two words, where `data` can be cut without a change of its tokens: where
    one piece ends, and where the next begins, before the space or after it (some tokenizers put one before a text)."""

    def ids(part: bytes) -> list[int]:
        return tokenizer.encode(part.decode(errors="ignore"), special=False).tolist()

    for found in SEAM.finditer(data, start):
        i = found.start()
        before, whole = data[max(0, i - NEAR) : i], ids(data[max(0, i - NEAR) : i + NEAR])
        for following in (i, i + 1):
            if ids(before) + ids(data[following : i + NEAR]) == whole:
                return i, following
    return len(data), len(data)


def finetune(
    base: str,
    data: str,
    out: str | Path,
    *,
    read: Callable[[str, Tokenizer, int, int, int, str], TextData] = read_text,
    encoding: str = "utf-8",
    targets: str | list[str] = "all-linear",
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    rslora: bool = False,
    lr: float = 8e-3,
    steps: int = 100,
    batch: int = 16,
    length: int = 128,
    accumulate: int = 1,
    recompute: bool = False,
    patience: int = 0,
    evaluate_every: int = 50,
    checkpoint_every: int = 50,
    seed: int = 0,
    shards: int = 2,
    resume: bool = False,
    tell: Callable[[Numbers], None] | None = None,
    backend: ModuleType = np,
) -> dict[str, Any]:
    """Fine-tune `base` with LoRA on what `read` finds in a file, into the folder `out`.

    `tell` is called before the training with the numbers of the data, which data.show prints.

    `out` then holds the adapter in PEFT's format, settings.json, history.json (losses in nats per token), samples.json
    and checkpoint.safetensors. All that can be wrong with the input is found before the folder is made. With
    `recompute`, blocks keep their input alone and run again for the backward: less memory, more time, the same bytes.
    With `resume`, the run in `out` goes on from its checkpoint, with the same settings or at another `lr`; a base that
    is a name on the Hub is then the commit that the run began with. Returns a summary.
    """
    source = base_for(Path(out), base) or base
    model, tokenizer = load_pretrained(source), load_tokenizer(source)
    check_continues(model, tokenizer)
    check_windows(model, length)
    model.to(backend)
    dataset = read(data, tokenizer, batch, length, seed, encoding)
    warn(dataset.parts)
    rng = np.random.default_rng(seed)
    adapted = attach_lora(model, targets, rank, alpha, rng=rng, dropout=dropout, rslora=rslora)
    settings = {
        **base_settings(model, base),
        "base_sha256": base_hash(model),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "data": data,
        "data_sha256": dataset.sha256,
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
    numbers = {"length": length, "parts": dataset.parts, "shared": dataset.shared}
    with training_folder(out, settings, resume) as folder:
        if tell:
            tell(numbers)
        samples = {"prompt": dataset.prompt, "before": sample(model, tokenizer, dataset)}
        if recompute:
            recompute_blocks(model)
        history = fit(
            model, dataset.batches, steps, lr=lr, schedule=cosine_schedule(steps, min(10, steps // 10)),
            accumulate=accumulate, shards=shards, seed=seed, held_out=dataset.held_out, evaluate_every=evaluate_every,
            patience=patience, checkpoint=folder / CHECKPOINT, checkpoint_every=checkpoint_every, resume=resume,
            description="fine-tuning",
        )  # fmt: skip
        samples["after"] = sample(model, tokenizer, dataset)
        files = adapter_files(model) | {HISTORY: to_json(asdict(history)), SAMPLES: to_json(samples)}
        write_files(folder, files)
    return {
        "adapted": len(adapted),
        "trainable": count_parameters(model)["trainable"],
        "said": dataset.said,
        "data": numbers,
        "steps": len(history.loss),
        "perplexity": {step: perplexity(loss) for step, loss in history.evaluations},
        "bits_per_byte": {step: bits(loss * dataset.tokens_per_byte) for step, loss in history.evaluations},
        "samples": samples,
    }


def check_windows(model: Transformer, length: int) -> None:
    """Raise ValueError for windows of `length` tokens that are longer than the model's context."""
    if length > model.config.max_length:
        raise ValueError(f"windows of {length} tokens are longer than the model's {model.config.max_length} positions")


@np.errstate(all="ignore")  # a loss that blew up has been reported
def sample(model: Transformer, tokenizer: Tokenizer, dataset: TextData) -> str:
    """What the model adds to the held-out prompt, the most probable token each time."""
    return "".join(stream(model, dataset.prompt, SAMPLE, tokenizer=tokenizer, special=dataset.special))


def show(done: dict[str, Any]) -> None:
    """The summary of finetune() for a person."""
    print(done["said"])
    print(f"{done['adapted']} layers adapted, {done['trainable']:,} parameters trained for {done['steps']} steps")
    for step, value in done["bits_per_byte"].items():
        print(
            f"step {step:>5}: {value:.3f} bits per byte held out, perplexity {done['perplexity'][step]:.4g} per token"
        )
    for name in ("before", "after"):
        print(f"\n{name}: {visible(done['samples']['prompt'] + done['samples'][name])}")
    print()


def text_hash(split: Split) -> str:
    """sha256 over all of a text, what is held out too."""
    digest = hashlib.sha256()
    for part in split:
        digest.update(part)
    return digest.hexdigest()
