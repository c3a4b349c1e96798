"""Is one tensor a multiple of another, and is the multiple a product of the problem's constants, such as alpha/r?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ..backend import Array

SAME = 1e-7  # two tensors closer than this, relatively and on every case, are the same
POWERS = (-2, -1, -0.5, 0.5, 1, 2)
CONSTANTS = (1, 2, 0.5, 3, 4, 0.25)


def proportion(mine: Array, true: Array) -> float | None:
    """c with mine = c · true, if there is one."""
    if mine.shape != true.shape or not np.all(np.isfinite(mine)) or not np.any(true):
        return None
    c = float((mine * true).sum() / (true * true).sum())
    off = float(np.linalg.norm(mine - c * true))
    return c if off <= SAME * max(float(np.linalg.norm(mine)), 1e-12 * float(np.linalg.norm(true))) else None


def product(factors: Sequence[float], sizes: Sequence[dict[str, float]]) -> str:
    """`factors`, one for each case, as a constant times powers of at most three sizes: "alpha/r".

    "" if nothing fits, or if two products of as many sizes do; from fewer than three cases no size is read.
    """
    if all(abs(c) < 1e-12 for c in factors):
        return "0"
    if any(c == 0 for c in factors) or len({math.copysign(1, c) for c in factors}) > 1:
        return ""
    names = sorted(set.intersection(*(set(size) for size in sizes)))
    logs = np.log(np.abs(factors))
    columns = np.array([[math.log(size[name]) for size in sizes] for name in names]).reshape(len(names), len(sizes))
    for used in range(min(3, len(names)) + 1 if len(sizes) > 2 else 1):
        fits = set()
        for chosen in itertools.combinations(range(len(names)), used):
            for powers in itertools.product(POWERS, repeat=used):
                rest = logs - np.array(powers) @ columns[list(chosen)] if used else logs
                if np.ptp(rest) < 1e-8:
                    constant = next((k for k in CONSTANTS if abs(rest[0] - math.log(k)) < 1e-8), None)
                    if constant is not None:
                        fits.add(written(math.copysign(constant, factors[0]), [names[i] for i in chosen], powers))
        if fits:
            return fits.pop() if len(fits) == 1 else ""
    return ""


def written(constant: float, names: Sequence[str], powers: Sequence[float]) -> str:
    """2, ["alpha", "r"], [1, -1] -> "2 alpha/r" """
    above = [power_of(name, power) for name, power in zip(names, powers, strict=True) if power > 0]
    below = [power_of(name, -power) for name, power in zip(names, powers, strict=True) if power < 0]
    sign, size = "-" if constant < 0 else "", abs(constant)
    if size != 1 or not above:
        above.insert(0, f"{size:g}")
    return sign + " ".join(above) + (f"/{below[0]}" if len(below) == 1 else f"/({' '.join(below)})" if below else "")


def power_of(name: str, power: float) -> str:
    name = f"({name})" if "-" in name else name
    return {1: name, 2: f"{name}²", 0.5: f"√{name}"}[power]
