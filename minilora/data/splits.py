"""Stratified splits: rows to train on and rows to hold out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def stratified_split(labels: Sequence[Any], held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to hold out): of each label the fraction `held_out` is held out, and at least one row.

    Raises ValueError for a label with a single row.
    """
    y, rng = np.asarray(labels), np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        if len(rows) < 2:
            raise ValueError(f"the label '{label}' has one row alone: one to train on and one to hold out are needed")
        n = min(max(1, round(held_out * len(rows))), len(rows) - 1)
        test.append(rows[:n])
        train.append(rows[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def stratified_folds(labels: Sequence[Any], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified k-fold cross-validation: `folds` pairs (rows to train on, rows to test on).

    Each row is tested once, and each label is spread evenly over the folds. Raises ValueError for fewer than two folds,
    and for a label with fewer rows than folds.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds: at least 2 are needed")
    y, rng = np.asarray(labels), np.random.default_rng(seed)
    fold, assigned = np.empty(len(y), np.int64), 0
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        if len(rows) < folds:
            raise ValueError(
                f"the label '{label}' has {len(rows)} rows, fewer than the {folds} folds: give fewer folds"
            )
        fold[rows] = (assigned + np.arange(len(rows))) % folds
        assigned += len(rows)
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]
