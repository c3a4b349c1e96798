"""The slopes of a scalar L along given directions: central differences, the complex step, and how far each may be off.

    central difference      D = (8 δ(t) - δ(2t)) / 12t  =  g·u  + O(t⁴) + rounding/t        δ(t) = L(x + tu) - L(x - tu)
    complex step            Im L(x + ihu) / h           =  g·u  + O(h²): h = 1e-30 rounds nothing away

(Squire, Trapp, 1998, for the second, which needs an f that is analytic and takes complex arrays.)

The uncertainty of D is measured at the same four points, with β(t) = L(x + tu) - 2 L(x) + L(x - tu):

    jump        (4 β(t) - β(2t)) / 2t       the slope to the right of x less that to its left, extrapolated to t = 0
    bend        (δ(2t) - 2 δ(t)) / 12t      the error of the plain δ(t) / 2t, which D takes away
    rounding    100 η (size of L + |D| · size of x) / t         η = 2e-16

    uncertainty = |jump| + 4 |bend| + rounding                  of each direction

Where L is smooth the jump is O(t³), the bend O(t²), and D better than both. Where the second derivative jumps, as in
squared ReLU, Huber and ELU, D is off by O(t): for L = as + c max(s - s₀, 0)² along u, by c (4t² - 12 s₀t + 7 s₀²) / 12t
if 0 ≤ s₀ ≤ t. The jump misses that at s₀ = 0, but 2 bend = c (4t² - 2 s₀²) / 12t is never less. At a kink the jump is
the same at every t, and under rounding it grows with 1/t. So t is divided by 4 until D is sure to 1e-7, or as long as
rounding allows; if that was no use, it is multiplied by 4, and the bend is D(t) - D(t/4) where that is less: O(t⁴)
where L is smooth, and three quarters of the error where f'' jumps. (After Ridders, 1982, who extrapolates over many.)

Inside f more may be rounded off than the size of L shows: 1 - p of a confident softmax, x - mean beside an offset. Two
methods that disagree are therefore compared again at a few points near x. A mistake is nearly the same there; rounding
is not, and three times the range of the differences counts as uncertainty. (The same idea as in Moré, Wild, Estimating
computational noise, 2011.)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array

STEP = 2e-5  # the first t, for inputs of size 1: the bend is then near 1e-10, and rounding mostly below 1e-7
ROUNDING = 100 * sys.float_info.epsilon  # of a scalar L, relative to the size of its terms, with room to spare
SURE = 1e-7  # a central difference that is as sure as this, relatively, is sure enough
TOLERANCE = {"central": 1e-8, "complex": 1e-11, "torch": 1e-11}
NEAR = 0.1  # how far from x D is measured again, in steps t: so near that hardly a new kink comes within 2t
SHORTER = (0.9, 0.8, 0.7, 0.6)  # times t: the steps there; with one step an L of few digits is rounded alike
HIDES = 1e-4  # a relative uncertainty above this hides a mistake of 1e-3


class Slopes(NamedTuple):
    values: np.ndarray  # D, one for each direction
    uncertainty: np.ndarray  # how far each of them may be off
    rounding: float  # the part of it that is due to rounding
    jump: np.ndarray
    t: float

    @property
    def worst(self) -> float:
        return float(self.uncertainty.max())

    @property
    def unexplained(self) -> float:
        """The part of the worst uncertainty that is not due to rounding."""
        return self.worst - self.rounding

    @property
    def relative(self) -> float:
        size = rms(self.values)
        return self.worst / size if size > 0 else math.inf

    @property
    def sure(self) -> bool:
        return self.relative <= SURE

    @property
    def blind(self) -> bool:
        return self.relative > HIDES

    def contradicts(self, other: Slopes) -> bool:
        return bool(np.abs(self.values - other.values).max() > self.worst + other.worst)

    def jumps_as(self, other: Slopes) -> bool:
        """Whether both have the same jump, one that rounding does not explain and that makes both useless: a kink."""
        i = np.abs(self.jump).argmax()
        if not all(s.unexplained > max(10 * s.rounding, HIDES * rms(s.values)) for s in (self, other)):
            return False
        with np.errstate(invalid="ignore"):
            return bool(np.abs(self.jump - other.jump)[i] < 0.3 * np.abs(self.jump)[i])


def central_differences(
    name: str, L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, size: float, unit: float = 1.0
) -> Slopes:
    """dL/ds along x + s u for each u, by the step with the least uncertainty.

    `size` is the size of the terms of L. Where L is the same at all points, rounding is relative to `unit` instead.
    Raises ValueError for a kink, or where L is not finite on both sides of x.
    """
    here, width = float(L(x)), max(1.0, rms(x))

    def measured(t: float, quarter: Slopes | None = None) -> Slopes:
        with np.errstate(all="ignore"):
            back2, back, forward, forward2 = points = stencil(L, x, us, t)
            near, far = forward - back, forward2 - back2
            D, bend = (8 * near - far) / (12 * t), (far - 2 * near) / (12 * t)
            jump = (4 * (forward + back - 2 * here) - (forward2 + back2 - 2 * here)) / (2 * t)
            rounding = ROUNDING * (max(size, np.abs(points).max()) + rms(D) * rms(x)) / t
            odd = np.abs(bend) if quarter is None else np.minimum(np.abs(bend), np.abs(D - quarter.values))
            flat = np.all(points == here, axis=0) * ROUNDING * unit / t
            unsure = np.abs(jump) + 4 * odd + rounding + flat
        return Slopes(D, np.where(np.isfinite(unsure), unsure, math.inf), float(rounding), jump, t)

    tried = [measured(STEP * width)]
    first = best = tried[0]
    t = first.t / 4
    while not best.sure and t > 1e-12 * first.t and ROUNDING * size / t < best.worst:
        tried.append(measured(t))
        if tried[-1].relative < best.relative or tried[-1].contradicts(best):
            best = tried[-1]
        t /= 4
    while not best.sure and first.t <= best.t < width:
        found = measured(4 * best.t, best)
        if found.relative >= best.relative or found.worst >= best.worst:
            break
        best = found
    if math.isinf(best.worst):
        raise ValueError(f"f is not finite on both sides of these inputs, in {name}: move them into its domain")
    alike = [a.jumps_as(b) for a, b in pairwise(tried)]
    if best.blind and any(map(all, pairwise(alike))):  # three steps: under rounding two may agree
        raise ValueError(f"f has a kink (ReLU, max, |x|) at these inputs, in {name}: move them a little")
    return best


def complex_steps(L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, central: Slopes) -> np.ndarray | None:
    """dL/ds along x + s u for each u; None where f is not analytic, as it contradicts the central difference."""
    steps = imaginary(L, x, us)
    if not np.all(np.isfinite(steps)):
        return None
    off = steps - central.values
    limits = central.uncertainty + SURE * rms(steps)
    if central.blind or np.all(np.abs(off) <= limits):
        return steps
    again = (
        imaginary(L, near, us) - difference(L, near, us, shorter * central.t)
        for near, shorter in zip(nearby(x, [NEAR * central.t] * len(SHORTER)), SHORTER, strict=True)
    )
    return steps if np.all(np.abs(off) <= limits + scatter([off, *again])) else None


def stencil(L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, t: float) -> np.ndarray:
    """L at x - 2tu, x - tu, x + tu and x + 2tu, for each u; NaN outside of its domain."""
    return np.array([[value(L, x + s * t * u) for u in us] for s in (-2, -1, 1, 2)]).real


def difference(L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, t: float) -> np.ndarray:
    """D for each u."""
    with np.errstate(all="ignore"):
        back2, back, forward, forward2 = stencil(L, x, us, t)
        return (8 * (forward - back) - (forward2 - back2)) / (12 * t)


def imaginary(L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray) -> np.ndarray:
    """The complex step for each u."""
    with np.errstate(all="ignore"):
        return np.array([value(L, x + 1e-30j * u) / 1e-30 for u in us]).imag


def value(L: Callable[[Array], Array], x: np.ndarray) -> complex:
    try:
        return complex(L(x))
    except (ArithmeticError, ValueError):  # outside of its domain, as math.log says it
        return complex(math.nan, math.nan)


def nearby(x: np.ndarray, shifts: Iterable[Any]) -> Iterator[np.ndarray]:
    """x, moved at random by at most each of the shifts."""
    rng = np.random.default_rng(0)
    return (x + shift * rng.uniform(-1, 1, x.shape) for shift in shifts)


def scatter(found: list[np.ndarray]) -> np.ndarray:
    """How far apart rounding may put two methods: three times the range of their differences, at x and near it."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(3 * np.ptp(found, axis=0), nan=math.inf, posinf=math.inf)


def rms(a: np.ndarray) -> float:
    """The root mean square, without underflow in the squares."""
    peak = float(np.abs(a).max())
    return peak * math.sqrt(float(((a / peak) ** 2).mean())) if peak else 0.0
