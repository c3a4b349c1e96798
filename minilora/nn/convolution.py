"""Conv1d and Conv2d, with PyTorch's names and shapes, and Flatten. The maths is in ops/convolution.py."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from .. import ops
from ..backend import Array
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module, Parameter

PerAxis = int | tuple[int, ...]  # one number for all axes, or one for each


class ConvolutionCache(NamedTuple):
    x: Array | None  # (N, C, *size)   for dW; None where W is frozen
    shape: tuple[int, ...]  # of x
    needs_db: bool
    needs_dx: bool


class Convolution(Module):
    """y_o = Σ_c W_oc ⋆ x_c + b_o      x (N, C, *size)   W (O, C, *kernel)   b (O,), optional   y (N, O, *L)

    Stride, padding and dilation are numbers, or a tuple with one for each axis, as in PyTorch; the padding is of zeros.
    There are no groups: every output reads every channel.
    Raises ValueError for a weight of another number of axes, and for such numbers that are not whole, or too small.
    """

    axes: ClassVar[int]

    def __init__(
        self,
        weight: Array | Parameter,
        bias: Array | Parameter | None = None,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
    ) -> None:
        self.weight = weight if isinstance(weight, Parameter) else Parameter(weight)
        self.bias = bias if isinstance(bias, Parameter) or bias is None else Parameter(bias)
        shape = self.weight.data.shape
        if len(shape) != 2 + self.axes:
            raise ValueError(
                f"the weight of a {type(self).__name__} is (out, in{', kernel' * self.axes}), not of shape {shape}"
            )
        given = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
        self.window = ops.Window(shape[2:], *(self.per_axis(name, *each) for name, each in given.items()))

    def per_axis(self, name: str, value: PerAxis, least: int) -> tuple[int, ...]:
        numbers = tuple(value) if isinstance(value, tuple | list) else (value,) * self.axes
        if len(numbers) != self.axes or any(type(n) is not int or n < least for n in numbers):
            raise ValueError(f"{name} {value!r} is not a whole number from {least} up, or {self.axes} of them")
        return numbers

    def dense(self) -> Array:
        """W: a kernel is never quantised."""
        W: Array = self.weight.data
        return W

    def outputs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of y, of an x of this one. Raises ValueError for one that the kernel does not fit."""
        n_out, C, *kernel = self.weight.data.shape
        if len(shape) != 2 + self.axes or shape[1] != C:
            raise ValueError(
                f"x is (batch, {C} channels{', size' * self.axes}) for a kernel (out, in{', kernel' * self.axes}) of "
                f"shape {self.weight.data.shape}, not of shape {shape}; there are no groups"
            )
        L = self.window.outputs(shape[2:])
        if min(L) < 1:
            raise ValueError(f"x of size {shape[2:]} is smaller than a window: the kernel is {tuple(kernel)}")
        return (shape[0], n_out, *L)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, ConvolutionCache]:
        self.outputs(x.shape)
        b, shape = self.bias, x.shape
        y, x = ops.convolution_forward(x, self.weight.data, None if b is None else b.data, self.window)
        trained = self.weight.trainable
        return y, ConvolutionCache(x if trained else None, shape, b is not None and b.trainable, run.needs_dx)

    def backward(self, dy: Array, cache: ConvolutionCache, grads: Gradients) -> Array | None:
        if cache.x is not None:
            grads.add(self.weight, ops.convolution_gradients(dy, cache.x, self.window))
        if cache.needs_db and self.bias is not None:
            grads.add(self.bias, ops.bias_gradients(ops.channels_last(dy)))
        if not cache.needs_dx:
            return None
        return ops.convolution_backward(dy, self.weight.data, self.window, cache.shape)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        y, trained = costs.array(*self.outputs(x.shape)), self.weight.trainable
        if trained:
            costs.keep(self, "x", x, "dW₂ = dyᵀ X, X the windows of x")
        n = 2 * math.prod(y.shape) * math.prod(self.weight.data.shape[1:])
        costs.multiply(self, "linear", {"y = X W₂ᵀ": n}, {"dX = dy W₂": n * x.needs_dx, "dW₂ = dyᵀ X": n * trained})
        return y


class Conv1d(Convolution):
    """A convolution of signals: x (N, C, T), W (O, C, kernel), y (N, O, L)."""

    axes = 1


class Conv2d(Convolution):
    """A convolution of images: x (N, C, height, width), W (O, C, kernel, kernel), y (N, O, *L)."""

    axes = 2


class Flatten(Module):
    """(N, C, *size) -> (N, C·size), for a Linear above convolutions"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, tuple[int, ...]]:
        return x.reshape(len(x), -1), x.shape

    def backward(self, dy: Array, shape: tuple[int, ...], grads: Gradients) -> Array:
        return dy.reshape(shape)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return costs.array(x.shape[0], math.prod(x.shape[1:]))
