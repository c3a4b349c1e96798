"""Arithmetic in 16 bits, simulated: what every operation returns is rounded to bfloat16 or float16.

A format has numbers of p significant bits. A result x between its smallest and largest normal number is rounded to the
nearest, half to even, with u the unit roundoff:

    fl(x) = x (1 + δ)       |δ| ≤ u = 2⁻ᵖ           the numbers from 1 to 2 are 2u apart

                 p      u                largest     smallest normal     smallest
    float32     24      6.0 · 10⁻⁸       3 · 10³⁸    2⁻¹²⁶ ≈ 10⁻³⁸       2⁻¹⁴⁹ ≈ 10⁻⁴⁵
    bfloat16     8      3.9 · 10⁻³       3 · 10³⁸    2⁻¹²⁶ ≈ 10⁻³⁸       2⁻¹³³ ≈ 9 · 10⁻⁴¹
    float16     11      4.9 · 10⁻⁴       65,504      2⁻¹⁴ ≈ 6 · 10⁻⁵     2⁻²⁴ ≈ 6 · 10⁻⁸

Below the smallest normal number all are as far apart as the smallest is from 0. Four things follow.

Sums.       1 + ε = 1 for 0 ≤ ε ≤ u: the next number is 1 + 2u, and a tie goes to the even one. In float16 that is so
            for 2⁻¹¹ and, with room to spare, for 2⁻¹²; in bfloat16 already for 2⁻⁸.
Gradients.  Up to half of float16's smallest number, 2⁻²⁵ ≈ 3 · 10⁻⁸, a gradient g is rounded to 0, such as 10⁻⁸.
            bfloat16 has the exponents of float32, and keeps it. The gradients of S L are S g, and at S = 2¹⁶ float16
            keeps what is above 2⁻⁴¹ (training/loss_scale.py).
Updates.    w - η d = w where |η d| is less than half the distance to the next number: for certain below |w| u / 2, and
            never above |w| u. Updates that are lost one by one do not add up. A float32 copy of w adds them up, and w
            is rounded from it for each step.

Overflow.   Above 65,520 there is only ∞ in float16. So attention's -10⁹ for a hidden key is -∞ there, and a row that
            sees no key, as padding on the left has under a causal mask, is NaN.

Each operation is computed in float32 and rounded. As 24 ≥ 2p + 2, that is the exact result, rounded once, for sums,
products, quotients and roots of two numbers (Figueroa, 1995, "When is double rounding innocuous?"; bfloat16's numbers
below 2⁻¹²⁶ excepted). exp, log and tanh are as good as float32's. A product of matrices, or a sum along an axis, is
added up in float32 and rounded at the end, as tensor cores do. Another array of floats, combined with one in 16 bits,
is rounded first; a single number, such as the 0.5 in 0.5 x, is not. So each operation gives PyTorch's bits, with two
exceptions: PyTorch also rounds a single number that is added, and its softmax, layer norm and linear layer with a bias
round only once, at the end.

Source: Micikevicius et al. (2018), "Mixed precision training".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np

from ..spelling import choose_from
from .base import dense
from .bfloat16 import bfloat16_bits, from_bfloat16


class Half(np.ndarray):
    """A float32 array whose values all exist in the 16-bit format `name`; what is computed from it is rounded too."""

    name: ClassVar[str]
    u: ClassVar[float]
    smallest_normal: ClassVar[float]
    smallest: ClassVar[float]
    largest: ClassVar[float]

    @staticmethod
    def nearest(x: np.ndarray) -> np.ndarray:
        """float32 x, each value rounded to the nearest of the format."""
        raise NotImplementedError

    @classmethod
    def of(cls, x: Any) -> Self:
        """An array of floats, rounded."""
        with np.errstate(over="ignore"):
            x = np.asarray(x, np.float32)
            return cls.nearest(x.reshape(-1)).reshape(x.shape).view(cls)

    @classmethod
    def operand(cls, x: Any) -> Any:
        """What float32 arithmetic gets for x."""
        if isinstance(x, cls):
            return x.view(np.ndarray)
        return cls.of(x).view(np.ndarray) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    @classmethod
    def result(cls, y: Any) -> Any:
        """y of float32 arithmetic, rounded if it is of floats."""
        if isinstance(y, tuple | list):
            return getattr(type(y), "_make", type(y))(map(cls.result, y))
        return cls.of(y) if isinstance(y, np.ndarray | np.generic) and y.dtype.kind == "f" else y

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        operands = [self.operand(x) for x in inputs]
        if method == "at":  # writes to its first input
            out, operands[0] = inputs[:1], np.asarray(inputs[0])
        elif out:
            options["out"] = tuple(map(np.asarray, out))
        y = getattr(ufunc, method)(*operands, **options)
        for x in out:
            x[...] = self.result(x)
        return out[0] if y is not None and out else self.result(y)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return self.result(super().__array_function__(function, types, arguments, options))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, self.operand(value))


class BFloat16Array(Half):
    name, u, smallest_normal, smallest, largest = "bfloat16", 2.0**-8, 2.0**-126, 2.0**-133, (2 - 2.0**-7) * 2.0**127

    @staticmethod
    def nearest(x: np.ndarray) -> np.ndarray:
        return from_bfloat16(bfloat16_bits(x))


EXPONENT = np.uint32(0x7F800000)
FLOAT16_POWERS = np.array([2.0**-14, 2.0**16], np.float32).view(np.uint32)
CONSTANT = np.uint32(13 << 23 | 1 << 22)  # added to the bits of 2ᵉ: those of 1.5 · 2ᵉ⁺¹³


class Float16Array(Half):
    name, u, smallest_normal, smallest, largest = "float16", 2.0**-11, 2.0**-14, 2.0**-24, 65504.0

    @staticmethod
    def nearest(x: np.ndarray) -> np.ndarray:
        """As astype(float16), which takes 60 ns for a number below 2⁻¹⁴. With 2ᵉ ≤ |x| < 2ᵉ⁺¹, float32's numbers near
        C = 1.5 · 2ᵉ⁺¹³ are as far apart as float16's near x: adding C rounds x, and C is taken away again."""
        C = x.view(np.uint32) & EXPONENT  # 2ᵉ
        np.clip(C, FLOAT16_POWERS[0], FLOAT16_POWERS[1], out=C)
        C += CONSTANT
        C = C.view(np.float32)
        y = x + C
        y -= C
        y[np.abs(y, out=C) > Float16Array.largest] = np.inf
        return np.copysign(y, x, out=y)


HALF: dict[str, type[Half]] = {cls.name: cls for cls in (BFloat16Array, Float16Array)}


@contextmanager
def half_precision(parameters: Iterable[Any], name: str) -> Iterator[type[Half]]:
    """Inside `with half_precision(model.parameters(), "float16")`, everything that the model computes is rounded to
    float16, or bfloat16: each parameter's `data` is a Half, and so is what an op, a layer or an optimizer makes of it.

    Afterwards each parameter has the array that it had before: forward and backward ran on a copy in 16 bits, and an
    optimizer outside steps in float32. One that was trained inside keeps what it has learned, in an array that computes
    in float32 again. Yields the class. Raises ValueError for another name.
    """
    if name not in HALF:
        raise ValueError(f"no arithmetic of 16 bits is called {name!r}: {choose_from(name, HALF)}")
    before = {parameter: parameter.data for parameter in parameters}
    inside = {parameter: HALF[name].of(dense(data)) for parameter, data in before.items()}
    for parameter, data in inside.items():
        parameter.data = data
    try:
        yield HALF[name]
    finally:
        for parameter, data in before.items():
            if parameter.data is inside[parameter]:
                parameter.data = data
            elif isinstance(parameter.data, Half):
                parameter.data = np.asarray(parameter.data)
