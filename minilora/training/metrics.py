"""How good a classifier is: the confusion matrix, what is read off it, and a paired test of two classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(truth: np.ndarray, guess: np.ndarray, n: int) -> np.ndarray:
    """(n, n) int64: how often a text of label i was called j."""
    matrix = np.zeros((n, n), np.int64)
    np.add.at(matrix, (truth, guess), 1)
    return matrix


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """Of a confusion matrix M:

    accuracy = Σ Mᵢᵢ / Σ M      precisionᵢ = Mᵢᵢ / Σⱼ Mⱼᵢ      recallᵢ = Mᵢᵢ / Σⱼ Mᵢⱼ      F1ᵢ = 2 Mᵢᵢ / Σⱼ (Mᵢⱼ + Mⱼᵢ)

    0/0 is 0, as in scikit-learn: of a label that no one has or gets, nothing was found. macro_f1 is the mean of F1ᵢ.
    majority is the accuracy of always giving the label that most texts have.
    """
    right, truth, guess = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * right / np.maximum(truth + guess, 1)
    return {
        "accuracy": float(right.sum() / max(1, matrix.sum())),
        "majority": float(truth.max() / max(1, matrix.sum())),
        "precision": (right / np.maximum(guess, 1)).tolist(),
        "recall": (right / np.maximum(truth, 1)).tolist(),
        "f1": f1.tolist(),
        "support": truth.tolist(),
        "macro_f1": float(f1.mean()),
    }


def paired_test(differences: Sequence[float], train: int, test: int) -> dict[str, float]:
    """Is the mean of `differences`, one for each fold of a cross-validation, other than 0?

    t = d̄ / √((1/k + n_test/n_train) s²),  k - 1 degrees of freedom: the corrected resampled t-test of Nadeau and
    Bengio (2003), section 3.2. Training sets of k folds overlap, so that their results vary together, and 1/k alone,
    that of the plain t-test, calls far too many differences real. Returns mean, 95% interval (low, high), t and p
    (two-sided; 1 where all differences are 0). Raises ValueError for fewer than two differences.
    """
    t_distribution, k = student_t(), len(differences)
    if k < 2:
        raise ValueError(f"{k} differences: a test needs two folds or more")
    mean, variance = float(np.mean(differences)), float(np.var(differences, ddof=1))
    if min(differences) == max(differences):
        mean, variance = float(differences[0]), 0.0  # the mean of equal numbers can be rounded
    error = math.sqrt((1 / k + test / train) * variance)
    t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    reach, p = error * float(t_distribution.ppf(0.975, k - 1)), 2 * float(t_distribution.sf(abs(t), k - 1))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "t": t, "p": p}


def student_t() -> Any:
    """Student's t distribution. Raises ImportError with the line to run where SciPy is missing."""
    try:
        from scipy.stats import t
    except ImportError:
        raise ImportError("a t-test needs SciPy: pip install '.[models]' in the clone") from None
    return t
