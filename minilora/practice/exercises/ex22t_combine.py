"""22t · Combine, in PyTorch

Several adapters of one layer are to act at once, each with a weight, and the
result is to be an adapter again:

    combine(adapters, weights)      returns A, B with B A = Σᵢ wᵢ ΔWᵢ

    adapters   a list of (Aᵢ, Bᵢ, αᵢ), of which ΔWᵢ = sᵢ Bᵢ Aᵢ, sᵢ = αᵢ/rᵢ
    Aᵢ (rᵢ, in)    Bᵢ (out, rᵢ)    αᵢ a number; the ranks rᵢ may differ
    weights    (n,), a number wᵢ for each: also below zero, to subtract one,
               and of any sum
    A (R, in)      B (out, R)      the rank R is yours to choose

The result is used with scale 1, so that B A is all of its ΔW. It is exact, up
to rounding. A and B are not unique: only B A is compared. Aᵢ, Bᵢ and weights
are tensors, and gradients of B A must arrive at all of them: weights can be
learnt (LoraHub does so).

The rank of such a sum is larger than it need be. Then

    compress(A, B, k)               returns A2, B2

    A2 (k, in)     B2 (out, k)     k ≤ R, k ≤ in, k ≤ out

where, of all matrices of rank k, B2 A2 is the one nearest to B A: the sum of
the squares of B A - B2 A2 is least. Only the product is compared here too, and
gradients are not asked for.

Neither may form an (out, in) matrix: it would be as large as W itself.

One number by hand, with in = out = 1. The first adapter has A₁ = 2, B₁ = 3,
α₁ = 4: ΔW₁ = 4 · 6 = 24. The second has a column A₂ of 1, 1, a row B₂ of 5, 6,
α₂ = 3: ΔW₂ = 1.5 · 11 = 16.5. With weights 2 and -1, B A = 48 - 16.5 = 31.5.
And the best of rank 1 for B A = (3 0; 0 2) is (3 0; 0 0).
"""

import torch


def combine(adapters, weights):
    """Return A, B.

    >>> first = torch.tensor([[2.0]]), torch.tensor([[3.0]]), 4.0
    >>> second = torch.tensor([[1.0], [1.0]]), torch.tensor([[5.0, 6.0]]), 3.0
    >>> A, B = combine([first, second], torch.tensor([2.0, -1.0]))
    >>> (B @ A).item()
    31.5
    """
    ### BEGIN SOLUTION
    A = torch.cat([A for A, _, _ in adapters])
    B = torch.cat([w * alpha / len(A) * B for w, (A, B, alpha) in zip(weights, adapters, strict=True)], dim=1)
    return A, B
    ### END SOLUTION


def compress(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = compress(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.eye(2), 1)
    >>> (B2 @ A2).round(decimals=4).abs()
    tensor([[3., 0.],
            [0., 0.]])
    """
    ### BEGIN SOLUTION
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, sigma, Vt = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Vt[:k] @ Q_A.T, Q_B @ (U[:, :k] * sigma[:k])
    ### END SOLUTION


### THE CHECK

import numpy as np

from .ex22_combine import combining, compressing
from ..exercise import Exercise, Viva
from ..torch_functions import Twin, cut_from_autograd, watched


def forms_the_sum(function, n=250):
    """Is any result as large as W?"""
    A, B = np.ones((1, n)), np.ones((n, 1))
    return watched(function, [(A, B, 2.0), (3 * A, B, 4.0)], np.array([0.5, -2.0])).largest >= n * n


def forms_the_product(function, n=250):
    A = np.cos(np.outer([1.0, 2.0, 3.0], np.arange(n)))
    return watched(function, A, A.T.copy(), 2).largest >= n * n


sum_of_adapters = Twin(combine, of=combining, without=("sum_formed",))
nearest = Twin(compress, of=compressing, without=("product_formed", "columns_of_Vt"))


@sum_of_adapters.rule(
    "{it} forms the (out, in) matrix Σ ΔW, or one as large",
    "What do you get if you write the A one below the other, and the B side by side?",
    forms_the_sum,
)
def sum_formed(adapters, weights):
    dW = sum(w * alpha / len(A) * B @ A for w, (A, B, alpha) in zip(weights, adapters, strict=True))
    return dW, torch.eye(len(dW), dtype=dW.dtype)


@sum_of_adapters.rule(
    "the right gradient does not arrive at every argument of {it}: a part of B A is cut off from autograd",
    "Where does a tensor become a number, an array, or one without a graph: item, tolist, detach, data, torch.tensor?",
    cut_from_autograd(sum_of_adapters, lambda result: result[1] @ result[0]),
)
def weights_as_numbers(adapters, weights):
    return combine(adapters, weights.tolist())


@nearest.mistake(
    "{it} has columns of Vᵀ for its rows: torch.linalg.svd gives Vᵀ, and torch.svd gives V",
    "Is the third result of your svd V, or Vᵀ?",
)
def columns_of_Vt(A, B, k):
    (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, sigma, V = torch.svd(R_B @ R_A.T)
    return V[:k] @ Q_A.T, Q_B @ (U[:, :k] * sigma[:k])


@nearest.rule(
    "{it} forms the (out, in) matrix B A, or one as large",
    "The rank of B A is at most R: how small can the matrix be that you decompose?",
    forms_the_product,
)
def product_formed(A, B, k):
    U, sigma, Vt = torch.linalg.svd(B @ A, full_matrices=False)
    return Vt[:k], U[:, :k] * sigma[:k]


EXERCISE = Exercise(
    title="Combine, in PyTorch",
    kind="write",
    minutes=20,
    difficulty=2,
    needs=["22"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[sum_of_adapters, nearest],
    hints=(
        "Take two adapters of rank 1. B A = b₁ a₁ᵀ + b₂ a₂ᵀ is a product of two matrices: which, and of which shape? "
        "On which of them would you put the factor of each?",
        "torch.linalg.svd gives U, σ and Vᵀ as NumPy does; torch.svd, which is older, gives V. Which matrix, of size "
        "R × R, has the singular values of B A?",
    ),
    viva=[
        Viva(
            "Weights of adapters are learnt by gradient. Which of your operations must autograd see?",
            "The product of each weight with its factor, and the concatenation. Ranks and α are numbers. With "
            "weights.tolist() the sum is right and no weight ever moves.",
            "None, weights are hyperparameters.",
        ),
        Viva(
            "Why does one not train through an SVD here?",
            "Its gradient has 1/(σᵢ² - σⱼ²): equal singular values give infinities, and singular vectors are unique up "
            "to a sign only. Of the product B2 A2 alone it is well defined.",
            "SVD has no gradient.",
        ),
    ],
    asks=["G4", "G10"],
)
