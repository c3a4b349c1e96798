"""24 · DoRA's backward

    V = W + s B A       s = α/r       n_o = ‖V_o‖, the length of row o of V
    g = m/n             y = g ∘ (x Vᵀ)

    x, dx (batch, tokens, in)    W, V (out, in)    A, dA (r, in)
    B, dB (out, r)    m, dm, n, g (out,)    y, dy (batch, tokens, out)

DoRA (Liu et al., 2024) trains the length of each row of the weight, m, apart
from its direction, which A and B turn. W is frozen. α is called alpha, and r
is that of A. dy is ∂L/∂y.

Write two functions. row_lengths returns n. dora_backward returns dx, dA, dB
and dm, the gradients of y as it stands above. squares is given: of W, a layer
needs it only once.

Neither may form an (out, in) array: V, B A and dyᵀ x are each as large as W.
Write dora_backward with them first, if you like: the check looks at your
numbers before it looks at your memory.

One layer by hand, with in = 2, out = r = 1 and one token: W = (1, 5),
A = (2, -1), B = 0.5, α = 2, so s = 2. Then V = (3, 4), n = 5, and with m = 10
g = 2. For x = (1, 1), y = 2 · 7 = 14. With dy = 1, dx = (6, 8),
dA = (0.32, -0.24), dB = 1.76 and dm = 1.4.
"""

import numpy as np


def squares(M):
    """The squared length of each row, (out,), without an array of the size of M."""
    return np.einsum("oi,oi->o", M, M)


def row_lengths(W, A, B, alpha):
    """Return n.

    >>> row_lengths(np.array([[1.0, 5.0]]), np.array([[2.0, -1.0]]), np.array([[0.5]]), 2.0)
    array([5.])
    """
    ### BEGIN SOLUTION
    s, P, Q = alpha / len(A), W @ A.T, A @ A.T
    return np.sqrt(squares(W) + 2 * s * (B * P).sum(axis=1) + s**2 * (B @ Q * B).sum(axis=1))
    ### END SOLUTION


def dora_backward(dy, x, W, A, B, m, alpha):
    """Return dx, dA, dB, dm.

    >>> W, A, B, m = np.array([[1.0, 5.0]]), np.array([[2.0, -1.0]]), np.array([[0.5]]), np.array([10.0])
    >>> dx, dA, dB, dm = dora_backward(np.ones((1, 1, 1)), np.ones((1, 1, 2)), W, A, B, m, 2.0)
    >>> dx[0, 0].tolist(), dA.round(9).tolist(), dB.round(9).tolist(), dm.round(9).tolist()
    ([6.0, 8.0], [[0.32, -0.24]], [[1.76]], [1.4])
    """
    ### BEGIN SOLUTION
    s, n = alpha / len(A), row_lengths(W, A, B, alpha)
    g = m / n
    du = g * dy  # y = g ∘ u
    h = x @ A.T
    u = x @ W.T + s * h @ B.T
    dh = s * du @ B
    dx = du @ W + dh @ A
    dm = (dy * u).sum(axis=(0, 1)) / n
    c = (-g * dm / n)[:, None]  # through n: its derivative in V_o is V_o/n_o, so row o of dV gets c_o V_o
    dB = s * np.einsum("bto,btr->or", du, h) + s * c * (W @ A.T + s * B @ (A @ A.T))
    dA = np.einsum("btr,bti->ri", dh, x) + s * ((c * B).T @ W + s * (c * B).T @ B @ A)
    return dx, dA, dB, dm
    ### END SOLUTION


### THE CHECK

from ...verify.problems.dora import merged
from ..exercise import Exercise, Viva
from ..measure import peak_bytes
from ..parts import Gradient, Value

# out, in, r of each case: one is square
SHAPES = [(6, 9, 2), (8, 5, 3), (7, 7, 2), (4, 11, 3), (9, 6, 4), (5, 8, 1)]


def draw(rng, i):
    out, width_in, r = SHAPES[i]
    W, A, B = (rng.standard_normal(shape) for shape in ((out, width_in), (r, width_in), (out, r)))
    return {"W": 2 * W, "A": A, "B": B, "alpha": r * round(float(rng.uniform(0.5, 0.9)), 3)}


def through_V(W, A, B, alpha):
    """The lengths, by way of V."""
    return merged(A, B, W, alpha, len(A))[1][:, 0]


def takes_more_than_W(*rows):
    """Whether a function that is called with arrays of these rows, W, A, B, ... takes half of W's memory or more."""

    def broken(function, n=300):
        rng = np.random.default_rng(0)
        of_rows = [rng.standard_normal((2, 1, n)) for _ in rows]
        W, A, B, m = (rng.standard_normal(shape) for shape in ((n, n), (2, n), (n, 2), n))
        return peak_bytes(function, *of_rows, W, A, B, *([m] if rows else []), 3.0) > W.nbytes / 2

    return broken


lengths = Value(row_lengths, "n", truth=through_V, draw=draw)
gradients = Gradient(dora_backward, "dx dA dB dm", problem="dora", without="keep p")


def from_products(W, A, B, alpha, cross=2, Q=None, power=2):
    """√(‖W_o‖² + 2 s ⟨B_o, P_o⟩ + s² ⟨B_o Q, B_o⟩) with P = W Aᵀ and Q = A Aᵀ, where one of these is another."""
    s = alpha / len(A)
    Q = A @ A.T if Q is None else Q
    return np.sqrt(squares(W) + cross * s * (B * (W @ A.T)).sum(axis=1) + s**power * (B @ Q * B).sum(axis=1))


@lengths.mistake("{it} has the lengths of the rows of W, not of V", "Which matrix is V once B is not zero?")
def of_W(W, A, B, alpha):
    return np.sqrt(squares(W))


@lengths.mistake("{it} has the lengths of the columns of V", "How many outputs are there, and how many lengths?")
def of_columns(W, A, B, alpha):
    return np.linalg.norm(W + alpha / len(A) * B @ A, axis=0)


@lengths.mistake("{it} is one length, that of the whole of V", "How many outputs are there, and how many lengths?")
def of_the_whole(W, A, B, alpha):
    return np.linalg.norm(W + alpha / len(A) * B @ A)


@lengths.mistake("{it} is squared: the root is missing", "If V doubles, by what does n grow?")
def without_the_root(W, A, B, alpha):
    return through_V(W, A, B, alpha) ** 2


@lengths.mistake("{it} has no scale: B A is added to W as it is", "At α = 0, what must n be?")
def no_scale(W, A, B, alpha):
    return through_V(W, A, B, float(len(A)))


@lengths.mistake("the scale of {it} is α, not divided by r", "Which two numbers make up s?")
def not_divided_by_r(W, A, B, alpha):
    return through_V(W, A, B, alpha * len(A))


@lengths.mistake(
    "{it} lacks the term between W and B A, as though their rows were orthogonal", "What is (a + b)² besides a² + b²?"
)
def no_cross_term(W, A, B, alpha):
    return from_products(W, A, B, alpha, cross=0)


@lengths.mistake("{it} has the term between W and B A once, and needs it twice", "What is (a + b)² besides a² + b²?")
def cross_term_once(W, A, B, alpha):
    return from_products(W, A, B, alpha, cross=1)


@lengths.mistake(
    "in {it} the square of s B A has s once, and needs it twice", "How does the squared length of s B A grow with s?"
)
def scale_not_squared(W, A, B, alpha):
    return from_products(W, A, B, alpha, power=1)


@lengths.mistake(
    "{it} takes the length of a row of B for that of B A, which it is only where A has orthonormal rows",
    "How long is row o of B A, if that of B is (1, 0)?",
)
def length_of_B(W, A, B, alpha):
    return from_products(W, A, B, alpha, Q=np.eye(len(A)))


@lengths.mistake(
    "{it} leaves out the products of different rows of A, as though these were orthogonal",
    "Which entries of A Aᵀ enter the squared length of a row of B A?",
)
def rows_of_A_orthogonal(W, A, B, alpha):
    return from_products(W, A, B, alpha, Q=np.diag(squares(A)))


@lengths.rule(
    "{it} is right, and forms an (out, in) array",
    "What is ‖a + b‖² in products of a and b, and what is ⟨W_o, B_o A⟩ if you multiply W by A first?",
    takes_more_than_W(),
)
def V_formed(W, A, B, alpha):
    return through_V(W, A, B, alpha)


@gradients.rule(
    "{it} is right, and forms an (out, in) array",
    "dA and dB need dV only in products with B and A: what is V Aᵀ, if you multiply W and B A by Aᵀ one at a time?",
    takes_more_than_W("dy", "x"),
)
def G_formed(dy, x, W, A, B, m, alpha):
    s, (V, n) = alpha / len(A), merged(A, B, W, alpha, len(A))
    g, unit, G = m[:, None] / n, V / n, np.einsum("bto,bti->oi", dy, x)
    along = (G * unit).sum(axis=1, keepdims=True)
    dV = g * (G - along * unit)
    return dy * g[:, 0] @ V, s * B.T @ dV, s * dV @ A.T, along[:, 0]


EXERCISE = Exercise(
    title="DoRA's backward",
    kind="write",
    minutes=50,
    difficulty=5,
    needs=["04"],
    parts=[lengths, gradients],
    derivation="dora",
    hints=(
        "Name what lies in between: u = x Vᵀ = x Wᵀ + s h Bᵀ with h = x Aᵀ, and y = g ∘ u. Go back from y one step at "
        "a time, and ask at each: does this number move when B moves? m, n, u?",
        "If row o of V becomes twice as long, y stays as it is: so what is ⟨V_o, dV_o⟩, and which multiple of V_o must "
        "your dV still get? It is one number for each row, and dm has it already but for a factor.",
    ),
    viva=[
        Viva(
            "PEFT, and section 4.3 of the paper, hold the norm constant in the backward. What does that save, and what "
            "is lost?",
            "Under autograd it saves the memory of V's graph; written by hand, neither form keeps an (out, in) array. "
            "What is lost is the part of dV along V_o: dx and dm are the same, dA and dB are not the gradient of this "
            "loss. It is a convention, not a mistake of algebra: say which of the two you wrote.",
            "Nothing is lost: the norm is ‖W‖, and W is frozen.",
        ),
        Viva(
            "Which law tells the gradient from the one with the norm held constant, without a reference? Which cannot?",
            "⟨V_o, dV_o⟩ = 0 for every row, as the length of V_o does not change y. In A and B: y stays the same when "
            "rows of W and B grow together. Bᵀ dB = dA Aᵀ cannot: both have the form dA = s Bᵀ dV, dB = s dV Aᵀ.",
            "Bᵀ dB = dA Aᵀ, as for LoRA: it holds for the right gradient alone.",
        ),
    ],
    asks=["H1"],
)
