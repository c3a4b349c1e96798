"""Scores of a classifier: the confusion matrix, accuracy, F1 and so on, and a paired test of two classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, n: int) -> np.ndarray:
    """(n, n) int64: M_ij rows with label i were predicted to have label j. Labels and predictions are (N,)."""
    matrix = np.zeros((n, n), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """The scores of a confusion matrix M, as JSON:

    accuracy = Σ Mᵢᵢ / Σ M      precisionᵢ = Mᵢᵢ / Σⱼ Mⱼᵢ      recallᵢ = Mᵢᵢ / Σⱼ Mᵢⱼ      F1ᵢ = 2 Mᵢᵢ / Σⱼ (Mᵢⱼ + Mⱼᵢ)

    0/0 is 0, as in scikit-learn. support is the number of rows of each label, macro_f1 the mean of F1ᵢ, majority the
    accuracy of always predicting the most frequent label.
    """
    correct, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * correct / np.maximum(support + predicted, 1)
    return {
        "accuracy": float(correct.sum() / max(1, matrix.sum())),
        "majority": float(support.max() / max(1, matrix.sum())),
        "precision": (correct / np.maximum(predicted, 1)).tolist(),
        "recall": (correct / np.maximum(support, 1)).tolist(),
        "f1": f1.tolist(),
        "support": support.tolist(),
        "macro_f1": float(f1.mean()),
    }


def paired_test(differences: Sequence[float], train: int, test: int) -> dict[str, float]:
    """The corrected resampled t-test of whether the mean of `differences`, one for each fold, is 0.

    t = d̄ / √((1/k + n_test/n_train) s²),  k - 1 degrees of freedom       Nadeau, Bengio (2003), section 3.2

    The training sets of k folds overlap, so that their results are correlated, and the plain t-test, with 1/k alone,
    finds far too many differences significant. Returns the mean, its 95% confidence interval (low, high), t and the
    two-sided p (1 where all differences are 0). Raises ValueError for fewer than two differences.
    """
    t_distribution, k = student_t(), len(differences)
    if k < 2:
        raise ValueError(f"{k} differences: a test needs two folds or more")
    mean, variance = float(np.mean(differences)), float(np.var(differences, ddof=1))
    if min(differences) == max(differences):
        mean, variance = float(differences[0]), 0.0  # the mean of equal numbers may be rounded
    error = math.sqrt((1 / k + test / train) * variance)
    t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    margin, p = error * float(t_distribution.ppf(0.975, k - 1)), 2 * float(t_distribution.sf(abs(t), k - 1))
    return {"mean": mean, "low": mean - margin, "high": mean + margin, "t": t, "p": p}


def student_t() -> Any:
    """SciPy's Student t distribution. Raises ImportError, with the command to run, without SciPy."""
    try:
        from scipy.stats import t
    except ImportError:
        raise ImportError("a t-test needs SciPy: pip install '.[models]' in the clone") from None
    return t
