"""How much of ΔW a merge keeps: predicted from the format's grid, before anything is rounded, and measured.

W + ΔW is held in a format. f(W) is W rounded to it; what arrives of ΔW is

    kept = f(W + ΔW) - W                    E = kept - ΔW = f(W + ΔW) - (W + ΔW)

A format rounds u = W / a to the nearest of its levels. The scale a is the largest |W| of a block (NF4) or a row (int8),
or 1 (bfloat16, float16). A level is a number that the format can represent; its cell is the interval of all numbers
that are rounded to it. From a level to the ends of its cell:

    NF4         .040 a to .152 a            .152 a at the ends, where levels are far apart; .040 a above 0
    int8        a / 254
    bfloat16    2⁻⁹ to 2⁻⁸ of |w|           as w lies in the upper or the lower part of [2^e, 2^(e+1)]
    float16     2⁻¹² to 2⁻¹¹ of |w|         2⁻²⁵ below 2⁻¹⁴, where its numbers are subnormal

A base on the grid, W = f(W): one that was loaded in the format. W is level · a, and a' is the scale of W + ΔW, which
differs from a where ΔW changes the largest entry of a block. On the new grid W + ΔW is away from its old level by

    t = W + ΔW - level · a' = ΔW + level (a - a')

While t stays in the cell the code does not change, and all of t is lost: ΔW, and the effect of the new scale on W.
E = -t. So for a small ΔW in NF4, ‖E‖ is about ‖ΔW‖ √(1 + mean level²), more than if nothing had been merged. An entry
that leaves its cell lands at some x in another one, of level'. Its error is level' - x, and

    E² = Σ_stayed t² + Σ_moved ⟨(level' - x)²⟩

The mean ⟨⟩ is over the cell, with the density of t. Where cells are narrow compared with t that is uniform, and the
mean is width²/12. But where few entries move, most of them have just crossed the edge. So the density is a normal one,
with the standard deviation that t has in its row.

A base off the grid, such as float32 merged into NF4: then W + ΔW lies anywhere in its cell, and the mean is over the
cell of every entry, with the density of W + ΔW. Where that is uniform, with c and d from the level to the ends of the
cell,

    E² = Σ (c³ + d³) / (3 (c + d))          which is Σ width²/12 for c = d

However small ΔW is: E is the rounding of W, which happens without an adapter too, and is independent of ΔW. An entry
changes its code with probability |Δu| / width, rarely but then by much, so that ΔW survives on average, as under
dither: ⟨kept, ΔW⟩ = ‖ΔW‖², and cos(kept, ΔW) = ‖ΔW‖ / √(‖ΔW‖² + ‖E‖²).

The error of y = x Wᵀ is x Eᵀ. If the numbers of E are independent, in the mean over rows x

    rms(x Eᵀ)² = Σ_i ⟨x_i²⟩ ‖E_·i‖² / out         which is ⟨‖x‖²⟩ ‖E‖² / (in · out) where all columns are alike

But what is lost of ΔW is not independent of ΔW, and a trained ΔW reads what x has most of. With the share κ that is
kept,

    kept = κ ΔW + N         κ = ⟨kept, ΔW⟩ / ‖ΔW‖²          E = N - (1 - κ) ΔW
    rms(x Eᵀ)² = (1 - κ)² rms(x ΔWᵀ)² + Σ_i ⟨x_i²⟩ ‖N_·i‖² / out        ‖N_·i‖² = ‖E_·i‖² - (1 - κ)² ‖ΔW_·i‖²
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .base import ENCODED, Cells, Quantized, parts

NODES, WEIGHTS = (x[:, None] for x in np.polynomial.legendre.leggauss(5))  # (5, 1): of the mean over a cell
TINY = 1e-300
LARGEST = 1 - 1e-6  # of the scale, as float32 has it
MEDIAN = 0.67449  # of |x| for a normal x of standard deviation 1
FAR = 3  # standard deviations: what lies farther out is of a wider distribution
ON_THE_GRID = 0.1  # of the expected rounding error: below it W differs by the rounding of scales alone


@dataclass(frozen=True, eq=False)
class Kept:
    """What of the ΔW of a matrix is kept."""

    numbers: int  # entries of ΔW
    moved: float  # how many of them change their code
    along: float  # ⟨kept, ΔW⟩
    deltas: np.ndarray  # (in,) ‖ΔW‖² of each column
    errors: np.ndarray  # (in,) ‖E‖² of each column

    @property
    def delta(self) -> float:
        """‖ΔW‖²"""
        return float(self.deltas.sum())

    @property
    def error(self) -> float:
        """‖E‖²"""
        return float(self.errors.sum())

    @property
    def survive(self) -> float:
        """The share of the entries that change their code."""
        return self.moved / self.numbers

    @property
    def cos(self) -> float:
        """cos(kept, ΔW); 0 where nothing is kept."""
        kept = self.error + 2 * self.along - self.delta
        return self.along / math.sqrt(kept * self.delta) if kept > 0 and self.delta else 0.0

    @property
    def relative_error(self) -> float:
        """‖E‖ / ‖ΔW‖; NaN for a ΔW of 0."""
        return math.sqrt(self.error / self.delta) if self.delta else math.nan

    @property
    def share(self) -> float:
        """κ = ⟨kept, ΔW⟩ / ‖ΔW‖², how much of ΔW is kept: kept = κ ΔW + N, N uncorrelated with ΔW. NaN for 0."""
        return self.along / self.delta if self.delta else math.nan

    def error_of_y(self, n_out: int, x: np.ndarray, of_delta: float) -> float:
        """rms(x Eᵀ) for rms(x ΔWᵀ) = of_delta and the mean square x (in,) of each entry of x."""
        lost = 1 - self.share
        noise = np.maximum(0, self.errors - lost**2 * self.deltas)
        return math.sqrt((lost * of_delta) ** 2 + float(x @ noise) / n_out)


def foretell(W: np.ndarray, delta: np.ndarray, format: type[Quantized]) -> Kept:
    """What is kept of ΔW (out, in) when W (out, in) + ΔW is held in `format`, from its grid alone. Here b is a' above,
    and u and v are W / a and (W + ΔW) / a'."""
    on_grid = on_the_grid(W, format)
    (a, _), (b, held) = scales(W, format), scales(W + delta, format)
    moved, along, errors = 0.0, 0.0, np.zeros(W.shape[1])
    for rows in parts(W, ENCODED):
        D, u = delta[rows].astype(float), divided(W[rows], a[rows])
        x = W[rows] + D
        v = divided(x, b[rows])
        level, low, high = format.cells(u)
        if on_grid:
            start, where, moves = level * held[rows], D != 0, (v < low) | (v > high)
            moved += moves.sum()
        else:
            start, where, moves = np.zeros(x.shape), x != 0, np.full(x.shape, True)
            _, low, high = inner(u, format)
            moved += np.minimum(1, abs(v - u) / np.maximum(high - low, TINY)).sum()
        spread = np.broadcast_to(deviations(x - start, where), x.shape)
        rounded, E = start.copy(), start - x
        E2 = E**2
        those = (y[moves] for y in (v, b[rows], held[rows], start, spread))
        rounded[moves], E[moves], E2[moves] = over_cells(format, *those)
        along += np.vdot(D, D)
        if on_grid:
            along += np.vdot(rounded - W[rows], E) - E2.sum()  # ⟨E, ΔW⟩ = ⟨E, kept⟩ - ‖E‖²
        errors += E2.sum(axis=0)
    return Kept(W.size, float(moved), float(along), columns(delta), errors)


def measure(W: np.ndarray, delta: np.ndarray, format: type[Quantized]) -> Kept:
    """What is kept of ΔW (out, in), by rounding W (out, in) + ΔW."""
    before, after = format.of(W), format.of(W + delta)
    kept = after.dense() - W
    moved = int((after.codes() != before.codes()).sum())
    along = float(np.einsum("oi,oi->", kept, delta, dtype=float))
    return Kept(W.size, moved, along, columns(delta), columns(kept - delta))


def on_the_grid(W: np.ndarray, format: type[Quantized]) -> bool:
    """Whether W is what the format holds of it, up to the rounding of scales."""
    (a, held), distance, width = scales(W, format), 0.0, 0.0
    for rows in parts(W):
        level, low, high = inner(divided(W[rows], a[rows]), format)
        distance += columns(W[rows] - level * held[rows]).sum()
        width += columns((high - low) * a[rows]).sum()
    return bool(distance <= ON_THE_GRID**2 * width / 12)


def over_cells(
    format: type[Quantized], u: np.ndarray, a: np.ndarray, held: np.ndarray, start: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """level · â of the cells in which u = x / a lie, and the means over each cell of e = level · â - x and e², for an
    x that is normal about `start` with a standard deviation of `spread`. All are (n,)."""
    level, low, high = inner(u, format)
    level, low, high = held * level, a * low, a * high
    spread = np.maximum(spread, abs(start - np.clip(start, low, high)) / FAR)
    x = (low + high) / 2 + NODES * (high - low) / 2
    exponent = -(((x - start) / spread) ** 2) / 2
    density = WEIGHTS * np.exp(exponent - exponent.max(axis=0))
    density /= density.sum(axis=0)
    e = level - x
    return level, (density * e).sum(axis=0), (density * e**2).sum(axis=0)


def inner(u: np.ndarray, format: type[Quantized]) -> Cells:
    """The cells of u, where those at the ends of a scale end at ±1: the largest entry, which is exact."""
    level, low, high = format.cells(u)
    exact = (np.isinf(low) | np.isinf(high)) & (abs(u) >= LARGEST)
    return Cells(level, *(np.where(exact | np.isinf(end), level, end) for end in (low, high)))


def deviations(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(out, 1): the standard deviation of each row, by the median of |x|, as a few entries of a trained W are huge;
    over the entries selected by `where`, inf for a row that has none."""
    size = np.sort(np.where(where, abs(x), np.inf), axis=1)
    return np.take_along_axis(size, where.sum(axis=1, keepdims=True) // 2, axis=1) / MEDIAN


def scales(W: np.ndarray, format: type[Quantized]) -> tuple[np.ndarray, np.ndarray]:
    """format.scales_of(), each (out, in)."""
    a, held = format.scales_of(W)
    return np.broadcast_to(a, W.shape), np.broadcast_to(held, W.shape)


def divided(W: np.ndarray, a: np.ndarray) -> np.ndarray:
    """u = W / a, float64; 0 where a is, as W is 0 there."""
    return W / np.where(a == 0, 1, a).astype(float)


def columns(x: np.ndarray) -> np.ndarray:
    """(in,) ‖x‖² of each column, float64."""
    return np.einsum("oi,oi->i", x, x, dtype=float)
