"""Accumulated batches divided in three ways, on texts whose length goes with their kind and on lines of source code
(notebook 11).
"""

from functools import cache

import adapting
import numpy as np

import minilora
from minilora import ops
from minilora.data import Batch, bits, english
from minilora.training import loss_and_gradients

WAYS = ("once", "mean of means", "pads counted")
STEPS, MICRO, SIZE = 40, 4, 4  # steps, batches in a step, texts in a batch

RUNS = [
    {"data": "two kinds", "way": way, "lr": lr, "seed": seed}
    for seed in range(3)
    for lr in (4e-3, 8e-3, 2e-3, 1.6e-2)
    for way in WAYS
]
RUNS += [{"data": "lines", "way": way, "lr": 8e-3, "seed": seed} for seed in range(5) for way in WAYS]


def padded(texts):
    """A row for each text, of which every token but the first is predicted."""
    T = max(map(len, texts)) - 1
    ids, targets = np.zeros((len(texts), T), np.int64), np.full((len(texts), T), ops.IGNORE)
    for row, text in enumerate(texts):
        ids[row, : len(text) - 1], targets[row, : len(text) - 1] = text[:-1], text[1:]
    return Batch(ids, targets)


def labels(batch):
    return int((batch.targets != ops.IGNORE).sum())


def divisors(way, batches):
    """By what the sum over each batch is divided."""
    if way == "mean of means":
        return [labels(batch) * len(batches) for batch in batches]
    if way == "pads counted":
        return [sum(batch.targets.size for batch in batches)] * len(batches)
    return [sum(map(labels, batches))] * len(batches)


def excerpt(data, shortest, longest, rng):
    length = rng.integers(shortest, longest + 1)
    start = rng.integers(0, len(data) - length)
    return np.frombuffer(data[start : start + length], np.uint8).astype(np.int64)


def two_kinds(part, rng):
    """A batch of long texts, which are Python source, and three of short texts, which are English."""
    source, words = getattr(adapting.source(), part), getattr(english(), part)
    texts = [excerpt(source, 33, 97, rng) for _ in range(SIZE)]
    return texts + [excerpt(words, 5, 13, rng) for _ in range((MICRO - 1) * SIZE)]


@cache
def lines_of(part):
    return [line + b"\n" for line in getattr(adapting.source(), part).split(b"\n") if 3 < len(line) < 97]


def lines(part, rng):
    """Lines of Python source, whatever their length."""
    every = lines_of(part)
    chosen = rng.integers(0, len(every), MICRO * SIZE)
    return [np.frombuffer(every[i], np.uint8).astype(np.int64) for i in chosen]


def batches_of(data, part, rng):
    texts = {"two kinds": two_kinds, "lines": lines}[data](part, rng)
    return [padded(texts[i : i + SIZE]) for i in range(0, len(texts), SIZE)]


def held_out(data):
    return [batch for i in range(24) for batch in batches_of(data, "validation", np.random.default_rng([99, i]))]


def run(data: str, way: str, lr: float, seed: int) -> dict:
    """Bits per token: of each step the loss as this way has it, and as it is; held-out, before and after."""
    model = minilora.load_pretrained("builtin")
    test = held_out(data)
    found = {"reported": [], "true": [], "before": bits(minilora.evaluate(model, test))}
    minilora.attach_lora(model, "all-linear", r=8, alpha=16, rng=seed)
    optimizer = minilora.AdamW(model.trainable_parameters(), lr=lr)
    schedule = minilora.cosine_schedule(STEPS, warmup=3)
    for step in range(STEPS):
        batches = batches_of(data, "train", np.random.default_rng([seed, step]))
        n, grads, reported, true = sum(map(labels, batches)), minilora.Gradients(), 0.0, 0.0
        for batch, divisor in zip(batches, divisors(way, batches), strict=True):
            loss, gradients = loss_and_gradients(model, batch, count=divisor)
            grads, reported, true = grads + gradients, reported + float(loss), true + float(loss) * divisor / n
        optimizer.step(grads, schedule(step))
        found["reported"].append(round(bits(reported), 4))
        found["true"].append(round(bits(true), 4))
    return found | {"after": bits(minilora.evaluate(model, test))}
