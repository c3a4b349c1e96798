"""28 · Intruders and forgetting

An intruder is a direction of W₀ + ΔW that is like none of W₀'s (Shuttleworth et
al., 2024). W₀ and ΔW are (out, in), n = min(out, in). Let x₁ ... xₙ be the left
singular vectors of W₀ and y₁, y₂, ... those of W₀ + ΔW, in both that of the
largest singular value first. yⱼ is an intruder if |cos(xᵢ, yⱼ)| < eps for every
i from 1 to n. intruders returns how many of y₁ ... yₖ are (k ≤ n).

frontier compares methods at equal learning. runs (n, 4) has a run in each row:
method (0, 1, ..., m - 1), rate, new and old, which are the losses after it on
the task that it was trained on, and on another, known before. The lower the
better. Return table (m, n): column j stands for a level of learning, the j-th
smallest of all new losses, and row i for a method. The entry is the least old
loss among the runs of method i whose new loss is at most that level; ∞ where it
has no such run.

predictions comes first: type what you expect, then run the check, which
measures. W₀ = diag(16, 15, ..., 1); e₁, e₂, ... are the axes; u, p, q are
orthogonal, with entries of 1/4 and -1/4, those of u all 1/4. How many intruders
are there among y₁ ... y₄ at eps = 0.5, where nothing else is said?

    along     ΔW = 100 e₁ e₁ᵀ
    moved     ΔW = 30 e₄ e₄ᵀ
    new       a LoRA with B = 4 u, A = uᵀ, α = 30, r = 1
    strict    the same, at eps = 0.2
    two       ΔW = 100 u uᵀ + 90 p pᵀ + 80 q qᵀ, with k = 2

keeps_more is "full" or "lora". On the built-in model full fine-tuning and LoRA
of rank 1 were run at several rates each. At the one at which each learned the
most, full ended at new 2.572, old 2.310, LoRA at new 2.736, old 2.218. Among
all runs whose new loss is at most 2.736, whose least old loss is the lower?

By hand: W₀ = diag(3, 2), ΔW = diag(0, 4): y₁ = e₂ and y₂ = e₁, no intruder. And
of the runs of method 0 with (new, old) = (3, 1), (2, 5) and of method 1 with
(2.5, 4) the levels are 2, 2.5, 3: the rows are 5, 5, 1 and ∞, 4, 4.
"""

import numpy as np


def predictions():
    """Return along, moved, new, strict, two and keeps_more in a dict.

    >>> sorted(predictions())
    ['along', 'keeps_more', 'moved', 'new', 'strict', 'two']
    """
    raise NotImplementedError


def intruders(W0, dW, k, eps):
    """Return how many of the first k left singular vectors of W0 + dW are like none of W0's.

    >>> intruders(np.diag([3.0, 2.0]), np.diag([0.0, 4.0]), 2, 0.5)
    0
    """
    raise NotImplementedError


def frontier(runs):
    """Return table: the least old loss of each method at each level of learning.

    >>> frontier(np.array([[0, 0.1, 3, 1], [0, 0.2, 2, 5], [1, 0.4, 2.5, 4]]))
    array([[ 5.,  5.,  1.],
           [inf,  4.,  4.]])
    """
    raise NotImplementedError
