"""One row of a check: is the gradient of one tensor the slope of L? check.py says how it is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from .differences import (
    HIDES,
    NEAR,
    ROUNDING,
    SHORTER,
    TOLERANCE,
    central_differences,
    complex_steps,
    difference,
    imaginary,
    rms,
    scatter,
)
from .report import Row

EXACT = 1e-6  # of a gradient: the most that rounding explains in the complex step and PyTorch, unless it is measured
MOST = {"central": 1e-3, "complex": 1e-6}  # of a gradient: the most that rounding measured near x explains
FAR = (0.003, 0.01, 0.03, 0.1)  # how far from x the complex step is compared again, relative to x
NOTHING = 1e-14  # of the size of L / x: what rounding leaves of a gradient that is zero
FAINT = 1e-3  # of the rms of a gradient: errors of smaller entries are relative to this
SMALL = 24  # a tensor of at most so many numbers is checked entry by entry


class How(NamedTuple):
    """The settings of one check, and the size of its scalar L, a sum of terms dy ∘ y."""

    rng: np.random.Generator
    directions: int
    why_not: str | None  # why no complex step is taken; None if one is
    size: float  # Σ |dy ∘ y|
    unit: float  # Σ |dy|: the size of a gradient where y changes as much as x
    small: int = SMALL


class Point(NamedTuple):
    """One tensor: L, which keeps all others as they are, its value x, and the gradient g under test."""

    L: Callable[[Array], Array]
    x: np.ndarray
    g: np.ndarray


class Method(NamedTuple):
    values: np.ndarray  # the slope of L along each direction
    uncertainty: np.ndarray
    shifts: list[Any]  # how far from x it is compared again
    again: Callable[[Point, float], np.ndarray]  # the slopes at another point, with the step times a number


def check_tensor(
    name: str,
    here: Point,
    how: How,
    zero: bool,
    torch: np.ndarray | None = None,
    near: Callable[[Iterable[Any]], Iterable[Point]] = lambda shifts: (),
) -> Row:
    """One row: is the gradient `here` that of L? `torch` is PyTorch's; `near(shifts)` are points that far off."""
    L, x, g = here
    row = Row(name, x.shape, {})
    if g.shape != x.shape:
        row.note = f"wrong shape {g.shape}: it must be that of {name}, {x.shape}"
        return row
    if not np.all(np.isfinite(g)):
        row.note = "wrong: not a finite number"
        return row
    entries = x.size <= how.small
    us = np.eye(x.size).reshape(-1, *x.shape) if entries else how.rng.standard_normal((how.directions, *x.shape))
    central = central_differences(name, L, x, us, how.size, how.unit)
    steps = complex_steps(L, x, us, central) if how.why_not is None else None
    why_not = "f is not analytic" if how.why_not is None and steps is None else how.why_not
    true = central.values if steps is None else steps
    width = max(1.0, rms(x))
    terms = how.size / width  # of a gradient: the size that they may have before they cancel
    nothing = NOTHING * terms
    hidden = central.worst if steps is None else nothing

    # Is there a gradient at all, and can it be seen?
    norm, slope = rms(g) * math.sqrt(g.size), float(np.abs(true).max())
    vanishes = norm <= max(nothing, central.worst) and slope <= hidden
    if hidden > HIDES * how.unit if vanishes else central.blind and steps is None and torch is None and not zero:
        raise ValueError(
            f"rounding hides the gradient of {name}: f is of size {how.size:.0e} here, and its slope {slope:.0e} "
            f"± {hidden:.0e}; take the constant out of f, or make it accept complex arrays"
        )
    if zero and not vanishes:
        row.note = f"wrong: named in zero, but its norm is {norm:.1e}, and f has a slope of {slope:.1e}"
        return row
    if vanishes and not zero:
        raise ValueError(
            f"the gradient of {name} is zero by every method, so any would pass: if it must be, say zero=[{name!r}]; "
            "if not, choose other inputs (a saturated sigmoid or softmax has none)"
        )
    if norm == 0 and not zero and slope > ROUNDING * how.unit:
        row.note = "wrong: zero everywhere"
        return row

    # What each method's error is relative to, and how far the method itself may be off
    scale = rms(g if norm else true) * (1 if entries else math.sqrt(g.size))
    if zero:
        row.note, scale = "zero, as it must be", terms or 1.0
    elif why_not:
        row.remark(f"no complex step: {why_not}")
    along = slopes(g, us)
    scales = np.maximum(np.abs(true), FAINT * scale) if entries and not zero else np.full(len(us), scale)
    exact = np.full(len(us), min(ROUNDING * (terms + scale * width), EXACT * scale))
    methods: dict[str, Method] = {}
    if central.blind and not zero:
        row.remark("no central difference: rounding hides it")
    else:
        t, unsure = central.t, central.uncertainty if entries else np.full(len(us), central.worst)
        unsure = np.maximum(unsure, 2 * np.abs(central.values - true))  # its error, where the complex step is believed
        methods["central"] = Method(
            central.values, unsure, [NEAR * t] * len(SHORTER), lambda p, shorter: difference(p.L, p.x, us, shorter * t)
        )
    if steps is not None:
        shifts = [NEAR * central.t + far * np.abs(x) for far in FAR]
        methods["complex"] = Method(steps, exact, shifts, lambda p, _: imaginary(p.L, p.x, us))

    # The errors
    seen = np.full(len(us), math.inf)  # the least mistake that is
    for kind, method in methods.items():
        off, unsure = np.abs(method.values - along), method.uncertainty
        beyond, most = float((off - TOLERANCE[kind] * scales - unsure).max()), MOST[kind] * max(how.unit, scale)
        if 0 < beyond <= most:
            unsure = unsure + np.minimum(rounding_between(method, here, near(method.shifts), us, how.unit), most)
        seen = np.minimum(seen, row.add(kind, off, scales, unsure))
    off = np.abs(true - along)
    if torch is not None:
        each = scales if entries else np.full(g.size, scale if zero else rms(g))
        off = np.abs(g - torch).reshape(-1)
        found = row.add("torch", off, each, np.full(g.size, exact[0] * each.max() / scale))
        seen = np.minimum(seen, found) if entries else seen
    if entries or torch is not None:
        worst = (off / scales).argmax() if entries else off.argmax()
        row.where = tuple(int(i) for i in np.unravel_index(worst, x.shape))
    # The entries in which even a mistake of 1e-3 would not be seen
    if entries and not zero:
        size, least = np.maximum(np.abs(true), np.abs(along)), FAINT * scale
        agree = (np.abs(true - along) <= HIDES * size) & (steps is not None)
        hidden = (seen > HIDES * size) & (size >= least) & ~agree
        small = (seen > HIDES * np.abs(true)) & (np.abs(true) < least) & (size > 0) & ~hidden
        row.hide(int(hidden.sum()), int(small.sum()), x.size)
    elif methods and how.small and not zero:
        faint = (g != 0) & np.all([HIDES * np.abs(u * g) <= least for u, least in zip(us, seen, strict=True)], axis=0)
        blind = bool(np.any(seen > HIDES * scale))
        row.hide(x.size * blind, int(faint.sum()) * (not blind), x.size)
    return row


def slopes(g: np.ndarray, us: np.ndarray) -> np.ndarray:
    return us.reshape(len(us), -1) @ g.reshape(-1)


def rounding_between(
    method: Method, here: Point, near: Iterable[Point], us: np.ndarray, unit: float
) -> np.ndarray | float:
    """How far apart rounding may put a method and g·u: by how much their difference varies between points near x. 0 if
    there are none."""
    points = [here, *near]
    if len(points) == 1:
        return 0.0
    with np.errstate(all="ignore"):
        found = np.array([method.again(point, shorter) for point, shorter in zip(points, (1, *SHORTER), strict=True)])
        mine = np.array([slopes(point.g, us) for point in points])
        off, size = found - mine, np.maximum(np.abs(found), np.abs(mine))
        changes = np.fmin(scatter(off), size[0] * scatter(off / size))  # a factor that is missing stays one
    stuck = np.ptp([point.g.reshape(-1) for point in points], axis=0) == 0
    stuck = (np.ptp(found, axis=0) == 0) | np.any(us.reshape(len(us), -1) * stuck, axis=1)
    return changes + ROUNDING * unit * stuck
