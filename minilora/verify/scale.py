"""Is one tensor a multiple of another, and is the multiple a product of the problem's constants, such as alpha/r?"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..backend import Array

SAME = 1e-7  # two tensors closer than this, relatively and on every case, are the same
POWERS = (-2, -1, -0.5, 0.5, 1, 2)
CONSTANTS = (1, 2, 0.5, 3, 4, 0.25)
EQUAL = 1e-8  # two logarithms of factors


def proportion(mine: Array, true: Array) -> float | None:
    """c with mine = c · true, if there is one."""
    if mine.shape != true.shape or not np.all(np.isfinite(mine)) or not np.any(true):
        return None
    c = float((mine * true).sum() / (true * true).sum())
    off = float(np.linalg.norm(mine - c * true))
    return c if off <= SAME * max(float(np.linalg.norm(mine)), 1e-12 * float(np.linalg.norm(true))) else None


def readings(factors: Sequence[float], sizes: Sequence[Mapping[str, float]]) -> list[str]:
    """`factors`, one for each case, as a constant times powers of at most three sizes: ["alpha/r"].

    If products of more sizes fit every case as well, they follow: ["2", "alpha/r"]. [] if nothing fits, if two products
    of as many sizes do, or if too many do. From fewer than three cases only CONSTANTS are read.
    """
    if all(abs(c) < 1e-12 for c in factors):
        return ["0"]
    if any(c == 0 for c in factors) or len({math.copysign(1, c) for c in factors}) > 1:
        return []
    sign = math.copysign(1, factors[0])
    names = list(dict.fromkeys(name for size in sizes for name in size if all(name in other for other in sizes)))
    logs = np.log(np.abs(factors))
    columns = np.array([[math.log(size[name]) for size in sizes] for name in names]).reshape(len(names), len(sizes))
    if len(sizes) > 2 and np.ptp(logs) < EQUAL and constant_of(logs) is None:  # 1.1 in every case
        others = same_products(sign, logs, names, columns, 0)
        return [] if len(others) > 3 else [written(factors[0], {}), *others]
    for used in range(min(3, len(names)) + 1 if len(sizes) > 2 else 1):
        exponents = exponents_of(len(names), used)
        rests = logs - exponents @ columns
        found = {
            written(sign * constant, dict(zip(names, exponents[i], strict=True))): constant
            for i in np.flatnonzero(np.ptp(rests, axis=1) < EQUAL)
            if (constant := constant_of(rests[i])) is not None
        }
        if found:
            plain = [word for word, constant in found.items() if constant == 1] or list(found)
            others = [] if plain in (["1"], ["-1"]) else same_products(sign, logs, names, columns, used)
            return [] if len(plain) > 1 or len(others) > 3 else [*plain, *others]
    return []


def constant_of(logs: Array) -> float | None:
    """The one of CONSTANTS whose logarithm all of these are; None if there is none."""
    return next((c for c in CONSTANTS if np.all(np.abs(logs - math.log(c)) < EQUAL)), None)


def same_products(sign: float, logs: Array, names: list[str], columns: Array, above: int) -> list[str]:
    """The powers of one size, and the products and ratios of two, that have these logarithms and use more than `above`
    sizes."""
    found = []
    for used in range(above + 1, 3):
        exponents = exponents_of(len(names), used)
        plain = np.all(np.isin(exponents, (-1, 0, 1)), axis=1) if used == 2 else True
        fits = plain & np.all(np.abs(exponents @ columns - logs) < EQUAL, axis=1)
        found += [written(sign, dict(zip(names, row, strict=True))) for row in exponents[fits]]
    return sorted(found, key=lambda word: "shape[" in word)  # what has a name first


@functools.cache
def exponents_of(names: int, used: int) -> Array:
    """Every choice of `used` sizes and their powers, a row each."""
    if used == 0:
        return np.zeros((1, names))
    rows = []
    for chosen in itertools.combinations(range(names), used):
        powers = np.array(list(itertools.product(POWERS, repeat=used)))
        rows.append(np.zeros((len(powers), names)))
        rows[-1][:, chosen] = powers
    return np.concatenate(rows) if rows else np.zeros((0, names))


def written(constant: float, powers: Mapping[str, float]) -> str:
    """2, {"alpha": 1, "r": -1} -> "2 alpha/r" """
    above = [power_of(name, power) for name, power in powers.items() if power > 0]
    below = [power_of(name, -power) for name, power in powers.items() if power < 0]
    sign, size = "-" if constant < 0 else "", abs(constant)
    if size != 1 or not above:
        above.insert(0, f"{size:.7g}")
    return sign + " ".join(above) + (f"/{below[0]}" if len(below) == 1 else f"/({' '.join(below)})" if below else "")


def power_of(name: str, power: float) -> str:
    name = f"({name})" if "-" in name or " " in name else name
    return {1: name, 2: f"{name}²", 0.5: f"√{name}"}[power]
