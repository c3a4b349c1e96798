"""The work of a case, by minilora."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minilora.adapters.attach import attach
from minilora.adapters.peft import load_adapter, save_adapter
from minilora.backend import load_backend, to_numpy
from minilora.data import Batch, english, random_windows
from minilora.files import load_tensors, save_tensors
from minilora.models.config import Config
from minilora.models.families.gpt2 import gpt2
from minilora.models.generation import next_ids
from minilora.models.pretrained import load_pretrained, load_tokenizer
from minilora.models.saving import save_pretrained
from minilora.models.transformer import Transformer
from minilora.nn import Attention, FusedAttention, Linear, Pass, PreNormBlock
from minilora.nn.optim import AdamW
from minilora.training import loss_and_gradients, sharded_loss_and_gradients
from minilora.training.gradients import split_batch

from .cases import ADAPTERS, NEW, PROMPT, SEED, Case, Job

LR = 1e-3  # of AdamW, on every side
BATCH = "batch.safetensors"
FUSED = {"all-linear", "qkv_proj"}


def prepare(case: Case, folder: Path) -> None:
    """What every contestant starts from: the base as a Hugging Face folder, an adapter that PEFT reads too, a batch."""
    if case.size == "minilm":
        model = load_pretrained(case.size, head="classify", labels=2)
    elif case.real:
        model = load_pretrained(case.size)
    else:
        model = gpt2(Config(**case.shape), np.random.default_rng(SEED))
    save_pretrained(model, folder / "base")
    if case.adapts:
        targets = "qkv_proj" if case.targets == "q_proj,v_proj" and not case.real else case.targets
        adapt(model, targets, case)
        save_adapter(model, folder / "adapter")
    batch = batch_of(case, model)
    save_tensors(folder / BATCH, {"ids": batch.ids, "targets": batch.targets}, {})


def batch_of(case: Case, model: Transformer) -> Batch:
    """Random ids, or of a real model a text that every Python carries."""
    rng = np.random.default_rng(SEED)
    if not case.real:
        ids = rng.integers(0, model.config.vocab_size, (case.batch, case.tokens + 1))
        return Batch(ids[:, :-1], ids[:, 1:])
    ids = load_tokenizer(case.size).encode(english().train[:200_000].decode(errors="ignore"))
    batch = random_windows(ids, case.batch, case.tokens, SEED)(0)
    return batch._replace(targets=rng.integers(0, 2, case.batch)) if model.config.head == "classify" else batch


def adapt(model: Transformer, targets: str, case: Case, train: Sequence[str] = ()) -> None:
    names: Any = targets if targets == "all-linear" else targets.split(",")
    variant, options = ADAPTERS[case.measure]
    attach(model, variant, names, rng=np.random.default_rng(SEED), r=case.rank, train=train, **options)


def split(model: Transformer) -> None:
    """GPT-2 with a matrix each for q, k and v, as most models have: the rows of the fused one."""
    for block in model.layers.values():
        if isinstance(block, PreNormBlock) and isinstance(block.attention, FusedAttention):
            old = block.attention
            assert isinstance(old.qkv_proj, Linear)
            assert old.qkv_proj.bias is not None
            W, b = np.split(old.qkv_proj.weight.data, 3), np.split(old.qkv_proj.bias.data, 3)
            q, k, v = (Linear(rows.copy(), bias.copy()) for rows, bias in zip(W, b, strict=True))
            block.attention = Attention(q, k, v, old.o_proj, old.head_dim, causal=True)


def job(case: Case, targets: str, plain: bool, folder: Path, base: str = "") -> Job:
    xp = load_backend("cupy" if case.device == "cuda" else "numpy")
    model = load_pretrained(folder / "base", quantize=None if base in ("", "float32") else base)
    if base:
        whole = [name for name in ("classifier",) if name in model.layers]
        adapt(model, targets, case, train=whole)  # what prepare() saved, which is for its own base alone
    elif case.adapts and (case.real or targets in FUSED):
        load_adapter(model, folder / "adapter")
        for adapter in (module for _, module in model.named_modules() if module.is_adapter):
            vars(adapter).update(ADAPTERS[case.measure][1])  # some of which no file says
    elif case.adapts:
        split(model)
        adapt(model, targets, case)
    for _, module in model.named_modules():
        if plain and isinstance(module, Attention):
            module.blockwise_from = math.inf
    model.to(xp)
    batch = Batch(**load_tensors(folder / BATCH)[0])
    pool = ThreadPoolExecutor(case.shards)
    if case.measure == "generate":
        made = generation(model, batch.ids[0, :PROMPT])
    elif case.measure == "forward":
        made = forward(model, batch, pool, case.shards)
    else:
        made = step(model, batch, pool, case.shards, xp)
    return made if xp is np else on_device(made, xp)


def on_device(made: Job, xp: ModuleType) -> Job:
    def event() -> Callable[[], bool]:
        large, end = xp.ones((8192, 8192), "float32"), xp.cuda.Event()
        for _ in range(20):
            large @ large
        end.record()
        return lambda: bool(end.done)

    return made._replace(peak=xp.get_default_memory_pool().total_bytes, event=event)


def forward(model: Transformer, batch: Batch, pool: ThreadPoolExecutor, shards: int) -> Job:
    parts = [part.ids for part in split_batch(batch, shards)]
    last = None

    def run() -> None:
        nonlocal last
        apply = pool.map if shards > 1 else map
        last = [y for y, _ in apply(lambda ids: model.forward(ids, run=Pass(needs_cache=False)), parts)]

    def wait() -> float:
        return float(sum((y[:, -1] ** 2).sum() for y in last or ()))

    return Job(run, wait)


def step(model: Transformer, batch: Batch, pool: ThreadPoolExecutor, shards: int, xp: ModuleType) -> Job:
    optimizer, loss = AdamW(model.trainable_parameters(), LR), xp.zeros(())

    def run() -> None:
        nonlocal loss
        if shards == 1:
            loss, grads = loss_and_gradients(model, batch)
        else:
            loss, grads = sharded_loss_and_gradients(pool, shards, model, [batch], [SEED])
        optimizer.step(grads)

    def wait() -> float:
        to_numpy(next(iter(model.trainable_parameters().values())).data)
        return float(loss)

    return Job(run, wait)


def generation(model: Transformer, prompt: np.ndarray) -> Job:
    ids: list[int] = []

    def run() -> None:
        ids[:] = next_ids(model, prompt, NEW)

    return Job(run, lambda: list(ids))
