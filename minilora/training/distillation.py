"""Distillation: a loss that pulls the outputs of a student towards those of a teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import ops
from ..backend import Array, get_array_module
from ..nn import Inputs, Pass, Sequential
from .gradients import Backward, Loss


def distillation(teacher: Sequential, temperature: float = 1.0, reverse: bool = False) -> Loss:
    """The Loss of ops/kl_divergence.py: KL(p ‖ q) T² of the teacher's p and the student's q at `temperature` T, and
    with `reverse` KL(q ‖ p) T², a mean over the labelled positions. The labels themselves are not read.

        fit(student, batches, steps, loss=distillation(teacher, temperature=2.0))

    The teacher runs forward only, without dropout, on the ids of each batch. Raises ValueError for a temperature that
    is not from 0.001 to 1000; the loss does where the teacher's logits have another shape than the student's.
    """
    if not 1e-3 <= temperature <= 1e3:  # beyond, T² or the differences of softmax(z/T) are lost in float32
        raise ValueError(f"temperature = {temperature!r} is not a number from 0.001 to 1000")
    forward: Any = ops.reverse_kl_forward if reverse else ops.kl_forward
    backward: Any = ops.reverse_kl_backward if reverse else ops.kl_backward

    def loss(logits: Array, targets: Array, ids: Any, inputs: Inputs, count: int | None) -> tuple[Array, Backward]:
        t, _ = teacher.forward(ids, inputs, Pass(needs_cache=False))
        xp = get_array_module(logits)
        L, cache = forward(logits, xp.asarray(t), temperature, targets != ops.IGNORE, count)
        return L, partial(backward, cache=cache)

    return loss
