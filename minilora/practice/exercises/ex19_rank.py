"""19 · Rank

A LoRA layer's update is ΔW = s B A, s = α/r. Its singular values say how many
directions it uses, and the best update of lower rank keeps the first of them.

    A (r, in)    B (out, r)    sigma (n,)    A2 (k, in)    B2 (out, k)

singular_values returns those of ΔW, largest first: min(r, out, in) of them,
since all others are 0.

truncate returns factors of rank k whose product B2 A2 is as near to B A as any
matrix of rank k can be, in Frobenius' norm; 1 ≤ k ≤ min(r, out, in). Only the
product is compared: how the factors share its size is yours to choose. α plays
no part here.

singular_values and truncate may not take the memory of an (out, in) matrix:
for a layer of 4,096 by 4,096 and r = 8 the factors are 256 times smaller.

effective_rank returns the effective rank of Roy and Vetterli (2007): divide
sigma by its sum, and the effective rank is exp of the entropy (with the natural
logarithm) of these shares. A singular value of 0 adds nothing to it; where all
are 0 the effective rank is 0.

By hand: A = (3, 4) and B = (2, 0)ᵀ, α = 6, r = 1: B A has the one singular
value |B| |A| = 2 · 5 = 10, and ΔW has 6 · 10 = 60. Of two equal singular values
the shares are 1/2, 1/2, the entropy ln 2, and the effective rank 2.
For A = diag(3, 2), B = diag(5, 1), k = 1: B A = diag(15, 2), and
B2 A2 = diag(15, 0).
"""

import numpy as np


def singular_values(A, B, alpha):
    """Return sigma of ΔW.

    >>> singular_values(np.array([[3.0, 4.0]]), np.array([[2.0], [0.0]]), 6.0).round(9)
    array([60.])
    """
    ### BEGIN SOLUTION
    R_B, R_A = np.linalg.qr(B, mode="r"), np.linalg.qr(A.T, mode="r")  # B = Q_B R_B, A = R_Aᵀ Q_Aᵀ
    return np.linalg.svd(alpha / len(A) * R_B @ R_A.T, compute_uv=False)
    ### END SOLUTION


def truncate(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = truncate(np.diag([3.0, 2.0]), np.diag([5.0, 1.0]), 1)
    >>> A2.shape, B2.shape, np.allclose(B2 @ A2, np.diag([15.0, 0.0]))
    ((1, 2), (2, 1), True)
    """
    ### BEGIN SOLUTION
    (Q_B, R_B), (Q_A, R_A) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T)
    root = np.sqrt(sigma[:k])
    return root[:, None] * Vt[:k] @ Q_A.T, Q_B @ U[:, :k] * root
    ### END SOLUTION


def effective_rank(sigma):
    """Return exp of the entropy of sigma's shares.

    >>> round(float(effective_rank(np.array([7.0, 7.0, 0.0]))), 9)
    2.0
    """
    ### BEGIN SOLUTION
    p = sigma[sigma > 0] / sigma.sum()
    return np.exp(-np.sum(p * np.log(p))) if len(p) else 0.0
    ### END SOLUTION


### THE CHECK


from ...adapters import spectrum
from ...verify.language import words
from ..measure import peak_bytes
from ..exercise import Exercise, Viva
from ..parts import Refused, Value

# out, in, r, k of each case; in the fourth r is larger than out, in the last two rows of A are equal
SHAPES = [(6, 9, 4, 2), (11, 7, 5, 3), (8, 8, 6, 1), (4, 10, 7, 2), (9, 5, 3, 2), (7, 12, 5, 3)]


def draw(rng, i):
    out, width_in, r, k = SHAPES[i]
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((out, r))
    A *= rng.permutation(np.linspace(0.4, 2, r))[:, None]  # no row is of the same size as another
    if i == len(SHAPES) - 1:
        A[2] = A[0]
    return {"A": A, "B": B, "alpha": r + round(float(rng.uniform(1.5, 9)), 3), "k": k}


def draw_values(rng, i):
    case = draw(rng, i)
    return {name: case[name] for name in ("A", "B", "alpha")}


def draw_truncate(rng, i):
    case = draw(rng, i)
    return {name: case[name] for name in ("A", "B", "k")}


def draw_sigma(rng, i):
    """Six, 9, 4 values; very small ones; some zeros; all zeros."""
    n = (6, 9, 4, 7, 8, 5)[i]
    sigma = np.sort(rng.uniform(0.1, 5, n))[::-1] * (1, 1, 1, 1e-7, 1, 0)[i]
    if i == 4:
        sigma[5:] = 0
    return {"sigma": sigma}


def best(A, B, k):
    B2, A2 = spectrum.truncate(spectrum.lora_svd(A, B, 1.0), k)
    return A2, B2


def product(tensors):
    """What is compared, since the factors of B2 A2 are not unique."""
    A2, B2 = np.asarray(tensors["A2"]), np.asarray(tensors["B2"])
    if A2.ndim != 2 or B2.ndim != 2 or B2.shape[1] != len(A2):
        says = words("A2 {A2} and B2 {B2} cannot be multiplied", A2=str(A2.shape), B2=str(B2.shape))
        raise Refused("shape", says, words("A2 must be (k, in), and B2 (out, k)."), detail=f"{A2.shape} {B2.shape}")
    return {"k": len(A2), "B2 A2": B2 @ A2}


def forms_the_product(call):
    """Does it take half the memory of an (out, in) matrix, or more?"""
    n = 200  # no more, since a wrong function decomposes an (n, n) matrix

    def broken(function):
        rng = np.random.default_rng(0)
        A, B = rng.standard_normal((2, n)), rng.standard_normal((n, 2))
        return peak_bytes(call, function, A, B) > 8 * n * n / 2

    return broken


values = Value(
    singular_values, "sigma", truth=lambda A, B, alpha: spectrum.lora_svd(A, B, alpha / len(A)).sigma, draw=draw_values
)
cut = Value(truncate, "A2 B2", truth=best, draw=draw_truncate, compared_as=product)
effective = Value(effective_rank, "effective_rank", truth=spectrum.effective_rank, draw=draw_sigma, tolerance=1e-5)


def dense(A, B):
    return np.linalg.svd(B @ A, compute_uv=False)[: min(len(A), len(B), A.shape[1])]


@values.mistake("{it} is that of B A, without the scale s", "What is ΔW?")
def no_scale(A, B, alpha):
    return dense(A, B)


@values.mistake("the scale in {it} is α, not divided by r", "Which two numbers make up the scale?")
def not_divided_by_r(A, B, alpha):
    return alpha * dense(A, B)


@values.mistake("the scale in {it} is α/√r, that of rsLoRA", "Which of the two scales does the equation have?")
def divided_by_root_r(A, B, alpha):
    return alpha / np.sqrt(len(A)) * dense(A, B)


@values.mistake("the scale in {it} is squared", "How do the singular values of 2 M differ from those of M?")
def scale_squared(A, B, alpha):
    return (alpha / len(A)) ** 2 * dense(A, B)


@values.mistake("only the root of the scale is in {it}", "How do the singular values of 2 M differ from those of M?")
def root_of_the_scale(A, B, alpha):
    return np.sqrt(alpha / len(A)) * dense(A, B)


@values.mistake(
    "{it} holds the squares: eigenvalues of ΔW ΔWᵀ",
    "How are the eigenvalues of M Mᵀ and the singular values of M related?",
)
def squares(A, B, alpha):
    return (alpha / len(A) * dense(A, B)) ** 2


@values.mistake(
    "{it} is the product of A's singular values and B's, one by one",
    "Is the largest output direction of A also the largest input direction of B?",
)
def product_of_both(A, B, alpha):
    n = min(len(A), len(B), A.shape[1])
    both = [np.linalg.svd(M, compute_uv=False) for M in (A, B)]
    return alpha / len(A) * both[0][:n] * both[1][:n]


@values.mistake("{it} begins with the smallest", "Which one comes first?")
def smallest_first(A, B, alpha):
    return alpha / len(A) * dense(A, B)[::-1]


@values.mistake(
    "{it} is of the small matrix with one of its two factors not transposed",
    "With B = Q R and Aᵀ = P S, what is A, and what stands between Q and Pᵀ in B A?",
)
def core_not_transposed(A, B, alpha):
    return np.linalg.svd(alpha / len(A) * np.linalg.qr(B, mode="r") @ np.linalg.qr(A.T, mode="r"), compute_uv=False)


@values.mistake(
    "{it} is |bᵢ| |aᵢ| for the columns of B and the rows of A, which are not orthogonal to each other",
    "What are the singular values if two rows of A are equal?",
)
def lengths_of_the_rows(A, B, alpha):
    n = min(len(A), len(B), A.shape[1])
    return alpha / len(A) * np.sort(np.linalg.norm(B, axis=0) * np.linalg.norm(A, axis=1))[::-1][:n]


@values.rule(
    "{it} takes the memory of an (out, in) or (out, out) matrix: B A, or a complete Q or U, is formed",
    "The rank is at most r: how small can the matrix be that you decompose?",
    forms_the_product(lambda function, A, B: function(A, B, 3.0)),
)
def product_decomposed(A, B, alpha):
    return alpha / len(A) * dense(A, B)


def svd(A, B):
    return np.linalg.svd(B @ A, full_matrices=False)


@cut.mistake(
    "in {it} rows of A and columns of B are dropped, not singular directions: the first k are kept",
    "If A and B are replaced by M A and B M⁻¹, is B A the same? And what you keep of it?",
)
def first_rows(A, B, k):
    return A[:k], B[:, :k]


@cut.mistake(
    "in {it} rows of A and columns of B are dropped, not singular directions: the longest k are kept",
    "If A and B are replaced by M A and B M⁻¹, is B A the same? And what you keep of it?",
)
def longest_rows(A, B, k):
    kept = np.argsort(-np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=0))[:k]
    return A[kept], B[:, kept]


@cut.mistake(
    "{it} keeps the first directions of A alone: B has no say in which they are",
    "What if B sends the largest direction of A to zero?",
)
def directions_of_A(A, B, k):
    U, sigma, Vt = np.linalg.svd(A, full_matrices=False)
    return sigma[:k, None] * Vt[:k], B @ U[:, :k]


@cut.mistake(
    "{it} keeps the first directions of B alone: A has no say in which they are",
    "What if A never uses the largest direction of B?",
)
def directions_of_B(A, B, k):
    U, sigma, Vt = np.linalg.svd(B, full_matrices=False)
    return Vt[:k] @ A, U[:, :k] * sigma[:k]


@cut.mistake("{it} lacks the singular values", "What is the product of U and Vᵀ without Σ?")
def no_sigma(A, B, k):
    U, _, Vt = svd(A, B)
    return Vt[:k], U[:, :k]


@cut.mistake("{it} holds the singular values twice, in either factor once", "What must the product of the two be?")
def sigma_twice(A, B, k):
    U, sigma, Vt = svd(A, B)
    return sigma[:k, None] * Vt[:k], U[:, :k] * sigma[:k]


@cut.mistake("{it} holds the roots of the singular values, in one factor only", "What must the product of the two be?")
def root_in_one_factor(A, B, k):
    U, sigma, Vt = svd(A, B)
    return Vt[:k], U[:, :k] * np.sqrt(sigma[:k])


@cut.mistake(
    "{it} is made of the last directions, with the smallest singular values",
    "In which order are the singular values returned to you?",
)
def smallest_kept(A, B, k):
    U, sigma, Vt = svd(A, B)
    n = min(len(A), len(B), A.shape[1])
    return sigma[n - k : n, None] * Vt[n - k : n], U[:, n - k : n]


@cut.mistake(
    "{it}: A2 still has all r rows",
    "How many rows may A2 have?",
)
def all_rows(A, B, k):
    return A, B


@cut.rule(
    "{it} takes the memory of an (out, in) or (out, out) matrix: B A, or a complete Q or U, is formed",
    "The rank is at most r: how small can the matrix be that you decompose?",
    forms_the_product(lambda function, A, B: function(A, B, 1)),
)
def product_cut(A, B, k):
    U, sigma, Vt = svd(A, B)
    return sigma[:k, None] * Vt[:k], U[:, :k]


def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


def shares(a):
    return a / (np.sum(a) or 1.0)


@effective.mistake(
    "{it} is made of the shares of σ², not of σ", "Is it the values or their squares that are divided by their sum?"
)
def shares_of_squares(sigma):
    return np.exp(entropy(shares(sigma**2))) if sigma.any() else 0.0


@effective.mistake("{it} is the entropy itself", "What is it for n equal values, and what must it be?")
def no_exponential(sigma):
    return entropy(shares(sigma))


@effective.mistake(
    "{it} is e to an entropy in bits", "To which base is the logarithm taken, and which number is raised?"
)
def bits_and_e(sigma):
    return np.exp(entropy(shares(sigma)) / np.log(2)) if sigma.any() else 0.0


@effective.mistake(
    "{it} is 2 to an entropy in nats", "To which base is the logarithm taken, and which number is raised?"
)
def nats_and_two(sigma):
    return 2 ** entropy(shares(sigma)) if sigma.any() else 0.0


@effective.mistake(
    "{it} counts the values above a fixed number, 1e-6: it changes when all of them are multiplied by one factor",
    "Does 1e-7 ΔW have more or fewer directions than ΔW?",
)
def fixed_threshold(sigma):
    return float(np.sum(sigma > 1e-6))


@effective.mistake(
    "{it} counts the values that are not 0: that is the rank, which one tiny value raises by 1",
    "What should a second value of 1e-9 add to a first of 1?",
)
def count(sigma):
    return float(np.sum(sigma > 1e-12 * max(sigma.max(), 1e-300)))


@effective.mistake("{it} is Σσ²/σ₁²: that is the stable rank, another measure", "Which measure is asked for?")
def stable_rank(sigma):
    return np.sum((sigma / (sigma[0] or 1)) ** 2)


@effective.mistake("{it} is (Σσ)²/Σσ²: that is the participation ratio, another measure", "Which measure is asked for?")
def participation_ratio(sigma):
    return np.sum(sigma) ** 2 / (np.sum(sigma**2) or 1.0)


@effective.mistake("the shares in {it} are those of the largest value, not of the sum", "What do the shares sum to?")
def shares_of_the_largest(sigma):
    return np.exp(entropy(sigma / (sigma[0] or 1))) if sigma.any() else 0.0


@effective.mistake("the entropy in {it} has the wrong sign", "Is the logarithm of a share positive or negative?")
def sign(sigma):
    return np.exp(-entropy(shares(sigma))) if sigma.any() else 0.0


@effective.mistake(
    "{it} is not a number where a singular value is 0: 0 · ln 0 is computed", "What does a share of 0 add?"
)
def zero_times_log_zero(sigma):
    p = sigma / sigma.sum()
    return np.exp(-np.sum(p * np.log(p)))


@effective.mistake("{it} is 1 where every singular value is 0", "How many directions does an update have that is 0?")
def one_without_an_update(sigma):
    return np.exp(entropy(shares(sigma)))


@effective.mistake(
    "{it} is not a number where every singular value is 0: their sum is a divisor", "What is the rank of ΔW = 0?"
)
def nothing_divided(sigma):
    p = sigma / sigma.sum()
    return np.exp(-np.sum(p[p != 0] * np.log(p[p != 0])))


EXERCISE = Exercise(
    title="Rank",
    kind="write",
    minutes=30,
    difficulty=3,
    needs=["01"],
    parts=[values, cut, effective],
    hints=(
        "A matrix with orthonormal columns on the left or on the right changes no singular value. Which decomposition "
        "splits such a matrix off B, and off Aᵀ, and how large is what remains?",
        "Decompose what remains in the middle, and carry its directions back by the orthonormal matrices. For the "
        "effective rank, try shares (1, 0) before you run the check.",
    ),
    viva=[
        Viva(
            "Somebody trains a LoRA of rank 8, finds 8 singular values of ΔW that are not 0, and concludes that "
            "fine-tuning needs rank 8. What is wrong?",
            "ΔW = s B A was built with rank 8 at most, so that finding shows nothing. Measure the ΔW of full "
            "fine-tuning, or see whether the loss gets lower at a larger r.",
            "Nothing: the rank was measured, and it is 8.",
        ),
        Viva(
            "You cut an adapter from rank 8 to 4, and what it adds to the output doubles. Why, and what do you store?",
            "The file says r = 4 now, so the layer multiplies by α/4 and no longer by α/8. Halve α, or put the factor "
            "into B.",
            "The directions that were cut had damped the others.",
        ),
    ],
    asks=["D5", "D6"],
)
