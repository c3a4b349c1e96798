"""A small transformer with the right attention gradient, one without the row sum, and none for q and k (notebook 02).

Two tasks. In "text" it learns bytes of English. In "copy" eight random letters come twice, and only those of the second
time count: each can be looked up where it stood before, and nowhere else.
"""

from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

import minilora
from minilora import ops
from minilora.data import Batch, all_windows, english, excerpts, random_windows
from minilora.nn import Sequential
from minilora.ops import IGNORE

STEPS = {"text": 240, "copy": 300}
RIGHT = ops.attention_backward


def without_row_sum(dy, cache, root):
    """dS = P ∘ dP: the row sum is that of do ∘ o, and with o = 0 it is 0."""
    return RIGHT(dy, cache._replace(o=0 * cache.o), root)


def q_and_k_frozen(dy, cache, root):
    dq, dk, dv = RIGHT(dy, cache, root)
    return 0 * dq, 0 * dk, dv


GRADIENTS = {"right": RIGHT, "without the row sum": without_row_sum, "q and k frozen": q_and_k_frozen}

RUNS = [
    {"task": task, "gradient": gradient, "lr": lr, "seed": seed}
    for task in STEPS
    for lr in (3e-3, 1e-3, 1e-2)
    for gradient in GRADIENTS
    for seed in range(5)
]


@cache
def text():
    return english()


def model(seed: int, task: str) -> Sequential:
    """Two blocks of width 32, two heads each."""
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 2, "max_length": 64}
    return minilora.gpt2(minilora.Config(256 if task == "text" else 16, **sizes), np.random.default_rng(seed))


def letters_twice(seed: int):
    def batch(step: int) -> Batch:
        once = np.random.default_rng([seed, step]).integers(0, 16, (16, 8))
        ids = np.concatenate([once, once], axis=1)
        targets = np.concatenate([np.full_like(once[:, 1:], IGNORE), once, np.full_like(once[:, :1], IGNORE)], axis=1)
        return Batch(ids, targets)

    return batch


def batches(seed: int, task: str):
    return random_windows(text().train, batch=8, length=32, seed=seed) if task == "text" else letters_twice(seed)


def held_out(task: str) -> list[Batch]:
    """What it has not seen. Of the letters nothing comes twice: new ones are drawn in every step."""
    if task == "text":
        return list(all_windows(excerpts(text().validation, 8192), 16, 64))
    return [letters_twice(10**6)(step) for step in range(16)]


def run(task: str, gradient: str, lr: float, seed: int) -> dict[str, Any]:
    learner, steps = model(seed, task), STEPS[task]
    schedule = minilora.cosine_schedule(steps, warmup=steps // 10)
    with patch.object(ops, "attention_backward", GRADIENTS[gradient]):
        how = {"lr": lr, "schedule": schedule, "seed": seed, "description": None}
        losses = minilora.fit(learner, batches(seed, task), steps, **how).loss
    tens = np.reshape(losses, (-1, 10)).mean(axis=1)
    return {"held_out": minilora.evaluate(learner, held_out(task)), "curve": tens.round(4).tolist()}
