"""Optimizers, learning-rate schedules, gradient clipping, regularisation.

Only trainable parameters have optimizer state: this is where LoRA saves most memory.
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
    """Parameters with a learning rate of their own, such as every lora_B in LoRA+ (Hayou et al., 2024)."""

    parameters: Mapping[str, Parameter]
    lr: float
    weight_decay: float = 0.0


Groups: TypeAlias = Mapping[str, Parameter] | Sequence[ParamGroup]
Precondition: TypeAlias = Callable[[Gradients], Gradients]


class Optimizer:
    """`groups` is a list of ParamGroup, or {name: Parameter} for a single group with `lr` and `weight_decay`.

    A subclass implements update(); `slots` names the arrays that it keeps for each parameter, as "m" and "v". `state`
    maps "<slot>.<name>" to arrays, `t` counts the steps. A step begins with `precondition`, if there is one: a function
    of the gradients that returns others in their place. Raises ValueError when there is nothing to train, or a
    parameter is in two groups.
    """

    hyperparameters: tuple[str, ...] = ()  # attributes for settings()

    def __init__(
        self, groups: Groups, lr: float, weight_decay: float, slots: Sequence[str], precondition: Precondition | None
    ) -> None:
        self.groups = [ParamGroup(groups, lr, weight_decay)] if isinstance(groups, Mapping) else list(groups)
        everything = [parameter for group in self.groups for parameter in group.parameters.values()]
        if not everything:
            raise ValueError("nothing to train: every parameter is frozen")
        if len(set(everything)) < len(everything):
            raise ValueError("a parameter is in two groups, and would be updated twice in a step")
        self.slots, self.precondition = slots, precondition
        self.state: dict[str, Array] = {
            f"{slot}.{name}": get_array_module(parameter.data).zeros_like(parameter.data)
            for group in self.groups
            for name, parameter in group.parameters.items()
            for slot in slots
        }
        self.t = 0

    def step(self, grads: Gradients, factor: float = 1.0, finite: Array | bool = True) -> None:
        """Update every parameter that has a gradient; `factor`, from a schedule, multiplies the learning rates.

        Where `finite` is False, nothing changes but `t`. It may be a 0-d array on a device: the host does not wait.
        """
        self.t += 1
        known = isinstance(finite, bool | np.bool_) or get_array_module(finite) is np
        if known and not finite:
            return
        if self.precondition:
            grads = self.precondition(grads)
        for group in self.groups:
            lr, weight_decay = float(factor * group.lr), float(group.weight_decay)
            names = {parameter: name for name, parameter in group.parameters.items() if parameter in grads}
            for bucket in buckets(names):
                keys = [[f"{slot}.{names[parameter]}" for parameter in bucket] for slot in self.slots]
                g, p = flat([grads[parameter] for parameter in bucket]), flat([q.data for q in bucket])
                old = p, *(flat([self.state[key] for key in row]) for row in keys)
                new = self.update_in_pieces(g, *old, lr=lr, weight_decay=weight_decay)
                if not known:
                    new = [get_array_module(g).where(finite, *pair) for pair in zip(new, old, strict=True)]
                data, *slots = (views(array, bucket) for array in new)
                for parameter, array in zip(bucket, data, strict=True):
                    parameter.data = array
                for row, arrays in zip(keys, slots, strict=True):
                    self.state.update(zip(row, arrays, strict=True))

    def update(self, g: Array, p: Array, *slots: Array, lr: float, weight_decay: float) -> Sequence[Array]:
        """The new p and slots for the gradient g; all (n,), new arrays."""
        raise NotImplementedError

    def update_in_pieces(self, g: Array, *old: Array, lr: float, weight_decay: float) -> Sequence[Array]:
        """update(), of a large parameter on a CPU piece by piece: between its operations a piece stays in the
        processor's cache."""
        if g.size <= PIECE or get_array_module(g) is not np:
            return self.update(g, *old, lr=lr, weight_decay=weight_decay)
        new = [np.empty_like(array) for array in old]
        for start in range(0, g.size, PIECE):
            piece = slice(start, start + PIECE)
            parts = self.update(g[piece], *(array[piece] for array in old), lr=lr, weight_decay=weight_decay)
            for array, part in zip(new, parts, strict=True):
                array[piece] = part
        return new

    def settings(self) -> dict[str, Any]:
        """The optimizer's class, hyperparameters (without the learning rates) and precondition, for JSON."""
        own = {name: np.asarray(getattr(self, name)).tolist() for name in self.hyperparameters}
        decay = [float(group.weight_decay) for group in self.groups]
        before = self.precondition and self.precondition.__name__
        return {"optimizer": type(self).__name__, **own, "weight_decay": decay, "precondition": before}

    def load_state(self, state: Mapping[str, Array], t: int) -> None:
        """Load `state` and `t`. Raises ValueError for a missing or unexpected array, or one of another shape."""
        check_fit(state, shapes_of(self.state))
        self.state = {name: get_array_module(old).asarray(state[name]) for name, old in self.state.items()}
        self.t = t


BUCKET_SIZE = PIECE = 2**18  # elements


def buckets(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """Groups of parameters of one dtype, each of up to BUCKET_SIZE elements or a single larger parameter.

    For small parameters the overhead of a call costs more than the arithmetic; a large one would have to be copied.
    """
    bucket: list[Parameter] = []
    size = 0
    for parameter in sorted(parameters, key=lambda parameter: parameter.data.size):
        p = parameter.data
        size += p.size
        if bucket and (size > BUCKET_SIZE or p.dtype != bucket[0].data.dtype):
            yield bucket
            bucket, size = [], p.size
        bucket.append(parameter)
    if bucket:
        yield bucket


def flat(arrays: Sequence[Array]) -> Array:
    """The arrays concatenated to (n,); a view of a single one."""
    return get_array_module(arrays[0]).concatenate(arrays, axis=None) if len(arrays) > 1 else arrays[0].reshape(-1)


def views(array: Array, bucket: Sequence[Parameter]) -> list[Array]:
    """The parts of `array` (n,) that belong to the bucket's parameters, in their shapes: the inverse of flat()."""
    ends = accumulate(parameter.data.size for parameter in bucket)
    return [array[end - p.data.size : end].reshape(p.data.shape) for end, p in zip(ends, bucket, strict=True)]


class SGD(Optimizer):
    """g ← g + λ p       u ← μ u + g       p ← p - η u                (Sutskever et al., 2013, as in PyTorch)"""

    hyperparameters = ("momentum",)

    def __init__(
        self,
        groups: Groups,
        lr: float = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        precondition: Precondition | None = None,
    ) -> None:
        super().__init__(groups, lr, weight_decay, ["u"] if momentum else [], precondition)
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

    hyperparameters = ("betas", "eps")

    def __init__(
        self,
        groups: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition: Precondition | None = None,
    ) -> None:
        super().__init__(groups, lr, weight_decay, ["m", "v"], precondition)
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


Penalty = Callable[[], tuple[Array, Gradients]]  # the value that is added to the loss, and its gradients


def penalty(parameters: Sequence[Parameter], l1: float = 0.0, l2: float = 0.0) -> Penalty:
    """R(p) = λ₁ Σ|pᵢ| + λ₂/2 Σ pᵢ²         dR/dp = λ₁ sign(p) + λ₂ p           (sign 0 = 0)

    L1 and L2 regularisation. Its gradient passes through the optimizer; AdamW's weight decay does not, so that √v̂ does
    not scale it. On A and B it keeps ΔW = s B A small.
    """

    def value_and_gradients() -> tuple[Array, Gradients]:
        loss: Any = 0.0
        grads = Gradients()
        for parameter in parameters:
            p = parameter.data
            loss = loss + l1 * abs(p).sum() + l2 / 2 * (p * p).sum()
            grads.add(parameter, l1 * get_array_module(p).sign(p) + l2 * p)
        return loss, grads

    return value_and_gradients


def both(one: Penalty, other: Penalty) -> Penalty:
    """The sum of two penalties."""

    def value_and_gradients() -> tuple[Array, Gradients]:
        (R, dR), (S, dS) = one(), other()
        return R + S, dR + dS

    return value_and_gradients


Schedule = Callable[[int], float]  # step 0, 1, 2, ... -> the factor on every learning rate


def constant_schedule(steps: int, warmup: int = 0) -> Schedule:
    """The factor (t+1)/(w+1) in step t of w warm-up steps, then 1."""
    return warm_up(steps, warmup, lambda done: 1.0)


def linear_schedule(steps: int, warmup: int = 0) -> Schedule:
    """The factor (t+1)/(w+1) in step t of w warm-up steps, then a line from 1 to 0 at `steps`."""
    return warm_up(steps, warmup, lambda done: 1 - done)


def cosine_schedule(steps: int, warmup: int = 0) -> Schedule:
    """The factor (t+1)/(w+1) in step t of w warm-up steps, then half a cosine from 1 to 0 at `steps`.

    Loshchilov, Hutter (2017), "SGDR", equation 5.
    """
    return warm_up(steps, warmup, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


def warm_up(steps: int, warmup: int, decay: Callable[[float], float]) -> Schedule:
    """(t+1)/(w+1) in step t of w warm-up steps, then `decay` of the fraction of the other steps that is done."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return decay(min(1.0, (step - warmup) / max(1, steps - warmup)))

    return factor


SCHEDULES = {"constant": constant_schedule, "linear": linear_schedule, "cosine": cosine_schedule}


def clip_by_global_norm(grads: Gradients, limit: float) -> tuple[Gradients, Array | float]:
    """Scale all gradients by min(1, limit / (‖g‖ + 1e-6)), ‖g‖ the norm of all together (Pascanu et al., 2013).

    Returns the scaled gradients and ‖g‖, a 0-d array on their device. The 1e-6 is PyTorch's.
    """
    if not grads:
        return grads, 0.0
    xp = get_array_module(next(iter(grads.values())))
    flattened = [(bucket, flat([grads[parameter] for parameter in bucket])) for bucket in buckets(grads)]
    norm = xp.sqrt(sum(g @ g for _, g in flattened))
    scale = xp.minimum(float(limit) / (norm + 1e-6), 1.0)
    if xp is np and scale == 1:
        return grads, norm
    clipped = Gradients(grads)  # keeps the order
    for bucket, g in flattened:
        clipped.update(zip(bucket, views(scale * g, bucket), strict=True))
    return clipped, norm
