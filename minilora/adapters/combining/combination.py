"""What a method of combining is given, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..spectrum import svd, truncate

Array = np.ndarray  # float64


class Factors(NamedTuple):
    """ΔW = s B A (out, in)"""

    A: Array  # (r, in)
    B: Array  # (out, r)
    s: float

    def delta(self) -> Array:
        return self.s * (self.B @ self.A)

    def inner(self, other: Factors) -> float:
        """⟨ΔW₁, ΔW₂⟩ = s₁s₂ tr(A₁ᵀB₁ᵀ B₂A₂) = s₁s₂ Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ): r₁r₂(in + out) multiplications, and no ΔW."""
        return self.s * other.s * float(np.sum((self.B.T @ other.B) * (self.A @ other.A.T)))


class Options(NamedTuple):
    """What a method may take besides adapters and weights; each states which it reads (Combination.reads)."""

    rank: int = 0  # k, of the result
    density: float = 1.0  # the share of entries that a pruning keeps, above 0 and up to 1
    rng: np.random.Generator | None = None  # for those that are random


Join = Callable[[Sequence[Array], Sequence[float], Options], Array]  # of tensors of one shape, with weights above 0
Make = Callable[[Sequence[Factors], Sequence[float], Options], tuple[Array, Array]]


class Combination(NamedTuple):
    """An entry of COMBINATIONS."""

    about: str  # a line
    make: Make  # (adapters, weights, options) -> A (k, in), B (out, k); every w and s is above 0
    reads: tuple[str, ...] = ()  # fields of Options
    of_factors: bool = False  # it works on the A's and B's separately, which must be of one rank


def by_factors(join: Join) -> Make:
    """A = join(Aᵢ; √(wᵢsᵢ)), B = join(Bᵢ; √(wᵢsᵢ)). Raises ValueError for different ranks."""

    def make(adapters: Sequence[Factors], weights: Sequence[float], options: Options) -> tuple[Array, Array]:
        ranks = [len(A) for A, _, _ in adapters]
        if len(set(ranks)) > 1:
            raise ValueError(f"its adapters have the ranks {', '.join(map(str, ranks))}, so A and B cannot be added")
        roots = [math.sqrt(w * s) for w, (_, _, s) in zip(weights, adapters, strict=True)]
        A = join([A for A, _, _ in adapters], roots, options)
        return A, join([B for _, B, _ in adapters], roots, options)

    return make


def by_deltas(join: Join) -> Make:
    """B A = the best approximation of rank k of join(ΔWᵢ; wᵢ)."""

    def make(adapters: Sequence[Factors], weights: Sequence[float], options: Options) -> tuple[Array, Array]:
        B, A = truncate(svd(join([adapter.delta() for adapter in adapters], weights, options)), options.rank)
        return A, B

    return make


def positive(adapters: Sequence[Factors], weights: Sequence[float]) -> tuple[list[Factors], list[float]]:
    """The same sum without adapters of w s = 0, and with the sign of the others in A: every w and s is above 0."""
    signs = [math.copysign(1, w * s) for w, (_, _, s) in zip(weights, adapters, strict=True)]
    found = [
        (Factors(sign * A, B, abs(s)), abs(w))
        for sign, w, (A, B, s) in zip(signs, weights, adapters, strict=True)
        if w * s
    ]
    return [adapter for adapter, _ in found], [w for _, w in found]
