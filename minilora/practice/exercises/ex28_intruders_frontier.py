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
    ### BEGIN SOLUTION
    return {"along": 0, "moved": 0, "new": 1, "strict": 0, "two": 2, "keeps_more": "full"}
    ### END SOLUTION


def intruders(W0, dW, k, eps):
    """Return how many of the first k left singular vectors of W0 + dW are like none of W0's.

    >>> intruders(np.diag([3.0, 2.0]), np.diag([0.0, 4.0]), 2, 0.5)
    0
    """
    ### BEGIN SOLUTION
    X, Y = (np.linalg.svd(W, full_matrices=False)[0] for W in (W0, W0 + dW))
    return int(np.sum(np.abs(X.T @ Y[:, :k]).max(axis=0) < eps))
    ### END SOLUTION


def frontier(runs):
    """Return table: the least old loss of each method at each level of learning.

    >>> frontier(np.array([[0, 0.1, 3, 1], [0, 0.2, 2, 5], [1, 0.4, 2.5, 4]]))
    array([[ 5.,  5.,  1.],
           [inf,  4.,  4.]])
    """
    ### BEGIN SOLUTION
    method, _, new, old = runs.T
    counts = (method == np.arange(method.max() + 1)[:, None, None]) & (new <= np.sort(new)[:, None])
    return np.where(counts, old, np.inf).min(axis=-1)
    ### END SOLUTION


### THE CHECK

from ...adapters import spectrum
from ..exercise import Exercise, Viva
from ..parts import Predicted, Value

# method (0 full, 1 LoRA of rank 1, α = 16), rate, bits per byte of new and old text after 60 steps; one seed. In two
# more, full at 0.0005 also forgot 0.1 bit less than LoRA at its best rate, at new losses 0.042 lower and 0.002 higher.
RECORDED = np.array(
    [
        (0, 0.0005, 2.723, 2.139),
        (0, 0.001, 2.627, 2.209),
        (0, 0.002, 2.572, 2.310),
        (0, 0.004, 2.588, 2.521),
        (0, 0.008, 2.721, 3.370),
        (1, 0.002, 2.871, 2.140),
        (1, 0.004, 2.797, 2.194),
        (1, 0.008, 2.736, 2.218),
        (1, 0.016, 2.746, 2.234),
        (1, 0.032, 3.763, 4.177),
        (1, 0.064, 4.571, 5.276),
    ]
)


def measured():
    """What is predicted, as it is."""
    W0, e, u = np.diag(np.arange(16.0, 0, -1)), np.eye(16), np.ones(16) / 4
    p, q = u * np.tile([1, -1], 8), u * np.tile([1, 1, -1, -1], 4)
    lora = 30.0 * np.outer(4 * u, u)
    full, one = least_old(RECORDED)[:, np.sort(RECORDED[:, 2]) == RECORDED[RECORDED[:, 0] == 1, 2].min()][:, 0]
    return {
        "along": count(W0, 100 * np.outer(e[0], e[0]), 4, 0.5),
        "moved": count(W0, 30 * np.outer(e[3], e[3]), 4, 0.5),
        "new": count(W0, lora, 4, 0.5),
        "strict": count(W0, lora, 4, 0.2),
        "two": count(W0, 100 * np.outer(u, u) + 90 * np.outer(p, p) + 80 * np.outer(q, q), 2, 0.5),
        "keeps_more": "full" if full < one else "lora",
    }


def count(W0, dW, k, eps):
    left, _ = spectrum.intruders(spectrum.svd(W0), spectrum.svd(W0 + dW), k, eps)
    return len(left)


def least_old(runs):
    """Along each method's runs by their new loss, the least old loss so far."""
    levels = np.sort(runs[:, 2])
    table = np.full((int(runs[:, 0].max()) + 1, len(runs)), np.inf)
    for i, row in enumerate(table):
        mine = runs[runs[:, 0] == i]
        mine = mine[np.argsort(mine[:, 2])]
        reached = np.searchsorted(mine[:, 2], levels, side="right")
        row[reached > 0] = np.minimum.accumulate(mine[:, 3])[reached[reached > 0] - 1]
    return table


predicted = Predicted(predictions, "along moved new strict two keeps_more", truth=measured)


@predicted.mistake(
    "{it}: the update is large, but along a direction that W₀ has: that makes no intruder",
    "What are y₁ and x₁?",
)
def large_is_new():
    return {**measured(), "along": 1}


@predicted.mistake("{it}: a direction that W₀ has moves to the front: it is still W₀'s", "Which of the xᵢ is y₁ like?")
def front_is_new():
    return {**measured(), "moved": 1}


@predicted.mistake(
    "{it}: each yⱼ is compared with the xⱼ of the same index, and all indices have changed",
    "Which of the xᵢ is y₂ like?",
)
def by_index_only():
    return {**measured(), "moved": 4}


@predicted.mistake(
    "{it} is what there would be for B A without its scale s",
    "How large is the singular value of s B A, compared with 16?",
)
def scale_left_out():
    return {**measured(), "new": 0}


@predicted.mistake(
    "{it}: every yⱼ has changed, but most are still near one of the xᵢ",
    "Of what rank is ΔW, and where does y₂ come from?",
)
def all_are_new():
    return {**measured(), "new": 4}


@predicted.mistake(
    "{it}: y₁ is like u, and its cosine with an axis is not below this eps", "What is the cosine of u and e₁?"
)
def eps_left_out():
    return {**measured(), "strict": 1}


@predicted.mistake("{it}: there are so many in all, but only the first k are counted", "Which yⱼ are looked at?")
def k_left_out():
    return {**measured(), "two": 3}


@predicted.mistake(
    "{it}: said at one point of each curve, where full fine-tuning has learned more",
    "What is full fine-tuning's old loss at a smaller rate, where it has learned no more than LoRA?",
)
def one_point_of_each_curve():
    return {**measured(), "keeps_more": "lora"}


# out, in, k of each case; in all but the second, W₀'s left singular vectors do not span everything, or its right ones
SHAPES = [(21, 20, 9), (24, 24, 10), (18, 26, 8), (31, 30, 12), (22, 34, 11), (27, 26, 7)]


def draw_intruders(rng, i):
    """Some new directions, two that W₀ has and ΔW makes large, and one of the output that W₀ never reaches."""
    out, width_in, k = SHAPES[i]
    W0 = rng.standard_normal((out, width_in))
    U, _, Vt = np.linalg.svd(W0)
    dW = 0.6 * rng.standard_normal((out, width_in)) + 25 * np.outer(U[:, 3], Vt[3]) + 30 * np.outer(U[:, -4], Vt[-4])
    for _ in range(2):
        dW += rng.uniform(0.6, 1.2) * np.outer(rng.standard_normal(out), rng.standard_normal(width_in))
    if out > width_in:
        dW += 45 * np.outer(U[:, -1], Vt[5])
    return {"W0": W0, "dW": dW, "k": k, "eps": round(float(rng.uniform(0.42, 0.62)), 3)}


found = Value(intruders, "count", truth=count, draw=draw_intruders)


def vectors(W):
    return np.linalg.svd(W, full_matrices=False)[0]


def cosines(W0, dW):
    return np.abs(vectors(W0).T @ vectors(W0 + dW))


@found.mistake(
    "{it}: right singular vectors are compared, directions of the input", "Which of the two have out numbers each?"
)
def right_vectors(W0, dW, k, eps):
    return intruders(W0.T, dW.T, k, eps)


@found.mistake(
    "{it}: yⱼ is compared with xⱼ alone, not with the one that it is most like",
    "What if ΔW makes the fifth direction of W₀ the first?",
)
def by_index(W0, dW, k, eps):
    return int(np.sum(np.diag(cosines(W0, dW))[:k] < eps))


@found.mistake(
    "{it}: a cosine near -1 is taken for unlike", "What is the decomposition if u and v both change their sign?"
)
def sign_counted(W0, dW, k, eps):
    return int(np.sum((vectors(W0).T @ vectors(W0 + dW)[:, :k]).max(axis=0) < eps))


@found.mistake("{it}: only the first k vectors of W₀ are looked at", "For which i must the cosine be below eps?")
def first_k_of_both(W0, dW, k, eps):
    return int(np.sum(cosines(W0, dW)[:k, :k].max(axis=0) < eps))


@found.mistake("{it}: it is ΔW that is decomposed, not W₀ + ΔW", "Which matrix does the tuned model multiply by?")
def vectors_of_the_update(W0, dW, k, eps):
    return int(np.sum(np.abs(vectors(W0).T @ vectors(dW)[:, :k]).max(axis=0) < eps))


@found.mistake("{it} counts the vectors that do resemble one of W₀'s", "Is an intruder like one of W₀'s vectors?")
def the_others(W0, dW, k, eps):
    return k - intruders(W0, dW, k, eps)


@found.mistake("{it}: all singular vectors are counted, not the first k", "Which yⱼ are looked at?")
def all_counted(W0, dW, k, eps):
    return intruders(W0, dW, min(W0.shape), eps)


@found.mistake(
    "{it}: W₀ is given out vectors, but it has only in of them: the rest complete the basis",
    "How many columns has U, and for how many of them is there a singular value?",
)
def complete_basis(W0, dW, k, eps):
    U = np.linalg.svd(W0)[0]
    return int(np.sum(np.abs(U.T @ vectors(W0 + dW)[:, :k]).max(axis=0) < eps))


@found.mistake(
    "{it} counts vectors of W₀ that none of the first k new ones is like",
    "Of which matrix are the vectors that are counted?",
)
def wrong_axis(W0, dW, k, eps):
    return int(np.sum(cosines(W0, dW)[:, :k].max(axis=1) < eps))


@found.mistake("{it}: rows of U are taken for its singular vectors", "Does U Σ Vᵀ multiply rows or columns of U by Σ?")
def rows_for_vectors(W0, dW, k, eps):
    n = min(W0.shape)
    return int(np.sum(np.abs(vectors(W0)[:n] @ vectors(W0 + dW)[:k].T).max(axis=0) < eps))


@found.mistake(
    "{it}: yⱼ is compared with all of W₀'s vectors together: the length of its part in their span",
    "Is the largest cosine asked for, or the root of the sum of their squares?",
)
def span(W0, dW, k, eps):
    return int(np.sum(np.linalg.norm(cosines(W0, dW)[:, :k], axis=0) < eps))


@found.mistake("{it}: the cosine is compared after it was squared", "Is |cos| < eps or cos² < eps asked for?")
def squared(W0, dW, k, eps):
    return intruders(W0, dW, k, np.sqrt(eps))


def draw_runs(rng, i):
    """Methods of different numbers of runs, in any order."""
    each = [(3, 2), (4, 3, 5), (5, 6), (2, 4, 3, 5), (6, 4, 5), (4, 5)][i]
    n = sum(each)
    method, new = np.repeat(np.arange(len(each)), each), 2 + rng.permutation(n) / n + 0.01 * rng.random(n)
    runs = np.column_stack([method, 0.001 * 2 ** rng.permutation(n), new, 1.5 + 2 * rng.random(n)])
    return {"runs": rng.permutation(runs)}


table = Value(frontier, "table", truth=least_old, draw=draw_runs)


def by_level(runs, entry, levels=None):
    """entry(new, old, level) for each method and level."""
    levels = np.sort(runs[:, 2]) if levels is None else levels
    mine = [runs[runs[:, 0] == i].T[2:] for i in range(int(runs[:, 0].max()) + 1)]
    return np.array([[entry(new, old, level) for level in levels] for new, old in mine])


def least(new, old, level):
    return np.min(old[new <= level], initial=np.inf)


@table.mistake(
    "{it} has one point of each method, the run that learned the most: the rest of its curve is not used",
    "Which other runs reach the level as well, and what did they forget?",
)
def one_point(runs):
    return by_level(runs, lambda new, old, level: old[new.argmin()] if new.min() <= level else np.inf)


@table.mistake(
    "{it} has for each method the run that learned the most, also at levels that it does not reach",
    "Which runs of a method have a new loss of at most the level?",
)
def one_point_everywhere(runs):
    return by_level(runs, lambda new, old, level: old[new.argmin()])


@table.mistake(
    "{it} has the run that just reaches the level, where another that learned more may have forgotten less",
    "Which runs have a new loss of at most the level, and which of them has the least old loss?",
)
def just_reaching(runs):
    return by_level(
        runs, lambda new, old, level: old[np.where(new <= level, new, -1).argmax()] if new.min() <= level else np.inf
    )


@table.mistake(
    "{it} compares runs that learned no more than the level, not those that learned as much",
    "Does a lower new loss mean that more was learned, or less?",
)
def learned_less(runs):
    return by_level(runs, lambda new, old, level: np.min(old[new >= level], initial=np.inf))


@table.mistake(
    "{it} leaves out the run that is just at the level", "Is a new loss of the level itself at most the level?"
)
def strictly_below(runs):
    return by_level(runs, lambda new, old, level: np.min(old[new < level], initial=np.inf))


@table.mistake(
    "{it} has the largest old loss of the runs that count", "Does a low old loss mean much or little forgetting?"
)
def most_forgotten(runs):
    return by_level(runs, lambda new, old, level: old[new <= level].max() if new.min() <= level else np.inf)


@table.mistake("{it} has 0 where a method does not reach a level", "Would 0 be read as forgetting nothing?")
def zero_for_none(runs):
    return by_level(runs, lambda new, old, level: least(new, old, level) if new.min() <= level else 0.0)


@table.mistake("{it} has NaN, not ∞, where a method does not reach a level", "What is the least of no losses?")
def nan_for_none(runs):
    return by_level(runs, lambda new, old, level: least(new, old, level) if new.min() <= level else np.nan)


@table.mistake("the levels of {it} are in the order of the runs", "To which new loss does the first column belong?")
def levels_unsorted(runs):
    return by_level(runs, least, runs[:, 2])


@table.mistake("the levels of {it} begin with the largest loss", "To which new loss does the first column belong?")
def levels_descending(runs):
    return by_level(runs, least, np.sort(runs[:, 2])[::-1])


@table.mistake(
    "{it}: the two losses are exchanged: the least new loss at each level of the old one",
    "Which loss says how much was learned, and which how much was forgotten?",
)
def losses_exchanged(runs):
    return least_old(runs[:, [0, 1, 3, 2]])


@table.mistake(
    "{it} does not look at the level: it is each method's least old loss",
    "Did that run learn as much as the level asks?",
)
def level_ignored(runs):
    return by_level(runs, lambda new, old, level: old.min())


@table.mistake(
    "{it} joins a method's runs by straight lines: losses of runs that nobody has made",
    "Is the entry the old loss of one of the runs?",
)
def interpolated(runs):
    def between(new, old, level):
        order = new.argsort()
        return np.interp(level, new[order], old[order]) if new.min() <= level else np.inf

    return by_level(runs, between)


EXERCISE = Exercise(
    title="Intruders and forgetting",
    kind="predict, then run",
    minutes=40,
    difficulty=3,
    needs=["19"],
    parts=[predicted, found, table],
    hints=(
        "For the predictions: which singular vectors has W₀, and which has W₀ + ΔW if ΔW is much the larger? Multiply "
        "out one cosine by hand.",
        "The table of all cosines has a row for each xᵢ and a column for each yⱼ: along which axis do you look for the "
        "best match? For frontier, mark for one level which runs count, and then look at their old losses.",
    ),
    viva=[
        Viva(
            "A report says: our LoRA has 3 intruder dimensions, full fine-tuning has none. What do you ask?",
            "At which k and eps, of which layers, with s in ΔW or without, at which rates, and how many a random "
            "ΔW of the same size has. Each of these changes the number.",
            "Nothing: fewer intruders mean that the method is better.",
        ),
        Viva(
            "W₀ is frozen. Why can a LoRA forget, and does it forget less than full fine-tuning?",
            "The model computes with W₀ + ΔW, and that has changed. At one rate for each it often forgets less and has "
            "learned less; compared at equal learning it can be either way, since the rate decides.",
            "It cannot forget, since the weights are frozen, and so it always forgets less.",
        ),
    ],
    asks=["D10", "I7", "I12"],
)
