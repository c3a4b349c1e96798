"""The gradient of any function, measured entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Array
from .case import Tensors
from .check_tensor import NOTHING
from .differences import central_differences, complex_steps, rms
from .refusals import why_not_complex
from .scale import SAME


def numeric_gradient(f: Callable[..., Array], names: Sequence[str]) -> Callable[..., Tensors]:
    """Return backward(dy, *inputs, **constants) of f: every entry by a complex step, or else by central differences.

    That backward raises ValueError where rounding leaves too few digits. `names` are those of the inputs.
    """

    def backward(dy: Array, *arrays: Array, **constants: Any) -> Tensors:
        size = float(np.abs(dy * f(*arrays, **constants)).sum())
        analytic = why_not_complex(lambda: f(*(a.astype(complex) for a in arrays), **constants)) is None
        tensors = {}
        for i, (name, x) in enumerate(zip(names, arrays, strict=True)):

            def L(x: Array, i: int = i) -> Array:
                others = [a.astype(x.dtype) for a in arrays]
                return (dy * f(*others[:i], x, *others[i + 1 :], **constants)).sum()

            us = np.eye(x.size).reshape(-1, *x.shape)
            central = central_differences(name, L, x, us, size)
            steps = complex_steps(L, x, us, central) if analytic else None
            g, zero = (central.values, central.worst) if steps is None else (steps, NOTHING * size / max(1.0, rms(x)))
            seen = rms(g) > zero
            if zero > 1e-8 * np.abs(dy).sum() if not seen else steps is None and zero > 10 * SAME * rms(g):
                raise ValueError(
                    f"the gradient of {name} can be measured to {zero:.0e} only, where it is of size {rms(g):.0e}; "
                    "make f accept complex arrays, take constants out of it, or choose other inputs"
                )
            tensors[f"d{name}"] = (g if seen else 0 * g).reshape(x.shape)
        return tensors

    return backward
