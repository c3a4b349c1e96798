"""The small transformer of grid row_sum on text, with one term of a gradient missing (notebook 03)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np

import minilora
from minilora import ops
from minilora.nn import Sequential

from . import row_sum

STEPS = row_sum.STEPS["text"]


def repeats_lost(dy, ids, V):
    dE = np.zeros((V, dy.shape[-1]), dy.dtype)
    dE[ids] += dy
    return dE


def planted(fault: str, learner: Sequential) -> AbstractContextManager[Any]:
    """While it lasts, the learner has this fault; "right" is none."""
    head, table = learner["lm_head"], learner["embed.token"]
    return {
        "right": nullcontext(),
        "norms without the mean term": patch.object(ops, "layer_norm_backward", ops.rms_norm_backward),
        "repeated ids lost": patch.object(ops, "embedding_gradients", repeats_lost),
        "input path missing": patch.object(table, "backward", lambda dy, cache, grads: None),
        "output path missing": patch.object(
            head, "backward", lambda dy, cache, grads: ops.linear_backward(dy, head.weight.data)
        ),
        "both paths missing": patch.object(table.weight, "trainable", False),
    }[fault]


FAULTS = [
    "right",
    "norms without the mean term",
    "repeated ids lost",
    "input path missing",
    "output path missing",
    "both paths missing",
]
RUNS = [{"fault": fault, "lr": lr, "seed": seed} for lr in (3e-3, 1e-3, 1e-2) for fault in FAULTS for seed in range(5)]


def run(fault: str, lr: float, seed: int) -> dict[str, Any]:
    learner = row_sum.model(seed, "text")
    schedule = minilora.cosine_schedule(STEPS, warmup=STEPS // 10)
    how = {"lr": lr, "schedule": schedule, "seed": seed, "description": None}
    with planted(fault, learner):
        losses = minilora.fit(learner, row_sum.batches(seed, "text"), STEPS, **how).loss
    tens = np.reshape(losses, (-1, 10)).mean(axis=1)
    held_out = minilora.evaluate(learner, row_sum.held_out("text"))
    return {"start": losses[0], "held_out": held_out, "curve": tens.round(4).tolist()}
