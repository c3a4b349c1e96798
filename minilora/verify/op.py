"""An op that can be checked at any sizes: a function that draws a case, the forward and the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from .case import Case
from .check import Report, check_gradient

Rng = np.random.Generator

S = 0.7  # the scale of the low-rank path
EPS = 0.03  # of the norms: large enough for its place in the formula to show
THETA = 50.0  # of the rotary positions
TEMPERATURE = 2.5  # of distillation


class Size(Protocol):
    def __call__(self, low: int = 1, high: int = 4) -> int: ...


class Op(NamedTuple):
    draw: Callable[[Size, Rng], Case]
    forward: Callable[..., tuple[Array, Any]]  # (*inputs, **constants) -> y, cache
    backward: Callable[..., tuple[Array, ...]]  # (dy, cache, *inputs, **constants) -> one gradient for each input

    def grad(self, dy: Array, *inputs: Array, **constants: Any) -> tuple[Array, ...]:
        return self.backward(dy, self.forward(*inputs, **constants)[1], *inputs, **constants)

    def check(self, case: Case, rng: Rng, grad: Callable[..., Any] | None = None, **options: Any) -> Report:
        def f(*inputs: Array, **constants: Any) -> Array:
            return self.forward(*inputs, **constants)[0]

        options |= {"constants": case.constants, "dy": case.dy, "rng": rng}
        return check_gradient(f, grad or self.grad, case.inputs, one_row=True, **options)  # other sizes show it


def drawn(rng: Rng, shape: tuple[int, ...], inputs: dict[str, Array], **constants: Any) -> Case:
    """A case with a dy of this shape. Nothing can write to its constants."""
    for constant in constants.values():
        if isinstance(constant, np.ndarray):
            constant.setflags(write=False)
    return Case(np.asarray(rng.standard_normal(shape)), inputs, constants)


def on(x: Array, constant: np.ndarray) -> Array:
    """A constant in the library of x; floats in the dtype of x."""
    return get_array_module(x).asarray(constant, dtype=x.dtype if constant.dtype.kind == "f" else None)


def one(backward: str) -> Callable[..., tuple[Array]]:
    """The backward of an op with one input, by its name: each call looks it up, as a mutant may have replaced it."""
    return lambda dy, cache, *_, **__: (getattr(ops, backward)(dy, cache),)
