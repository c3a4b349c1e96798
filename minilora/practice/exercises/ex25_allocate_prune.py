"""25 · A rank for each layer; pruning

allocate shares out one budget of numbers among the layers of a model.
spectra[l] holds the singular values of the update ΔW of layer l, largest first
(a list of arrays, of different lengths). Each direction of layer l that is kept
costs costs[l] numbers, a row of A and a column of B. Return ranks, one whole
number for each layer: how many of its directions, from the first on, it keeps.

    ranks[0] · costs[0] + ranks[1] · costs[1] + ... ≤ budget

What is worth keeping is the sum of ‖ΔW‖² over all layers, in Frobenius' norm.
Choose greedily: at every step look at the next direction of each layer, and of
those that what is left of the budget can pay for take the one that keeps most
of that sum for each number that it costs; of equal ones that of the earlier
layer. Go on until none can be paid for. A direction that keeps nothing is never
taken, and a layer may end with rank 0.

prune makes a trained adapter fit a file. Stored at 4 bytes a number, A2 and B2
together may take at most n_bytes (what a file holds besides is not counted).
Return factors of the largest rank k that fits, at most min(r, out, in), whose
product is as near to B A as any matrix of rank k; k may be 0. Arrays stay
float64; only the product B2 A2 and its k are compared.

    A (r, in)    B (out, r)    A2 (k, in)    B2 (out, k)

By hand: spectra (4, 1) and (3, 2), costs 8 and 2, budget 12. The second layer's
3 keeps 9 for 2 numbers; then 4 keeps 16 for 8, and 2 as much for each number, 4
for 2: the earlier layer goes first, and 2 follows. 2 + 8 + 2 = 12 numbers are
spent: ranks 1 and 2. And A (2, 3), B (4, 2) at 60 bytes: one direction takes
(3 + 4) · 4 = 28, two take 56: k = 2.
"""

import numpy as np


def allocate(spectra, costs, budget):
    """Return ranks.

    >>> [int(rank) for rank in allocate([np.array([4.0, 1.0]), np.array([3.0, 2.0])], [8, 2], 12)]
    [1, 2]
    """
    ### BEGIN SOLUTION
    ranks = np.zeros(len(spectra), int)
    while True:
        gains = [
            sigma[rank] ** 2 / cost if rank < len(sigma) and cost <= budget else 0.0
            for sigma, rank, cost in zip(spectra, ranks, costs, strict=True)
        ]
        best = np.argmax(gains)
        if gains[best] == 0:
            return ranks
        ranks[best] += 1
        budget -= costs[best]
    ### END SOLUTION


def prune(A, B, n_bytes):
    """Return A2, B2.

    >>> A2, B2 = prune(np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]), np.ones((4, 2)), 60)
    >>> A2.shape, B2.shape
    ((2, 3), (4, 2))
    """
    ### BEGIN SOLUTION
    k = n_bytes // (4 * (A.shape[1] + len(B)))
    (Q_B, R_B), (Q_A, R_A) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    root = np.sqrt(sigma[:k])
    return root[:, None] * Vt[:k] @ Q_A.T, Q_B @ U[:, :k] * root
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Value
from .ex19_rank import best, product


def draw_allocate(rng, i):
    """Layers of different sizes and costs. In the fifth case two are alike, in the last the budget pays for all."""
    lengths = [(3, 5, 4), (9, 7, 8, 10, 6, 8), (8, 9, 6, 10, 7), (7, 9, 8, 10, 12, 9, 11), (3, 2, 3), (4, 5, 3, 6)][i]
    spectra = [np.sort(np.exp(rng.uniform(-1, 1, n)))[::-1] for n in lengths]
    costs = [int(cost) for cost in rng.choice(np.arange(20, 300), len(lengths), replace=False)]
    spectra[1] = (0.001 if i == 4 else 0.1) * spectra[1]
    budget = int(0.35 * sum(n * cost for n, cost in zip(lengths, costs, strict=True)))
    if i == 4:
        spectra[2], costs[2] = spectra[0].copy(), costs[0]
        budget = 3 * costs[0]
    if i == 5:  # all directions can be paid for
        for sigma in spectra[::2]:
            sigma[-2:] = 0
        budget *= 4
    return {"spectra": spectra, "costs": costs, "budget": budget}


# out, in, r, the rank that fits, and the share of one more direction that is left over
SHAPES = [
    (7, 11, 6, 4, 0.8),
    (9, 6, 5, 3, 0),
    (5, 8, 4, 0, 0.9),
    (8, 5, 3, 3, 9),
    (12, 7, 6, 1, 0.6),
    (6, 13, 5, 2, 0.3),
]


def draw_prune(rng, i):
    out, width_in, r, k, left = SHAPES[i]
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((out, r))
    A *= rng.permutation(np.linspace(0.4, 2, r))[:, None]
    return {"A": A, "B": B, "n_bytes": int(4 * (width_in + out) * (k + left))}


def in_order(spectra, costs, budget):
    """Every direction by what it keeps for a number, each taken if it can still be paid for."""
    every = [
        (-(s * s) / cost, layer, cost)
        for layer, (sigma, cost) in enumerate(zip(spectra, costs, strict=True))
        for s in sigma
        if s
    ]
    ranks = np.zeros(len(spectra), int)
    for _, layer, cost in sorted(every):
        if cost <= budget:
            ranks[layer] += 1
            budget -= cost
    return ranks


def fitting(A, B, n_bytes):
    return best(A, B, min(n_bytes // (4 * (A.shape[1] + len(B))), *B.shape, A.shape[1]))


ranks = Value(allocate, "ranks", truth=in_order, draw=draw_allocate)
pruned = Value(prune, "A2 B2", truth=fitting, draw=draw_prune, compared_as=product)


def greedy(spectra, costs, budget, gain=lambda s, cost, sigma: s**2 / cost, start=0, **changes):
    """The solution with something changed."""
    get = changes.get
    ranks = np.array([min(start, len(sigma)) for sigma in spectra])
    budget -= int(ranks @ costs)
    while True:
        can_pay = get("can_pay", lambda cost, budget: cost <= budget)
        gains = np.array(
            [
                gain(sigma[rank], cost, sigma) if rank < len(sigma) and can_pay(cost, budget) else -1.0
                for sigma, rank, cost in zip(spectra, ranks, costs, strict=True)
            ]
        )
        chosen = len(gains) - 1 - np.argmax(gains[::-1]) if get("last") else np.argmax(gains)
        if gains[chosen] < 0 or (gains[chosen] == 0 and not get("zeros")):
            return ranks
        if get("stops") and costs[chosen] > budget:
            return ranks
        ranks[chosen] += 1
        budget -= get("pays", lambda cost: cost)(costs[chosen])


@ranks.mistake(
    "{it} is one rank for all layers, as far as they have so many directions",
    "What does the last direction of the smallest update keep, compared with the next one of the largest?",
)
def one_rank(spectra, costs, budget):
    rank = next(
        r
        for r in range(budget + 2)
        if np.minimum(r, list(map(len, spectra))) @ costs > budget or r > max(map(len, spectra))
    )
    return np.minimum(rank - 1, list(map(len, spectra)))


@ranks.mistake(
    "{it} compares directions by what they keep, without what they cost",
    "Of two directions that keep the same, one costs ten times as much: which do you take?",
)
def cost_not_compared(spectra, costs, budget):
    return greedy(spectra, costs, budget, lambda s, cost, sigma: s)


@ranks.mistake(
    "{it} compares σ for each number, not what σ keeps of ‖ΔW‖²", "How does ‖ΔW‖² depend on the singular values?"
)
def not_squared(spectra, costs, budget):
    return greedy(spectra, costs, budget, lambda s, cost, sigma: s / cost)


@ranks.mistake(
    "{it} compares shares of each layer's own ‖ΔW‖², so that a tiny update counts as much as a large one",
    "Of which sum is as much as possible to be kept?",
)
def shares_of_each_layer(spectra, costs, budget):
    return greedy(spectra, costs, budget, lambda s, cost, sigma: s**2 / cost / np.sum(sigma**2))


@ranks.mistake(
    "{it} multiplies by the cost instead of dividing by it",
    "Should a direction that costs more be taken sooner or later?",
)
def cost_upside_down(spectra, costs, budget):
    return greedy(spectra, costs, budget, lambda s, cost, sigma: s**2 * cost)


@ranks.mistake("{it} gives every layer a direction before any is compared", "May a layer do without an adapter?")
def at_least_one(spectra, costs, budget):
    return greedy(spectra, costs, budget, start=1)


@ranks.mistake(
    "{it} exceeds the budget: the last direction was taken before it was known to fit",
    "What do these ranks cost together, and what is the budget?",
)
def budget_exceeded(spectra, costs, budget):
    return greedy(spectra, costs, budget, can_pay=lambda cost, budget: budget > 0)


@ranks.mistake(
    "{it} stops at the first direction that does not fit, although cheaper ones still would",
    "What is left of the budget in the end, and what does the cheapest direction cost?",
)
def stops_too_early(spectra, costs, budget):
    return greedy(spectra, costs, budget, can_pay=lambda cost, budget: True, stops=True)


@ranks.mistake(
    "{it} never spends the last of the budget: a direction that costs just what is left is refused",
    "May the cost be equal to the budget?",
)
def not_the_last(spectra, costs, budget):
    return greedy(spectra, costs, budget, can_pay=lambda cost, budget: cost < budget)


@ranks.mistake(
    "{it} spends what is left on directions whose singular value is 0", "What does a singular value of 0 keep?"
)
def zeros_taken(spectra, costs, budget):
    return greedy(spectra, costs, budget, zeros=True)


@ranks.mistake(
    "{it} takes the later layer's direction where two are worth the same", "Which comes first where two are equal?"
)
def later_layer_first(spectra, costs, budget):
    return greedy(spectra, costs, budget, last=True)


@ranks.mistake("{it} takes the budget for a number of directions: no cost is paid", "In what is the budget counted?")
def budget_of_directions(spectra, costs, budget):
    return greedy(spectra, costs, budget, can_pay=lambda cost, budget: budget >= 1, pays=lambda cost: 1)


@ranks.mistake(
    "{it} divides the budget in proportion to each layer's ‖ΔW‖², whatever the single directions keep",
    "How much do a layer's first direction and its last one keep?",
)
def in_proportion(spectra, costs, budget):
    sizes = np.array([np.sum(sigma**2) for sigma in spectra])
    share = (budget * sizes / sizes.sum() / costs).astype(int)
    return np.minimum(share, list(map(len, spectra)))


@ranks.mistake(
    "{it} fills one layer after the other, in the order in which they come",
    "Does the order of the layers say what their directions keep?",
)
def layer_by_layer(spectra, costs, budget):
    ranks = []
    for sigma, cost in zip(spectra, costs, strict=True):
        ranks.append(min(int(np.sum(sigma > 0)), budget // cost))
        budget -= ranks[-1] * cost
    return np.array(ranks)


def of_rank(A, B, k):
    return best(A, B, int(max(0, min(k, *B.shape, A.shape[1]))))


def direction(A, B):
    """Bytes."""
    return 4 * (A.shape[1] + len(B))


@pruned.mistake(
    "in {it} all r directions are kept: entries that are set to 0 take as many bytes as others",
    "How many entries does a matrix of these shapes have, whatever their values?",
)
def entries_pruned(A, B, n_bytes):
    sizes = np.sort(np.abs(np.r_[A.ravel(), B.ravel()]))[::-1]
    least = sizes[min(n_bytes // 4, len(sizes)) - 1]
    return np.where(np.abs(A) >= least, A, 0), np.where(np.abs(B) >= least, B, 0)


@pruned.mistake(
    "{it}: rows of A and columns of B are dropped, not singular directions: the first k are kept",
    "If A and B are replaced by M A and B M⁻¹, is B A the same? And what you keep of it?",
)
def first_rows(A, B, n_bytes):
    k = min(n_bytes // direction(A, B), len(A))
    return A[:k], B[:, :k]


@pruned.mistake(
    "{it}: rows of A and columns of B are dropped, not singular directions: the longest k are kept",
    "If A and B are replaced by M A and B M⁻¹, is B A the same? And what you keep of it?",
)
def longest_rows(A, B, n_bytes):
    kept = np.argsort(-np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0))[: n_bytes // direction(A, B)]
    return A[kept], B[:, kept]


@pruned.mistake("{it}: n_bytes is taken for a count of numbers", "How many bytes does one number take in the file?")
def bytes_for_numbers(A, B, n_bytes):
    return of_rank(A, B, 4 * n_bytes // direction(A, B))


@pruned.mistake("{it}: a number is counted as 8 bytes", "How many bytes does one number take in the file?")
def eight_bytes(A, B, n_bytes):
    return of_rank(A, B, n_bytes // (2 * direction(A, B)))


@pruned.mistake("{it}: a number is counted as 2 bytes", "How many bytes does one number take in the file?")
def two_bytes(A, B, n_bytes):
    return of_rank(A, B, n_bytes // (direction(A, B) // 2))


@pruned.mistake("{it}: only A's rows are counted, not B's columns", "Which two matrices are in the file?")
def only_A(A, B, n_bytes):
    return of_rank(A, B, n_bytes // (4 * A.shape[1]))


@pruned.mistake("{it}: only B's columns are counted, not A's rows", "Which two matrices are in the file?")
def only_B(A, B, n_bytes):
    return of_rank(A, B, n_bytes // (4 * len(B)))


@pruned.mistake(
    "{it}: a direction is counted as out · in numbers",
    "What is stored of one direction: a matrix, or a row and a column?",
)
def of_the_product(A, B, n_bytes):
    return of_rank(A, B, n_bytes // (4 * A.shape[1] * len(B)))


@pruned.mistake("{it}: k is rounded up, and the file is too large", "How many bytes do A2 and B2 take?")
def rounded_up(A, B, n_bytes):
    return of_rank(A, B, -(-n_bytes // direction(A, B)))


@pruned.mistake("{it}: k is rounded to the nearest, and the file may be too large", "How many bytes do A2 and B2 take?")
def rounded(A, B, n_bytes):
    return of_rank(A, B, round(n_bytes / direction(A, B)))


@pruned.mistake("{it}: a rank that fills the file to the last byte is refused", "May the bytes be equal to n_bytes?")
def not_the_last_byte(A, B, n_bytes):
    return of_rank(A, B, (n_bytes - 1) // direction(A, B))


@pruned.mistake("{it}: one direction is kept where not even one fits", "May k be 0?")
def never_zero(A, B, n_bytes):
    return of_rank(A, B, max(1, n_bytes // direction(A, B)))


EXERCISE = Exercise(
    title="A rank for each layer; pruning",
    kind="write",
    minutes=25,
    difficulty=3,
    needs=["19"],
    parts=[ranks, pruned],
    hints=(
        "What does one singular value contribute to ‖ΔW‖²? Put each layer's next direction beside what it costs, and "
        "do the statement's example with pencil and paper before you write the loop.",
        "Two things end a layer: it has no further direction, or the rest of the budget cannot pay for one. For prune, "
        "first find how many bytes one direction takes.",
    ),
    viva=[
        Viva(
            "Is the greedy choice the best one for the budget?",
            "Not always: it is a knapsack problem, and a costly direction may be left out for want of a few numbers. "
            "But until the first direction that does not fit, nothing of that cost keeps more.",
            "Yes, since the singular values are sorted, and Eckart and Young have shown it.",
        ),
        Viva(
            "Half of the entries of A and B are set to 0. What has become smaller?",
            "Neither the file, nor the products, nor the rank, unless zeros are stored and multiplied in another way. "
            "At equal numbers kept, dropping singular directions is nearer to ΔW.",
            "The adapter: it has half as many parameters.",
        ),
    ],
    asks=["D4", "I11", "D1"],
)
