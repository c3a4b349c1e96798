"""Optimizers, learning-rate schedules, gradient clipping.

State exists for the trainable parameters alone: this is where LoRA's memory saving is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .backend import Array, get_array_module
from .modules import Gradients, Parameter, check_fit, shapes_of


@dataclass
class Group:
    """Parameters that share a rate, such as every lora_B under LoRA+ (Hayou et al., 2024)."""

    parameters: Mapping[str, Parameter]
    lr: float
    weight_decay: float = 0.0


Groups: TypeAlias = Mapping[str, Parameter] | Sequence[Group]


class Optimizer:
    """`groups` is a list of Group, or named parameters for a single one with `lr` and `weight_decay`.

    step(grads, factor) changes every parameter that has a gradient; `factor`, from a schedule, multiplies lr.
    `state` maps "m.<parameter>" and the like to arrays, `t` counts the steps.
    Raises ValueError when there is nothing to train, or a parameter is in two groups.
    """

    def __init__(self, groups: Groups, lr: float, weight_decay: float, slots: Sequence[str]) -> None:
        self.groups = [Group(groups, lr, weight_decay)] if isinstance(groups, Mapping) else list(groups)
        everything = [parameter for group in self.groups for parameter in group.parameters.values()]
        if not everything:
            raise ValueError("nothing to train: every parameter is frozen")
        if len(set(everything)) < len(everything):
            raise ValueError("a parameter is in two groups, and would take two steps at once")
        self.state: dict[str, Array] = {
            f"{slot}.{name}": get_array_module(parameter.data).zeros_like(parameter.data)
            for group in self.groups
            for name, parameter in group.parameters.items()
            for slot in slots
        }
        self.t = 0

    def step(self, grads: Gradients, factor: float = 1.0) -> None:
        self.t += 1
        for group in self.groups:
            for name, parameter in group.parameters.items():
                if parameter in grads:
                    lr, weight_decay = float(factor * group.lr), float(group.weight_decay)
                    self.update(name, parameter, grads[parameter], lr, weight_decay)

    def update(self, name: str, parameter: Parameter, g: Array, lr: float, weight_decay: float) -> None:
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Array], t: int) -> None:
        """Go back to a `state` and `t` of before. Raises ValueError on a missing, unexpected or misshapen array."""
        check_fit(state, shapes_of(self.state))
        self.state = {name: get_array_module(old).asarray(state[name]) for name, old in self.state.items()}
        self.t = t


class SGD(Optimizer):
    """g ← g + λ p       u ← μ u + g       p ← p - η u                (Sutskever et al., 2013, as in PyTorch)"""

    def __init__(self, groups: Groups, lr: float = 1e-2, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(groups, lr, weight_decay, ["u"] if momentum else [])
        self.momentum = momentum

    def update(self, name: str, parameter: Parameter, g: Array, lr: float, weight_decay: float) -> None:
        if weight_decay:
            g = g + weight_decay * parameter.data
        if self.momentum:
            g = self.state[f"u.{name}"] = self.momentum * self.state[f"u.{name}"] + g
        parameter.data = parameter.data - lr * g


class AdamW(Optimizer):
    """p ← (1 - η λ) p          m ← β₁ m + (1-β₁) g          v ← β₂ v + (1-β₂) g²
    p ← p - η m̂ / (√v̂ + ε)      m̂ = m / (1-β₁ᵗ)              v̂ = v / (1-β₂ᵗ)

    Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2, as PyTorch scales η λ.
    """

    def __init__(
        self,
        groups: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, lr, weight_decay, ["m", "v"])
        self.betas, self.eps = betas, eps

    def update(self, name: str, parameter: Parameter, g: Array, lr: float, weight_decay: float) -> None:
        b1, b2 = self.betas
        m = b1 * self.state[f"m.{name}"] + (1 - b1) * g
        v = b2 * self.state[f"v.{name}"] + (1 - b2) * (g * g)
        self.state[f"m.{name}"], self.state[f"v.{name}"] = m, v
        m_hat, v_hat = m / (1 - b1**self.t), v / (1 - b2**self.t)
        step = m_hat / (get_array_module(g).sqrt(v_hat) + self.eps)
        parameter.data = (1 - lr * weight_decay) * parameter.data - lr * step


Penalty = Callable[[], tuple[Array, Gradients]]  # what a loss is raised by, and its gradients


def penalty(parameters: Sequence[Parameter], l1: float = 0.0, l2: float = 0.0) -> Penalty:
    """R(p) = λ₁ Σ|pᵢ| + λ₂/2 Σ pᵢ²         dR/dp = λ₁ sign(p) + λ₂ p           (sign 0 = 0)

    A part of the loss, unlike AdamW's weight decay, which its denominator does not scale. On A and B it makes ΔW = s BA
    small; at B = 0 its gradient there is 0.
    """

    def at_present() -> tuple[Array, Gradients]:
        loss, grads = 0.0, Gradients()
        for parameter in parameters:
            p = parameter.data
            loss = loss + l1 * abs(p).sum() + l2 / 2 * (p * p).sum()
            grads.add(parameter, l1 * get_array_module(p).sign(p) + l2 * p)
        return loss, grads

    return at_present


Schedule = Callable[[int], float]  # step 0, 1, 2, ... -> the factor on every group's rate


def linear_schedule(steps: int, warmup: int = 0) -> Schedule:
    """(t+1)/(w+1) for the t-th of w warm-up steps, then 1 falling in a line, to 0 at `steps`."""
    return lambda step: warm(step, warmup) if step < warmup else 1 - progress(step, steps, warmup)


def cosine_schedule(steps: int, warmup: int = 0) -> Schedule:
    """(t+1)/(w+1) for the t-th of w warm-up steps, then 1 falling along half a cosine, to 0 at `steps`.

    Loshchilov, Hutter (2017), "SGDR", equation 5.
    """
    return lambda step: (
        warm(step, warmup) if step < warmup else 0.5 * (1 + math.cos(math.pi * progress(step, steps, warmup)))
    )


def warm(step: int, warmup: int) -> float:
    return (step + 1) / (warmup + 1)


def progress(step: int, steps: int, warmup: int) -> float:
    return min(1.0, (step - warmup) / max(1, steps - warmup))


def clip_by_global_norm(grads: Gradients, limit: float) -> tuple[Gradients, Array]:
    """Scale all gradients by min(1, limit / ‖g‖), ‖g‖ over all of them together (Pascanu et al., 2013).

    Returns them and ‖g‖, which stays on the device. 1e-6 is added to it, as in PyTorch.
    """
    if not grads:
        return grads, 0.0
    xp = get_array_module(next(iter(grads.values())))
    norm = xp.sqrt(sum((g * g).sum() for g in grads.values()))
    scale = xp.minimum(float(limit) / (norm + 1e-6), 1.0)
    return Gradients({parameter: scale * g for parameter, g in grads.items()}), norm
