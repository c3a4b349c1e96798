"""Optimizers, learning-rate schedules, gradient clipping.

State exists for the trainable parameters alone: this is where LoRA's memory saving is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from ..backend import Array, get_array_module
from .module import Gradients, Parameter, check_fit, shapes_of


@dataclass
class ParamGroup:
    """Parameters that share a rate, such as every lora_B under LoRA+ (Hayou et al., 2024)."""

    parameters: Mapping[str, Parameter]
    lr: float
    weight_decay: float = 0.0


Groups: TypeAlias = Mapping[str, Parameter] | Sequence[ParamGroup]


class Optimizer:
    """`groups` is a list of ParamGroup, or named parameters for a single one with `lr` and `weight_decay`.

    step(grads, factor) changes every parameter that has a gradient; `factor`, from a schedule, multiplies lr. If
    `finite` is False it changes nothing: a bool, or a 0-d array on a device, for which no one waits.
    update(g, p, *slots) is what makes it this optimizer: p and the slots after a step, all (n,), for a bundle at once.
    `state` maps "m.<parameter>" and the like to arrays, `t` counts the steps.
    Raises ValueError when there is nothing to train, or a parameter is in two groups.
    """

    numbers: tuple[str, ...] = ()  # the attributes that decide a step, for settings()

    def __init__(self, groups: Groups, lr: float, weight_decay: float, slots: Sequence[str]) -> None:
        self.groups = [ParamGroup(groups, lr, weight_decay)] if isinstance(groups, Mapping) else list(groups)
        everything = [parameter for group in self.groups for parameter in group.parameters.values()]
        if not everything:
            raise ValueError("nothing to train: every parameter is frozen")
        if len(set(everything)) < len(everything):
            raise ValueError("a parameter is in two groups, and would take two steps at once")
        self.slots = slots
        self.state: dict[str, Array] = {
            f"{slot}.{name}": get_array_module(parameter.data).zeros_like(parameter.data)
            for group in self.groups
            for name, parameter in group.parameters.items()
            for slot in slots
        }
        self.t = 0

    def step(self, grads: Gradients, factor: float = 1.0, finite: Array | bool = True) -> None:
        self.t += 1
        known = isinstance(finite, bool | np.bool_) or get_array_module(finite) is np
        if known and not finite:
            return
        for group in self.groups:
            lr, weight_decay = float(factor * group.lr), float(group.weight_decay)
            names = {parameter: name for name, parameter in group.parameters.items() if parameter in grads}
            for bundle in bundles(names):
                keys = [[f"{slot}.{names[parameter]}" for parameter in bundle] for slot in self.slots]
                g, p = flat([grads[parameter] for parameter in bundle]), flat([q.data for q in bundle])
                old = p, *(flat([self.state[key] for key in row]) for row in keys)
                new = self.update(g, *old, lr=lr, weight_decay=weight_decay)
                if not known:
                    new = [get_array_module(g).where(finite, *pair) for pair in zip(new, old, strict=True)]
                data, *slots = (views(array, bundle) for array in new)
                for parameter, array in zip(bundle, data, strict=True):
                    parameter.data = array
                for row, arrays in zip(keys, slots, strict=True):
                    self.state.update(zip(row, arrays, strict=True))

    def update(self, g: Array, p: Array, *slots: Array, lr: float, weight_decay: float) -> Sequence[Array]:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What decides a step beside the gradients, the state and the rates, as JSON."""
        own = {name: np.asarray(getattr(self, name)).tolist() for name in self.numbers}
        decay = [float(group.weight_decay) for group in self.groups]
        return {"optimizer": type(self).__name__, **own, "weight_decay": decay}

    def load_state(self, state: Mapping[str, Array], t: int) -> None:
        """Go back to a `state` and `t` of before. Raises ValueError on a missing, unexpected or misshapen array."""
        check_fit(state, shapes_of(self.state))
        self.state = {name: get_array_module(old).asarray(state[name]) for name, old in self.state.items()}
        self.t = t


BUNDLE = 2**18  # numbers


def bundles(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """Small ones together, up to BUNDLE numbers of one dtype: a call costs more than the arithmetic of a few numbers.
    A large one is alone, so that it need not be copied to lie beside others."""
    bundle: list[Parameter] = []
    size = 0
    for parameter in sorted(parameters, key=lambda parameter: parameter.data.size):
        p = parameter.data
        size += p.size
        if bundle and (size > BUNDLE or p.dtype != bundle[0].data.dtype):
            yield bundle
            bundle, size = [], p.size
        bundle.append(parameter)
    if bundle:
        yield bundle


def flat(arrays: Sequence[Array]) -> Array:
    """(n,): all their numbers, one array after another."""
    return get_array_module(arrays[0]).concatenate(arrays, axis=None) if len(arrays) > 1 else arrays[0].reshape(-1)


def views(array: Array, bundle: Sequence[Parameter]) -> list[Array]:
    """Parts of an (n,), in the shapes of the bundle's parameters."""
    ends = accumulate(parameter.data.size for parameter in bundle)
    return [array[end - p.data.size : end].reshape(p.data.shape) for end, p in zip(ends, bundle, strict=True)]


class SGD(Optimizer):
    """g ← g + λ p       u ← μ u + g       p ← p - η u                (Sutskever et al., 2013, as in PyTorch)"""

    numbers = ("momentum",)

    def __init__(self, groups: Groups, lr: float = 1e-2, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(groups, lr, weight_decay, ["u"] if momentum else [])
        self.momentum = momentum

    def update(self, g: Array, p: Array, *slots: Array, lr: float, weight_decay: float) -> Sequence[Array]:
        if weight_decay:
            g = g + weight_decay * p
        if self.momentum:
            (u,) = slots
            g = self.momentum * u + g
            return p - lr * g, g
        return (p - lr * g,)


class AdamW(Optimizer):
    """p ← (1 - η λ) p          m ← β₁ m + (1-β₁) g          v ← β₂ v + (1-β₂) g²
    p ← p - η m̂ / (√v̂ + ε)      m̂ = m / (1-β₁ᵗ)              v̂ = v / (1-β₂ᵗ)

    Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2, as PyTorch scales η λ.
    """

    numbers = ("betas", "eps")

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

    def update(self, g: Array, p: Array, *slots: Array, lr: float, weight_decay: float) -> Sequence[Array]:
        (m, v), (b1, b2) = slots, self.betas
        m = b1 * m
        m += (1 - b1) * g
        v = b2 * v
        v += (1 - b2) * (g * g)
        step = m / (1 - b1**self.t)
        step /= get_array_module(g).sqrt(v / (1 - b2**self.t)) + self.eps  # m̂ / (√v̂ + ε)
        step *= lr
        p = (1 - lr * weight_decay) * p
        p -= step
        return p, m, v


Penalty = Callable[[], tuple[Array, Gradients]]  # what a loss is raised by, and its gradients


def penalty(parameters: Sequence[Parameter], l1: float = 0.0, l2: float = 0.0) -> Penalty:
    """R(p) = λ₁ Σ|pᵢ| + λ₂/2 Σ pᵢ²         dR/dp = λ₁ sign(p) + λ₂ p           (sign 0 = 0)

    A part of the loss, unlike AdamW's weight decay, which its denominator does not scale. On A and B it makes ΔW = s BA
    small; at B = 0 its gradient there is 0.
    """

    def at_present() -> tuple[Array, Gradients]:
        loss: Any = 0.0
        grads = Gradients()
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


def clip_by_global_norm(grads: Gradients, limit: float) -> tuple[Gradients, Array | float]:
    """Scale all gradients by min(1, limit / ‖g‖), ‖g‖ over all of them together (Pascanu et al., 2013).

    Returns them and ‖g‖, which stays on the device. 1e-6 is added to it, as in PyTorch.
    """
    if not grads:
        return grads, 0.0
    xp = get_array_module(next(iter(grads.values())))
    all_of_it = [(bundle, flat([grads[parameter] for parameter in bundle])) for bundle in bundles(grads)]
    norm = xp.sqrt(sum(g @ g for _, g in all_of_it))
    scale = xp.minimum(float(limit) / (norm + 1e-6), 1.0)
    clipped = Gradients(grads)  # in their order
    for bundle, g in all_of_it:
        clipped.update(zip(bundle, views(scale * g, bundle), strict=True))
    return clipped, norm
