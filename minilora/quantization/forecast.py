"""What a merge keeps: foretold from the format's grid, before anything is rounded, and measured.

W + ΔW is held in a format. f(W) is W rounded to it; what arrives of ΔW is

    kept = f(W + ΔW) - W                    E = kept - ΔW = f(W + ΔW) - (W + ΔW)

A format rounds u = W / a to the nearest of its levels. The scale a is the largest |W| of a block (NF4) or a row (int8),
or 1 (bfloat16, float16). All numbers that are rounded to one level form its cell. From a level to the ends of its cell:

    NF4         .040 a to .152 a            .152 a at the ends, where levels are rare; .040 a above 0
    int8        a / 254
    bfloat16    2⁻⁹ to 2⁻⁸ of |w|           as w lies in the upper or the lower part of [2^e, 2^(e+1)]
    float16     2⁻¹² to 2⁻¹¹ of |w|         2⁻²⁵ below 2⁻¹⁴, where its numbers are subnormal

**A base on the grid**, W = f(W): one that was loaded in the format. W is level · a, and a' is the scale of W + ΔW,
which differs from a where ΔW meets the largest number of a block. On the new grid W + ΔW is away from its old level by

    t = W + ΔW - level · a' = ΔW + level (a - a')

While t stays in the cell the code stays, and t is lost whole: ΔW, and what the new scale does to W. E = -t. So for a
small ΔW in NF4, ‖E‖ is about ‖ΔW‖ √(1 + mean level²), more than if nothing had been merged. A number that leaves its
cell lands in another, at some place x of it. Its error is level' - x, and

    E² = Σ_stayed t² + Σ_moved ⟨(level' - x)²⟩

The mean ⟨⟩ is over the cell, with the density of t. Where cells are narrow beside t that is uniform, and the mean is
width²/12. But where few numbers move, most of them have just crossed the edge. So the density is a normal one, as wide
as t is in its row.

**A base off the grid**, such as float32 merged into NF4: then W + ΔW lies anywhere in its cell, and the mean is over
every number's, with the density of W + ΔW. Where that is uniform, with c and d from the level to the ends of the cell,

    E² = Σ (c³ + d³) / (3 (c + d))          which is Σ width²/12 for c = d

However small ΔW is: E is the rounding of W, which merging nothing would have too, and is independent of ΔW. A number
changes its code with probability |Δu| / width, rarely but then by much, so that ΔW survives on average, as under
dither: ⟨kept, ΔW⟩ = ‖ΔW‖², and cos(kept, ΔW) = ‖ΔW‖ / √(‖ΔW‖² + ‖E‖²).

**y.** The error of y = x Wᵀ is x Eᵀ. If the numbers of E are independent, in the mean over rows x

    rms(x Eᵀ)² = Σ_i ⟨x_i²⟩ ‖E_·i‖² / out         which is ⟨‖x‖²⟩ ‖E‖² / (in · out) where all columns are alike

But what is lost of ΔW is not independent of ΔW, and a trained ΔW reads what x has most of. With the share κ that is
kept,

    kept = κ ΔW + N         κ = ⟨kept, ΔW⟩ / ‖ΔW‖²          E = N - (1 - κ) ΔW
    rms(x Eᵀ)² = (1 - κ)² rms(x ΔWᵀ)² + Σ_i ⟨x_i²⟩ ‖N_·i‖² / out        ‖N_·i‖² = ‖E_·i‖² - (1 - κ)² ‖ΔW_·i‖²
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .base import Cells, Quantized, parts

NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)  # of the mean over a cell
TINY = 1e-300
OF_ZEROS = np.float32(1e-30)
LARGEST = 1 - 1e-6  # of the scale, as float32 has it
MEDIAN = 0.67449  # of |x| for a normal x of standard deviation 1
FAR = 3  # standard deviations: what lies farther out is of a wider distribution
ON_THE_GRID = 0.1  # of the error of rounding: a smaller one is that of the scales


@dataclass(frozen=True, eq=False)
class Kept:
    """What of ΔW is kept, of one matrix or, by together(), of several."""

    numbers: int  # of ΔW
    moved: float  # of them, how many change their code
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
        """The share of the numbers of ΔW that change their code."""
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
        """κ = ⟨kept, ΔW⟩ / ‖ΔW‖², how much of ΔW is kept: kept = κ ΔW + N, and N knows nothing of ΔW. NaN for 0."""
        return self.along / self.delta if self.delta else math.nan

    def error_of_y(self, n_out: int, x: np.ndarray, of_delta: float) -> float:
        """rms(x Eᵀ) for rms(x ΔWᵀ) = of_delta and the mean square x (in,) of each entry of x."""
        lost = 1 - self.share
        noise = np.maximum(0, self.errors - lost**2 * self.deltas)
        return math.sqrt((lost * of_delta) ** 2 + float(x @ noise) / n_out)


def together(those: Iterable[Kept]) -> Kept:
    """What is kept of several matrices: the sums."""
    each = [(k.numbers, k.moved, k.along, k.delta, k.error) for k in those]
    numbers, moved, along, delta, error = (sum(column) for column in zip(*each, strict=True))
    return Kept(int(numbers), moved, along, np.array([delta]), np.array([error]))


def foretell(W: np.ndarray, delta: np.ndarray, format: type[Quantized]) -> Kept:
    """What is kept of ΔW (out, in) when W (out, in) + ΔW is held in `format`, from its grid alone."""
    law = base_on_the_grid if on_the_grid(W, format) else base_off_the_grid
    (a, _), (b, held) = scales(W, format), scales(W + delta, format)
    moved, along, errors = 0.0, 0.0, np.zeros(W.shape[1])
    for rows in parts(W):
        found = law(W[rows].astype(float), delta[rows].astype(float), a[rows], b[rows], held[rows], format)
        moved, along, errors = moved + found[0], along + found[1], errors + found[2]
    return Kept(W.size, moved, along, columns(delta), errors)


def measure(W: np.ndarray, delta: np.ndarray, format: type[Quantized]) -> Kept:
    """What is kept of ΔW (out, in), by rounding W + ΔW."""
    before, after = format.of(W), format.of(W + delta)
    kept = after.dense() - W
    moved = int((after.codes() != before.codes()).sum())
    along = float(np.einsum("oi,oi->", kept, delta, dtype=float))
    return Kept(W.size, moved, along, columns(delta), columns(kept - delta))


def on_the_grid(W: np.ndarray, format: type[Quantized]) -> bool:
    """Whether W is what the format holds of it, up to the rounding of scales."""
    (a, held), distance, width = scales(W, format), 0.0, 0.0
    for rows in parts(W):
        level, low, high = inner(W[rows] / a[rows], format)
        distance += columns(W[rows] - level * held[rows]).sum()
        width += columns((high - low) * a[rows]).sum()
    return bool(distance <= ON_THE_GRID**2 * width / 12)


def base_on_the_grid(
    W: np.ndarray, delta: np.ndarray, a: np.ndarray, b: np.ndarray, held: np.ndarray, format: type[Quantized]
) -> tuple[float, float, np.ndarray]:
    """How many numbers move, ⟨kept, ΔW⟩, and ‖E‖² of each column. The scale was a, is b, and is held as `held`."""
    level, low, high = format.cells(W / a)
    u, start = (W + delta) / b, level * held
    t = W + delta - start
    moved = (u < low) | (u > high)
    along, error = delta * (delta - t), t**2  # as if all stayed
    u, b, held, start, spread, W, delta = (
        np.broadcast_to(x, W.shape)[moved] for x in (u, b, held, start, deviations(t, delta != 0), W, delta)
    )
    level, e, error[moved] = over_cells(u, b, held, start, spread, format)
    along[moved] = delta**2 + (level - W) * e - error[moved]  # x - W is ΔW there
    return float(moved.sum()), float(along.sum()), error.sum(axis=0)


def base_off_the_grid(
    W: np.ndarray, delta: np.ndarray, a: np.ndarray, b: np.ndarray, held: np.ndarray, format: type[Quantized]
) -> tuple[float, float, np.ndarray]:
    """The same where W lies anywhere in its cells."""
    new = W + delta
    _, low, high = inner(W / a, format)
    moved = np.minimum(1, abs(new / b - W / a) / np.maximum(high - low, TINY))
    _, _, error = over_cells(new / b, b, held, np.zeros(()), deviations(new, new != 0), format)
    return float(moved.sum()), float(np.vdot(delta, delta)), error.sum(axis=0)


def over_cells(
    u: np.ndarray, a: np.ndarray, held: np.ndarray, start: np.ndarray, spread: np.ndarray, format: type[Quantized]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """â · level of the cells in which u lie, and the means over each cell of e = â · level - x and of e², for an x that
    is normal about `start` with a standard deviation of `spread`."""
    level, low, high = inner(u, format)
    level, low, high = held * level, a * low, a * high
    middle, half, densest = (low + high) / 2, (high - low) / 2, np.clip(start, low, high)
    spread = np.maximum(spread, abs(densest - start) / FAR)
    total = np.full(level.shape, TINY)  # all of it where it is densest, where that is too narrow for the nodes
    first, second = TINY * (level - densest), TINY * (level - densest) ** 2
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        x = middle + node * half
        e = level - x
        density = weight * np.exp((densest - x) * (densest + x - 2 * start) / np.maximum(2 * spread**2, TINY))
        total += density
        first += density * e
        second += density * e**2
    return level, first / total, second / total


def inner(u: np.ndarray, format: type[Quantized]) -> Cells:
    """The cells of u, of which those at the ends of a scale go as far as ±1: the largest number, which is exact."""
    level, low, high = format.cells(u)
    largest = abs(u) >= LARGEST
    return Cells(
        level,
        np.where(np.isinf(low) | (np.isinf(high) & largest), level, low),
        np.where(np.isinf(high) | (np.isinf(low) & largest), level, high),
    )


def deviations(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(out, 1): the standard deviation of most of each row, by its median. A few numbers of a real one are huge."""
    size = np.sort(np.where(where, abs(x), np.inf), axis=1)
    middle = where.sum(axis=1, keepdims=True) // 2
    return np.where(where.any(axis=1, keepdims=True), np.take_along_axis(size, middle, axis=1), 0) / MEDIAN


def scales(W: np.ndarray, format: type[Quantized]) -> tuple[np.ndarray, np.ndarray]:
    """format.scales_of(), (out, in); a is OF_ZEROS for numbers that are all 0: their cells have hardly any width."""
    a, held = format.scales_of(W)
    return np.broadcast_to(np.where(a == 0, OF_ZEROS, a), W.shape), np.broadcast_to(held, W.shape)


def columns(x: np.ndarray) -> np.ndarray:
    """(in,) ‖x‖² of each column, float64."""
    return np.einsum("oi,oi->i", x, x, dtype=float)
