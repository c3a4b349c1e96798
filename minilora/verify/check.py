"""Checking a hand-written gradient against numbers it had no part in.

For y = f(x) and a random upstream gradient dy, the scalar is L(x) = Σ dy ∘ y, and a gradient g of L is right when,
for random directions u,

    central difference      (8 [L(x + εu) - L(x - εu)] - [L(x + 2εu) - L(x - 2εu)]) / 12ε  =  g·u  + O(ε⁴) + rounding/ε
    complex step            Im L(x + ihu) / h  =  g·u  + O(h²): h = 1e-30 rounds nothing away
    PyTorch                 autograd's gradient  =  g

(Squire, Trapp, 1998, for the second, which needs an f that is analytic and takes complex arrays.) dy is random
because upstream gradients of all ones make the gradients of softmax and of the norms vanish, right or wrong.
As u is standard normal, g·u has the deviation ‖g‖: errors are given relative to ‖g‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array
from ..modules import Gradients, Module, Parameter

EPSILON = 1e-4  # of the central difference: rounding, 1e-16/ε, and truncation, ε⁴, stay near 1e-12
TOLERANCE = {"central": 1e-7, "complex": 1e-11, "torch": 1e-11}


@dataclass
class Row:
    """One tensor: the worst relative error by each method, None where the method could not be used."""

    tensor: str
    shape: tuple[int, ...]
    errors: dict[str, float | None]
    note: str = ""

    @property
    def ok(self) -> bool:
        # `not above` would let NaN pass
        return not self.note.startswith("wrong") and all(
            e is None or e <= TOLERANCE[method] for method, e in self.errors.items()
        )


@dataclass
class Report:
    """A table of rows: print it, or call raise_if_wrong() in a test."""

    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def worst(self, method: str = "central") -> float:
        return max(e for row in self.rows if (e := row.errors.get(method)) is not None)

    def __str__(self) -> str:
        head = f"{'tensor':<44} {'shape':<14} {'central':>9} {'complex':>9} {'torch':>9}  verdict"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            errors = " ".join(f"{'-' if (e := row.errors.get(m)) is None else f'{e:.1e}':>9}" for m in TOLERANCE)
            lines.append(f"{row.tensor:<44} {row.shape!s:<14} {errors}  {'ok' if row.ok else 'WRONG'} {row.note}")
        return "\n".join(lines)

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the table unless every row is ok."""
        if not self.ok:
            raise AssertionError(f"a gradient is wrong\n{self}")


def check_gradient(
    f: Callable[..., Array],
    grad: Callable[..., Sequence[Array]],
    inputs: Mapping[str, np.ndarray],
    *,
    rng: np.random.Generator,
    torch: Callable[..., Any] | None = None,
    zero: Collection[str] = (),
    directions: int = 3,
) -> Report:
    """Check `grad(dy, *inputs)`, one gradient per input, against `f(*inputs)`, an array.

    `torch` is f again, over PyTorch tensors. Inputs named in `zero` must have a gradient of zero, others must not.
    Raises ValueError for inputs that are not float64: in float32 a difference quotient has no digits left.
    """
    for name, x in inputs.items():
        if x.dtype != np.float64:
            raise ValueError(f"{name} is {x.dtype}: gradients are checked in float64")
    arrays = list(inputs.values())
    dy = rng.standard_normal(np.shape(f(*arrays)))
    gradients = [np.asarray(g) for g in grad(dy, *arrays)]
    if len(gradients) != len(arrays):
        raise ValueError(f"grad returned {len(gradients)} arrays for {len(arrays)} inputs")

    def at(i: int, x: Array) -> Array:
        others = [a.astype(x.dtype) for a in arrays]
        return (dy * f(*others[:i], x, *others[i + 1 :])).sum()

    expected = torch_gradients(torch, dy, arrays) if torch else [None] * len(arrays)
    rows = []
    for i, (name, x, g, e) in enumerate(zip(inputs, arrays, gradients, expected, strict=True)):
        rows.append(check_tensor(name, partial(at, i), x, g, rng, directions, name in zero, e))
    return Report(rows)


def check_model(
    model: Module,
    loss: Callable[[], Array],
    grads: Gradients,
    *,
    rng: np.random.Generator,
    zero: Collection[str] = (),
    directions: int = 2,
    complex_step: bool = True,
) -> Report:
    """Check `grads`, as backward left it, against `loss()`, which runs the model's forward to a scalar.

    One row per trainable parameter of `model`, which must be in float64; those named in `zero` must have none.
    Raises ValueError where the gradients are not exactly those of the trainable parameters.
    """
    parameters = model.trainable_parameters()
    if set(grads) != set(parameters.values()):
        raise ValueError("the gradients are not those of the trainable parameters")
    before = {parameter: parameter.data for parameter in model.named_parameters().values()}

    def at(parameter: Parameter, x: Array) -> Array:
        for other, data in before.items():
            other.data = data.astype(x.dtype)
        parameter.data = x
        return loss()

    rows = []
    try:
        for name, parameter in parameters.items():
            L, x, g = partial(at, parameter), before[parameter], grads[parameter]
            rows.append(check_tensor(name, L, x, g, rng, directions, name in zero, None, complex_step))
    finally:
        for parameter, data in before.items():
            parameter.data = data
    return Report(rows)


def check_tensor(
    name: str,
    L: Callable[[Array], Array],
    x: np.ndarray,
    g: np.ndarray,
    rng: np.random.Generator,
    directions: int,
    zero: bool,
    torch: np.ndarray | None,
    complex_step: bool = True,
) -> Row:
    """The row of one tensor: L(x) is the scalar, g the gradient under test."""
    if g.shape != x.shape:
        return Row(name, x.shape, {}, f"wrong shape {g.shape}")
    norm = math.sqrt(float((g * g).sum()))
    if zero and norm > 1e-12 * math.sqrt(g.size):
        return Row(name, x.shape, {}, f"wrong: not zero, its norm is {norm:.1e}")
    if norm == 0 and not zero:
        return Row(name, x.shape, {}, "wrong: zero everywhere (B = 0? an upstream gradient of ones?)")
    norm = 1.0 if zero else norm
    central, by_complex = [], []
    for _ in range(directions):
        u = rng.standard_normal(x.shape)
        along = float((g * u).sum())
        near, far = (L(x + step * u) - L(x - step * u) for step in (EPSILON, 2 * EPSILON))
        slope = (8 * near - far) / (12 * EPSILON)
        central.append(abs(float(slope) - along) / norm)
        if complex_step:
            by_complex.append(abs(float((L(x + 1e-30j * u) / 1e-30).imag) - along) / norm)
    errors: dict[str, float | None] = {"central": worst(central), "complex": worst(by_complex)}
    if torch is not None:
        errors["torch"] = float(np.abs(g - torch).max()) / (norm / math.sqrt(g.size))
    return Row(name, x.shape, errors, "zero, as it must be" if zero else "")


def worst(errors: list[float]) -> float | None:
    """The largest, NaN if there is one; None of none."""
    return float(np.max(errors)) if errors else None


def torch_gradients(f: Callable[..., Any], dy: np.ndarray, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import torch

    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    return [g.numpy() for g in torch.autograd.grad((torch.tensor(dy) * f(*inputs)).sum(), inputs)]
