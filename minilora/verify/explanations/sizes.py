"""The numbers in a case of which a wrong scale may be a product, each with its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..case import Case


def sizes_of(cases: Sequence[Case]) -> list[dict[str, float]]:
    """{name: number} for each case: at most 12 numbers of which a wrong scale may be a product.

    In this order: the sizes that the case names, its constants, n - 1 for each length n that it names, the lengths of
    its axes, and the counts in its masks and labels. Numbers that are equal in every case share a name.
    """
    names: dict[tuple[float, ...], list[str]] = {}
    numbers = [numbers_of(case) for case in cases]
    for name in numbers[0]:
        values = tuple(of.get(name, 0) for of in numbers)
        if min(values) > 0 and set(values) != {1}:
            names.setdefault(values, []).append(name)
    named = [(values, alike(found)) for values, found in names.items()][:12]
    return [{name: values[i] for values, name in named} for i in range(len(cases))]


def alike(names: Sequence[str]) -> str:
    """One name for numbers that are equal in every case: "batch or tokens"."""
    given = [name for name in names if "shape[" not in name and not name.endswith("-1")] or list(names)
    return " or ".join(given)


def numbers_of(case: Case) -> dict[str, float]:
    numbers = dict(case.sizes)
    arrays = {name: np.asarray(value) for name, value in case.constants.items()}
    numbers |= {name: float(a) for name, a in arrays.items() if a.ndim == 0 and a.dtype.kind in "iuf"}
    lengths = {length for a in (case.dy, *case.inputs.values()) for length in np.shape(a)}
    numbers |= {f"{name}-1": size - 1 for name, size in case.sizes.items() if size in lengths}
    everything = {"dy": np.asarray(case.dy), **case.inputs, **{name: a for name, a in arrays.items() if a.ndim}}
    for name, a in everything.items():
        numbers |= {f"{name}.shape[{axis}]": float(length) for axis, length in enumerate(a.shape)}
    for name, a in arrays.items():
        if a.ndim and a.dtype.kind in "iu" and np.any(a < 0):
            numbers[f"the number of {name} ≥ 0"] = float((a >= 0).sum())
        elif a.ndim and a.dtype.kind in "bf" and not np.all(a):
            numbers[f"the number of {name} ≠ 0"] = float((a != 0).sum())
            numbers[f"the number of {name} = 0"] = float((a == 0).sum())
    return numbers
