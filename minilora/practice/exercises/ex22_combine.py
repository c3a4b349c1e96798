"""22 · Combine

Several adapters of one layer are to act at once, each with a weight, and the
result is to be an adapter again:

    combine(adapters, weights)      returns A, B with B A = Σᵢ wᵢ ΔWᵢ

    adapters   a list of (Aᵢ, Bᵢ, αᵢ), of which ΔWᵢ = sᵢ Bᵢ Aᵢ, sᵢ = αᵢ/rᵢ
    Aᵢ (rᵢ, in)    Bᵢ (out, rᵢ)    the ranks rᵢ may differ
    weights    (n,), a number wᵢ for each: also below zero, to subtract one,
               and of any sum
    A (R, in)      B (out, R)      the rank R is yours to choose

The result is used with scale 1, so that B A is all of its ΔW. It is exact, up
to rounding. A and B are not unique: only B A is compared.

The rank of such a sum is larger than it need be. Then

    compress(A, B, k)               returns A2, B2

    A2 (k, in)     B2 (out, k)     k ≤ R, k ≤ in, k ≤ out

where, of all matrices of rank k, B2 A2 is the one nearest to B A: the sum of
the squares of B A - B2 A2 is least. Only the product is compared here too.

Neither may form an (out, in) matrix: it would be as large as W itself.

One number by hand, with in = out = 1. The first adapter has A₁ = 2, B₁ = 3,
α₁ = 4: ΔW₁ = 4 · 6 = 24. The second has a column A₂ of 1, 1, a row B₂ of 5, 6,
α₂ = 3: ΔW₂ = 1.5 · 11 = 16.5. With weights 2 and -1, B A = 48 - 16.5 = 31.5.
And the best of rank 1 for B A = (3 0; 0 2) is (3 0; 0 0).
"""

import numpy as np


def combine(adapters, weights):
    """Return A, B.

    >>> first = np.array([[2.0]]), np.array([[3.0]]), 4.0
    >>> second = np.array([[1.0], [1.0]]), np.array([[5.0, 6.0]]), 3.0
    >>> A, B = combine([first, second], np.array([2.0, -1.0]))
    >>> (B @ A).round(6)
    array([[31.5]])
    """
    ### BEGIN SOLUTION
    A = np.concatenate([A for A, _, _ in adapters])
    B = np.concatenate([w * alpha / len(A) * B for w, (A, B, alpha) in zip(weights, adapters, strict=True)], axis=1)
    return A, B
    ### END SOLUTION


def compress(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = compress(np.array([[3.0, 0.0], [0.0, 2.0]]), np.eye(2), 1)
    >>> abs(B2 @ A2).round(6)
    array([[3., 0.],
           [0., 0.]])
    """
    ### BEGIN SOLUTION
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Vt[:k] @ Q_A.T, Q_B @ (U[:, :k] * sigma[:k])
    ### END SOLUTION


### THE CHECK


from ...adapters.lora import LoRALinear
from ...adapters.spectrum import lora_svd, truncate
from ...nn import Linear, Parameter
from ...verify.language import words
from ..measure import peak_bytes
from ..exercise import Exercise, Viva
from ..naming import described
from ..parts import Refused, Value

# out, in, ranks, signs of the weights of each case: first equal ranks and no sign, where most mistakes still compute
ADAPTERS = [
    (5, 4, (2, 2), (1, 1)),
    (4, 6, (3, 3, 3), (1, 1, 1)),
    (6, 5, (2, 3), (1, -1)),
    (3, 7, (2, 4, 1), (-1, 1, 1)),
    (7, 3, (2, 2), (-1, 1)),
    (5, 8, (3,), (-1,)),
]
# out, in, R, k of each case: once R is larger than the rank can be
FACTORS = [(6, 5, 4, 2), (5, 7, 3, 1), (6, 4, 5, 3), (8, 5, 4, 3), (7, 7, 5, 2), (5, 6, 3, 3)]


def draw(rng, i):
    n, m, ranks, signs = ADAPTERS[i]
    adapters = [
        (rng.standard_normal((r, m)), rng.standard_normal((n, r)), r + float(rng.uniform(1.5, 9))) for r in ranks
    ]
    return {"adapters": adapters, "weights": np.array(signs) * (0.3 + np.arange(len(ranks)) + rng.uniform(0, 0.5))}


def truth(adapters, weights):
    """The sum of the library's ΔW, behind an identity."""
    n, m = len(adapters[0][1]), adapters[0][0].shape[1]
    options = {"dropout": 0.0, "rslora": False}
    total = np.zeros((n, m))
    for w, (A, B, alpha) in zip(weights, adapters, strict=True):
        tensors = {"lora_A": A, "lora_B": B}
        total += w * LoRALinear.of(Linear(Parameter(0 * total)), tensors, r=len(A), alpha=alpha, **options).delta()
    return total, np.eye(n)


def draw_factors(rng, i):
    n, m, R, k = FACTORS[i]
    sizes = rng.permutation(1.0 + np.arange(R))[:, None]  # of the rows of A: the first ones are not the largest
    return {"A": sizes * rng.standard_normal((R, m)), "B": rng.standard_normal((n, R)), "k": k}


def nearest(A, B, k):
    return truncate(lora_svd(A, B, 1.0), k)[::-1]


def product(tensors):
    """B A, and the rank that A and B have room for."""
    (a, A), (b, B) = tensors.items()
    if not all(isinstance(M, np.ndarray) and M.ndim == 2 for M in (A, B)) or B.shape[1] != len(A):
        raise Refused("shape", words("{given}: there is no product {it}", given=described(tensors), it=f"{b} {a}"))
    return {f"{b} {a}": B @ A}


def product_and_rank(tensors):
    return {**product(tensors), "len(A2)": len(tensors["A2"])}


def takes_much(function, *arguments, n=250):
    """Does it take the memory of an (out, in) matrix?"""
    return peak_bytes(function, *arguments) > 8 * n * n / 2


def forms_the_sum(function, n=250):
    A, B = np.ones((1, n)), np.ones((n, 1))
    return takes_much(function, [(A, B, 2.0), (3 * A, B, 4.0)], np.array([0.5, -2.0]))


def forms_the_product(function, n=250):
    A = np.cos(np.outer([1.0, 2.0, 3.0], np.arange(n)))
    return takes_much(function, A, A.T.copy(), 2)


combining = Value(combine, "A B", compared_as=product, truth=truth, draw=draw)
compressing = Value(compress, "A2 B2", compared_as=product_and_rank, truth=nearest, draw=draw_factors)


def stacked(adapters, weights, on_B, on_A=lambda w, alpha, r: 1):
    """Side by side, with a factor on each B and on each A."""
    each = [(w, A, B, alpha, len(A)) for w, (A, B, alpha) in zip(weights, adapters, strict=True)]
    As = [on_A(w, alpha, r) * A for w, A, _, alpha, r in each]
    return np.concatenate(As), np.concatenate([on_B(w, alpha, r) * B for w, _, B, alpha, r in each], axis=1)


def added(adapters, weights, on_B, on_A):
    """All A in one sum and all B in another, with a factor on each. Raises ValueError where the ranks differ."""
    each = [(w, A, B, alpha, len(A)) for w, (A, B, alpha) in zip(weights, adapters, strict=True)]
    return sum(on_A(w, a, r) * A for w, A, _, a, r in each), sum(on_B(w, a, r) * B for w, _, B, a, r in each)


def exact(w, alpha, r):
    return w * alpha / r


CROSSED = "Multiply (B₁ + B₂)(A₁ + A₂) out: how many of the four products belong to the sum?"


@combining.mistake("{it} averages the A and the B apart: B of one adapter multiplies A of another", CROSSED)
def means_apart(adapters, weights):
    n = len(adapters)
    return added(adapters, weights, lambda w, alpha, r: 1 / n, lambda w, alpha, r: 1 / n)


@combining.mistake(
    "{it} averages the A and the B apart, by their weights: B of one adapter multiplies A of another", CROSSED
)
def weighted_means_apart(adapters, weights):
    share = 1 / sum(weights)
    return added(adapters, weights, lambda w, alpha, r: w * share, lambda w, alpha, r: w * share)


@combining.mistake(
    "{it} adds up the A and the B apart, each times its weight: B of one adapter multiplies A of another", CROSSED
)
def weighted_sums_apart(adapters, weights):
    return added(adapters, weights, lambda w, alpha, r: w, lambda w, alpha, r: w)


@combining.mistake(
    '{it} adds up the A and the B apart, each times √(w s), as PEFT\'s "linear": '
    "B of one adapter multiplies A of another",
    CROSSED,
)
def roots_apart(adapters, weights):
    return added(adapters, weights, *[lambda w, alpha, r: np.sqrt(exact(w, alpha, r))] * 2)


@combining.mistake(
    "{it} adds up the A and the B apart, with the right factor on one: B of one adapter multiplies A of another",
    CROSSED,
)
def sums_apart(adapters, weights):
    return added(adapters, weights, exact, lambda w, alpha, r: 1)


@combining.mistake(
    "{it} adds up the A and the B apart, filled up with zeros to one rank: B of one adapter multiplies A of another",
    CROSSED,
)
def padded_sums_apart(adapters, weights):
    r = max(len(A) for A, _, _ in adapters)

    def one(w, A, B, alpha):
        more = r - len(A)
        return np.pad(exact(w, alpha, len(A)) * A, ((0, more), (0, 0))), np.pad(B, ((0, 0), (0, more)))

    each = [one(w, *adapter) for w, adapter in zip(weights, adapters, strict=True)]
    return sum(A for A, _ in each), sum(B for _, B in each)


@combining.mistake("{it} has no scale: each Bᵢ Aᵢ has its weight alone", "What is the ΔW of one adapter by itself?")
def no_scale(adapters, weights):
    return stacked(adapters, weights, lambda w, alpha, r: w)


@combining.mistake(
    "{it} has the scale of each adapter twice: on A and on B", "By how much does B A grow if both are doubled?"
)
def scale_twice(adapters, weights):
    return stacked(adapters, weights, exact, lambda w, alpha, r: alpha / r)


@combining.mistake("the scale of each adapter in {it} is α, not divided by r", "Which two numbers make up the scale?")
def not_divided_by_r(adapters, weights):
    return stacked(adapters, weights, lambda w, alpha, r: w * alpha)


@combining.mistake("the scale of each adapter in {it} is α/√r, that of rsLoRA", "Which scale does the statement give?")
def divided_by_root_r(adapters, weights):
    return stacked(adapters, weights, lambda w, alpha, r: w * alpha / np.sqrt(r))


@combining.mistake(
    "the scale of each adapter in {it} has the rank of the whole, α/R: each was trained with its own r",
    "Does ΔW₁ change when a second adapter is added?",
)
def divided_by_the_whole_rank(adapters, weights):
    R = sum(len(A) for A, _, _ in adapters)
    return stacked(adapters, weights, lambda w, alpha, r: w * alpha / R)


@combining.mistake("{it} has one scale for all, that of the first adapter", "Are α and r the same for all?")
def one_scale(adapters, weights):
    s = adapters[0][2] / len(adapters[0][0])
    return stacked(adapters, weights, lambda w, alpha, r: w * s)


@combining.mistake(
    "{it} has the square of each weight: it is on A and on B", "By how much does B A grow if both are doubled?"
)
def weight_on_both(adapters, weights):
    return stacked(adapters, weights, exact, lambda w, alpha, r: w)


@combining.mistake(
    "{it} takes the root of a weight below zero", "If √w is to stand on A and on B: where does the sign of w go?"
)
def root_of_the_weight(adapters, weights):
    return stacked(adapters, weights, lambda w, alpha, r: np.sqrt(w) * alpha / r, lambda w, alpha, r: np.sqrt(w))


@combining.mistake(
    "{it} has lost the sign of the weights: what should be taken away is added", "How much is (-1)(-1), and |-1|?"
)
def sign_lost(adapters, weights):
    return stacked(adapters, abs(weights), exact)


@combining.mistake(
    "{it} is divided by the sum of the weights, a weighted mean: another convention",
    "With one adapter of weight 2, what must B A be?",
)
def weighted_mean(adapters, weights):
    return stacked(adapters, weights / sum(weights), exact)


@combining.mistake("{it} is divided by the number of adapters", "Is it a sum, or a mean?")
def divided_by_their_number(adapters, weights):
    return stacked(adapters, weights / len(weights), exact)


@combining.mistake("{it} does not have the weights", "With all weights zero, what must B A be?")
def unweighted(adapters, weights):
    return stacked(adapters, weights**0, exact)


@combining.mistake("{it} is that of the last adapter alone", "What becomes of the first adapter in your loop?")
def last_alone(adapters, weights):
    return stacked(adapters[-1:], weights[-1:], exact)


@combining.mistake("{it} is that of the first adapter alone", "What becomes of the others?")
def first_alone(adapters, weights):
    return stacked(adapters[:1], weights[:1], exact)


@combining.mistake(
    "{it} pairs each B with the A of another adapter: they are stacked in two orders",
    "Which column of B multiplies the first row of A?",
)
def orders_differ(adapters, weights):
    return stacked(adapters, weights, exact)[0], stacked(adapters[::-1], weights[::-1], exact)[1]


@combining.rule(
    "{it} forms the (out, in) matrix Σ ΔW, or one as large",
    "What do you get if you write the A one below the other, and the B side by side?",
    forms_the_sum,
)
def sum_formed(adapters, weights):
    dW = sum(w * alpha / len(A) * B @ A for w, (A, B, alpha) in zip(weights, adapters, strict=True))
    return dW, np.eye(len(dW))


def directions(A, B):
    """U, σ and Vᵀ of B A."""
    (Q_B, R_B), (Q_A, R_A) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, sigma, Vt @ Q_A.T


@compressing.mistake(
    "{it} shows that rows of A and columns of B were cut off: the first are not the largest directions of B A",
    "In which other bases could the same B A be written, and would the same rows be cut there?",
)
def rows_cut(A, B, k):
    return A[:k], B[:, :k]


@compressing.mistake(
    "{it} shows that the k largest pairs of a row of A and a column of B were kept: they are not orthogonal, and so "
    "not the best",
    "What do the squares of B A add up to, if the pairs are not orthogonal?",
)
def largest_rows(A, B, k):
    first = np.argsort(-np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0))[:k]
    return A[first], B[:, first]


@compressing.mistake(
    "{it} has the largest directions of A alone, not of the product",
    "Which directions of the input does B make large?",
)
def directions_of_A(A, B, k):
    V = np.linalg.svd(A, full_matrices=False)[2][:k]
    return V, B @ (A @ V.T)


@compressing.mistake(
    "{it} has the largest directions of B alone, not of the product",
    "Which directions of B does A use most?",
)
def directions_of_B(A, B, k):
    U = np.linalg.svd(B, full_matrices=False)[0][:, :k]
    return (U.T @ B) @ A, U


@compressing.mistake("{it} has no singular values: every direction is of size 1", "What stands between U and Vᵀ?")
def no_sigma(A, B, k):
    U, _, Vt = directions(A, B)
    return Vt[:k], U[:, :k]


@compressing.mistake("{it} has the singular values twice: in A2 and in B2", "What stands between U and Vᵀ, how often?")
def sigma_twice(A, B, k):
    U, sigma, Vt = directions(A, B)
    return sigma[:k, None] * Vt[:k], U[:, :k] * sigma[:k]


@compressing.mistake(
    "{it} has the roots of the singular values on one side alone", "What is √σ √σ, and where do the two stand?"
)
def one_root(A, B, k):
    U, sigma, Vt = directions(A, B)
    return Vt[:k], U[:, :k] * sigma[:k] ** 0.5


@compressing.mistake("{it} keeps the smallest directions, not the largest", "In which order does svd give them?")
def smallest_kept(A, B, k):
    U, sigma, Vt = directions(A, B)
    return Vt[-k:], U[:, -k:] * sigma[-k:]


@compressing.mistake(
    "{it} has columns of Vᵀ for its rows: NumPy's svd gives V transposed", "Is the third result of svd V, or Vᵀ?"
)
def columns_of_Vt(A, B, k):
    (Q_B, R_B), (Q_A, R_A) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Vt[:, :k].T @ Q_A.T, Q_B @ (U[:, :k] * sigma[:k])


@compressing.mistake("nothing is cut, as {it} shows: A and B are as they came", "How many rows must A2 have?")
def not_cut(A, B, k):
    return A.copy(), B.copy()


@compressing.mistake(
    "what is cut off is still there as zeros, as {it} shows: A2 and B2 are no smaller than before",
    "How many numbers are to be stored after this?",
)
def cut_to_zero(A, B, k):
    U, sigma, Vt = directions(A, B)
    return Vt, U * np.where(np.arange(len(sigma)) < k, sigma, 0)


@compressing.rule(
    "{it} forms the (out, in) matrix B A, or one as large",
    "The rank of B A is at most R: how small can the matrix be that you decompose?",
    forms_the_product,
)
def product_formed(A, B, k):
    U, sigma, Vt = np.linalg.svd(B @ A, full_matrices=False)
    return Vt[:k], U[:, :k] * sigma[:k]


EXERCISE = Exercise(
    title="Combine",
    kind="write",
    minutes=20,
    difficulty=2,
    needs=["19"],
    parts=[combining, compressing],
    hints=(
        "Take two adapters of rank 1. B A = b₁ a₁ᵀ + b₂ a₂ᵀ is a product of two matrices: which, and of which shape? "
        "On which of them would you put the factor of each?",
        "The nearest matrix of rank k comes from the SVD of B A, whose factors are thin. A QR of each leaves an (R, R) "
        "matrix in the middle, and its Q change no length.",
    ),
    viva=[
        Viva(
            "Why is the average of A times the average of B not the average of the adapters?",
            "It has cross terms: B of one adapter with A of another, which nobody trained. Factors are not unique "
            "either: B M and M⁻¹ A are the same adapter, and give another average.",
            "It is the same, since the product is linear.",
        ),
        Viva(
            "An adapter has the weight -1. What does that do, and where may the sign stand?",
            "It takes its ΔW away. The sign belongs to ΔW, so on one factor alone: on both it cancels, and a root of "
            "it is not a number.",
            "A and B are both negated.",
        ),
    ],
    asks=["G4", "G10"],
)
