"""The labels of records: their order, and their ids."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..spelling import did_you_mean
from .records import shortened


def label_names(labels: Iterable[str]) -> list[str]:
    """The different labels, in the order of a head's outputs: sorted as numbers if all are numbers, else as text.

    Warns of two that differ only in case or notation, such as 1 and 1.0. Raises ValueError for fewer than two.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"the only label is {', '.join(map(repr, names))}: a classifier needs two or more")
    alike: dict[Any, str] = {}
    for name in names:
        other = alike.setdefault(same_label(name), name)
        if other != name:
            warnings.warn(
                f"{other!r:.60} and {name!r:.60} are learned as two labels: write them alike if they are one",
                stacklevel=2,
            )
            break
    try:
        return sorted(names, key=as_number)
    except ValueError:
        return names


def same_label(label: str) -> Any:
    """A key that is equal for labels that may mean the same: 1 and 1.0, pos and Pos."""
    try:
        return as_number(label)
    except ValueError:
        return label.casefold()


def as_number(label: str) -> float:
    """The label as a float. Raises ValueError for one that is not a finite number."""
    number = float(label)
    if not math.isfinite(number):
        raise ValueError(f"{label!r} is not a finite number")
    return number


def label_ids(labels: Iterable[str], names: Sequence[str], source: str | Path) -> np.ndarray:
    """The index in `names` of each label, (N,) int64. Raises ValueError for a label that is not in `names`."""
    ids = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(labels) - set(ids))
    if unknown:
        known = shortened(", ".join(names))
        meant = did_you_mean(unknown[0], names).strip()
        raise ValueError(
            f"{source} has the label {unknown[0]!r:.80}, which training never saw: {known}{meant and '; '}{meant}"
        )
    return np.array([ids[label] for label in labels], np.int64)
