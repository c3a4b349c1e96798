"""LoRA-FA: LoRA with a frozen random A, so that no input is kept (Zhang et al., 2023). The maths is in ops/lora.py: B's
gradient, and dx.

Its optimizer preconditions dB, as an option of ours: AdamW(parameters, lr, precondition=precondition(model)).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from ..nn import Gradients, Module
from ..nn.optim import SGD, Precondition
from .base import Law, relative_difference
from .lora import LoRALinear
from .statements import Kept

DELTA = 1e-8  # PEFT's


def step_of_sgd(adapter: LoRAFALinear, x: Array, dy: Array, grads: Gradients) -> float:
    A, G, s, eta = adapter.lora_A.data, ops.linear_gradients(dy, x), adapter.scaling, 0.37
    moved = moved_by(SGD(adapter.trainable_parameters(), eta), adapter, grads)
    return relative_difference(moved, -eta * s**2 * G @ A.T @ A)


def preconditioned_step(adapter: LoRAFALinear, x: Array, dy: Array, grads: Gradients) -> float:
    A, G, eta = adapter.lora_A.data, ops.linear_gradients(dy, x), 0.37
    optimizer = SGD(adapter.trainable_parameters(), eta, precondition=precondition(adapter))
    onto_rows = np.linalg.solve(A @ A.T + DELTA * np.eye(len(A)), A)
    return relative_difference(moved_by(optimizer, adapter, grads), -eta * G @ A.T @ onto_rows)


def moved_by(optimizer: SGD, adapter: LoRAFALinear, grads: Gradients) -> Array:
    """By how much a step changes ΔW. The step is undone."""
    B, before = adapter.lora_B.data, adapter.delta()
    optimizer.step(grads)
    change = adapter.delta() - before
    adapter.lora_B.data = B
    return change


class LoRAFALinear(LoRALinear):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in) frozen   B (out, r)   s = α/r, or α/√r (rsLoRA)

    As LoRALinear, but A is frozen: h = x Aᵀ is kept, r values a row, and not x. Every update lies in the rows of A,
    ΔW = s B A. The files are those of a plain LoRA, which do not say that A was frozen: loading one gives a LoRALinear
    with a trainable A. There is no LoRA-FA of an embedding: its A starts at 0, and frozen it would stay there.
    Raises ValueError as LoRALinear does.
    """

    variant = "lora-fa"
    slots = LoRALinear.slots[0]._replace(trained=False), LoRALinear.slots[1]
    kept: ClassVar[tuple[Kept, ...]] = (Kept("h", "r", "dB = s dyᵀ h", ("lora_B",)),)  # type: ignore[assignment]
    products = LoRALinear.products._replace(gradients={("lora_B",): "2 * r * n_out"})
    laws: ClassVar[dict[str, Law]] = {
        "with A frozen, a step of SGD moves ΔW by -η s² G AᵀA": step_of_sgd,
        "a preconditioned step of SGD moves ΔW by -η G Aᵀ(A Aᵀ)⁻¹A": preconditioned_step,
    }


def precondition(model: Module) -> Precondition:
    """What to do to the gradients before a step, for `precondition` of an optimizer:

        dB ← dB (A Aᵀ + δ I)⁻¹ / s²         δ = 1e-8

    for every LoRA of a Linear in `model` whose A is frozen; other gradients stay as they are. As dB = s G Aᵀ, with the
    dense gradient G = dyᵀ x, a step of SGD then moves W by -η G Aᵀ(A Aᵀ)⁻¹A: by G projected onto the rows of A, the
    nearest to full fine-tuning that ΔW = s B A can do, whatever s and the size of A.

    Zhang et al. (2023), "LoRA-FA: Memory-efficient low-rank adaptation for large language models fine-tuning"; PEFT's
    create_lorafa_optimizer. Theirs adds its eps = 1e-6 to √v, where AdamW here adds it to √v̂, and decays weights
    after the step, where AdamW does before. In float32 it rounds this product to bfloat16 (PEFT 0.21.2, an error of
    4e-3); here it is as exact as A.
    Raises ValueError where no A is frozen.
    """
    adapters = [m for _, m in model.named_modules() if isinstance(m, LoRALinear) and not m.lora_A.trainable]
    if not adapters:
        raise ValueError("no LoRA of this model has a frozen A to precondition by: attach(model, 'lora-fa', ...) first")

    def lora_fa(grads: Gradients) -> Gradients:
        grads = Gradients(grads)
        for adapter in adapters:
            A, B, s = adapter.lora_A.data, adapter.lora_B, adapter.scaling
            if B in grads:
                xp, rcond = get_array_module(A), len(A) * float(np.finfo(A.dtype).eps)
                inverse = xp.linalg.pinv(A @ A.T + DELTA * xp.eye(len(A), dtype=A.dtype), rcond)
                grads[B] = grads[B] @ inverse / s**2
        return grads

    return lora_fa
