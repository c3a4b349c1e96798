"""Convolution, of signals (1-D) and of images (2-D): the same kernel weighs every window of x.

    y_nol = Σ_c Σ_k W_ock x̄_nc(t·l + d·k) + b_o       x (N, C, *size)   W (O, C, *kernel)   b (O,)   y (N, O, *L)

l is a position of the output and k one of the kernel: a number for signals, a pair for images, and the products in the
index are taken axis by axis. x̄ is x between p zeros on either side, t the stride, d the dilation, and along each axis

    L = ⌊(size + 2p - d (kernel - 1) - 1) / t⌋ + 1

(As in all libraries this is a cross-correlation: the kernel is not reversed.)

It is a linear layer (linear.py) on windows. Let X be the windows of x, one a row:

    X_(nl)(ck) = x̄_nc(t·l + d·k)                       X (N·L, C·K), K the product of the kernel's sizes
    y = X W₂ᵀ + b                                      W₂ (O, C·K), the kernels W as rows

so with the rows of dy that belong to the windows

    dW₂ = dyᵀ X         db = Σ dy         dX = dy W₂

X is a selection of the numbers of x̄, each of them in as many windows as reach it, so its transpose adds up:

    dx̄_ncm = Σ over all (l, k) with t·l + d·k = m of dX_(nl)(ck)

and dx is dx̄ without the padding. (Im2col and col2im, as Caffe calls the two.) X is K/t² times as large as x, in 1-D K/t
times. So the cache is x, and dW makes X again, which is copying alone.

Source: LeCun et al. (1989), "Backpropagation Applied to Handwritten Zip Code Recognition"; as a product of matrices:
Chellapilla, Puri, Simard (2006), "High Performance Convolutional Neural Networks for Document Processing".
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from ..backend import Array, get_array_module
from .linear import linear_backward, linear_forward, linear_gradients

Sizes: TypeAlias = tuple[int, ...]  # one number for each axis
Index: TypeAlias = tuple[Any, ...]  # of an array


class Window(NamedTuple):
    """Which numbers of x an output sees. Each field has a number for every axis."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes  # zeros on either side
    dilation: Sizes  # the distance between two numbers of a window

    def outputs(self, size: Sizes) -> Sizes:
        """L, of an x of this size; not above 0 where the kernel is wider than x and its padding."""
        return tuple((n + 2 * p - d * (k - 1) - 1) // t + 1 for n, k, t, p, d in zip(size, *self, strict=True))

    def slices(self, L: Sizes) -> Iterator[tuple[Index, Index]]:
        """(where X has what position k of the kernel weighs, where x̄ has it, for all L windows) of every k."""
        for k in itertools.product(*map(range, self.kernel)):
            starts = [d * i for d, i in zip(self.dilation, k, strict=True)]
            steps = zip(starts, self.stride, L, strict=True)
            yield (..., *k), (..., *(slice(i, i + t * (n - 1) + 1, t) for i, t, n in steps))

    def inside(self, size: Sizes) -> tuple[Sizes, Index]:
        """(the size of x̄, where in it x is)"""
        both = list(zip(size, self.padding, strict=True))
        return tuple(n + 2 * p for n, p in both), (..., *(slice(p, p + n) for n, p in both))


def channels_last(y: Array) -> Array:
    """(N, O, *L) -> (N, *L, O), a view: positions as rows."""
    return get_array_module(y).moveaxis(y, 1, -1)


def channels_first(y: Array) -> Array:
    """(N, *L, O) -> (N, O, *L), a view."""
    return get_array_module(y).moveaxis(y, -1, 1)


def kernels(W: Array) -> Array:
    """W (O, C, *kernel) -> W₂ (O, C·K)"""
    return W.reshape(len(W), -1)


def windows(x: Array, window: Window) -> Array:
    """x (N, C, *size) -> X (N, *L, C·K)"""
    xp, (N, C, *size) = get_array_module(x), x.shape
    L, (wide, inside) = window.outputs(tuple(size)), window.inside(tuple(size))
    padded = xp.zeros((N, C, *wide), dtype=x.dtype)
    padded[inside] = x
    X = xp.empty((N, *L, C, *window.kernel), dtype=x.dtype)
    for k, where in window.slices(L):
        X[k] = channels_last(padded[where])
    return X.reshape(N, *L, C * math.prod(window.kernel))


def windows_backward(dX: Array, window: Window, shape: Sizes) -> Array:
    """dX (N, *L, C·K) -> dx of this shape (N, C, *size): each number of x gets the sum over its windows."""
    N, C, *size = shape
    L, (wide, inside) = dX.shape[1:-1], window.inside(tuple(size))
    dX = dX.reshape(N, *L, C, *window.kernel)
    dpadded = get_array_module(dX).zeros((N, C, *wide), dtype=dX.dtype)
    for k, where in window.slices(L):
        dpadded[where] += channels_first(dX[k])
    return dpadded[inside]


def convolution_forward(x: Array, W: Array, b: Array | None, window: Window) -> tuple[Array, Array]:
    """y = X W₂ᵀ + b        y (N, O, *L).  The cache is x, which only dW needs."""
    return channels_first(linear_forward(windows(x, window), kernels(W), b)[0]), x


def convolution_backward(dy: Array, W: Array, window: Window, shape: Sizes) -> Array:
    """dX = dy W₂, summed over the windows of each number of x, whose shape is given"""
    return windows_backward(linear_backward(channels_last(dy), kernels(W)), window, shape)


def convolution_gradients(dy: Array, x: Array, window: Window) -> Array:
    """dW₂ = dyᵀ X          (db is bias_gradients(channels_last(dy)))"""
    dW = linear_gradients(channels_last(dy), windows(x, window))
    return dW.reshape(len(dW), x.shape[1], *window.kernel)
