"""What an initialisation is given besides W, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...backend import Array, Rng
from ...ops.rows import rows
from ...quantization import Quantized


class Moments(NamedTuple):
    """Sums over N inputs x (in,) of a layer, in float64: all that an initialisation needs to know of them."""

    N: int
    total: Array  # (in,)      Σ x
    squares: Array  # (in, in)   Σ x xᵀ

    @classmethod
    def of(cls, X: Array) -> Moments:
        """Of the rows of X (..., in)."""
        X = rows(X).astype(np.float64)
        return cls(len(X), X.sum(axis=0), X.T @ X)

    def joined(self, other: Moments) -> Moments:
        """Of both."""
        return Moments(self.N + other.N, self.total + other.total, self.squares + other.squares)

    def second(self) -> Array:
        """(in, in): 1/N Σ x xᵀ"""
        return self.squares / self.N

    def covariance(self) -> Array:
        """(in, in): 1/N Σ (x - μ)(x - μ)ᵀ, with μ the mean"""
        mean = self.total / self.N
        return self.second() - np.outer(mean, mean)


class Data(NamedTuple):
    """What an initialisation may look at besides W; each states what it needs (Init.needs)."""

    rng: Rng | None = None  # a seed or a generator
    inputs: Moments | None = None  # of what the layer is given
    gradient: Array | None = None  # (out, in)   of W

    def given(self, name: str) -> Any:
        """One of these. Raises ValueError where it is missing."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"it needs the {name} of the layer: data=Data({name}=...)")
        return value


class Start(NamedTuple):
    """A (r, in), B (out, r) and W_residual (out, in), with W_residual + s B A = W, or near it where it is Quantized."""

    A: Array
    B: Array
    W_residual: Array | Quantized


class Init(NamedTuple):
    """An entry of INITS."""

    about: str  # a line
    make: Callable[..., Start]  # (W, r, s, data), and options of its own
    needs: str = ""  # the field of Data, besides rng, that it requires
    takes_from_W: bool = False  # W_residual is not W
    freezes_B: bool = False  # B is not trained
    quantizes: bool = False  # W_residual is Quantized
    redistribute: Callable[[Mapping[str, int], Mapping[str, Data], float], dict[str, int]] | None = None
    """({layer: rank}, {layer: Data}, rho) -> {layer: rank} of all layers, where one's rank depends on the others'"""


def unchanged_start(W: Array, A: Array, B: Array) -> Start:
    """For B A = 0: W does not change."""
    return Start(A.astype(W.dtype), B.astype(W.dtype), W)


def residual_start(W: Array, A: Array, B: Array, s: float) -> Start:
    """W_residual is W - s B A."""
    A, B = A.astype(W.dtype), B.astype(W.dtype)
    return Start(A, B, W - s * (B @ A))


def root_of_sigma(sigma: Array, s: float) -> Array:
    """√(σ / s), the factor of both A and B of a part of W. Raises ValueError for an s that is not above 0."""
    if not s > 0:
        raise ValueError(f"s B A cannot be a part of W at a scale s = {s:g}: choose an alpha above 0")
    root: Array = np.sqrt(sigma / s)
    return root


def check_rank(r: int, most: int, of_what: str) -> None:
    """Raise ValueError for a rank above `most`."""
    if r > most:
        raise ValueError(f"r = {r} is above {most}, {of_what}")
