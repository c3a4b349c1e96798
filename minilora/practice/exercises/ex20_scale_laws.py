"""20 · Scale laws

    y = x Wᵀ + s (x Aᵀ) Bᵀ        s = α/r

    x (rows, in)    W (out, in)    A (r, in)    B (out, r)    ΔW = s B A

At the start B = 0. The entries of A are independent, of mean 0 and a variance
that depends on in alone, not on r. G = ∂L/∂W is unrelated to A. Where no sizes
are given, r is far smaller than in and out.

Take one step at the rate η. At B = 0 A has no gradient, so B alone moves:

    SGD     B = -η dB
    Adam    B = -η sign(dB), which is its first step, except for ε

    drop    -Σ G ∘ ΔW, over all entries: what the loss falls, to first order
    length  √(Σ ΔW²)

Return a dict. Eight numbers, each right if it is off by less than 5 %. By what
is the drop of the first step multiplied, on average over draws of A, if this is
changed and all else, η too, stays as it is?

    sgd_alpha, adam_alpha    α is doubled
    sgd_r, adam_r            r is doubled, α kept
    sgd_both, adam_both      α and r are doubled

    adam_r_length            by what is the length of Adam's ΔW multiplied, if r
                             is doubled and α kept?
    cosine                   between ΔW after SGD's first step and -η G, the
                             first step of full fine-tuning; r = in = out, large

Four words, "rises", "falls" or "stays": how does the best rate move, the η with
the lowest loss after five steps? ("stays": by less than a factor 1.5.) The loss
is the mean square of y - y*, where y* comes from a W that differs by a matrix
of rank 1. in = out = 24, and at first r = 2, α = 8.

    best_sgd_alpha, best_adam_alpha    α is multiplied by 4
    best_sgd_r, best_adam_r            r is multiplied by 8, α kept

By hand, with every matrix 1 × 1: A = 2, G = 3, s = 5, η = 0.1. dB = s G A = 30.
SGD: B = -3, ΔW = 5 · -3 · 2 = -30, drop 90. Adam: B = -0.1, ΔW = -1, drop 3.
"""


def predictions():
    """Return {"sgd_alpha": ..., ...}, the twelve of them.

    >>> len(predictions())
    12
    """
    ### BEGIN SOLUTION

    def sgd(s, r):
        return s**2 * r  # drop = η s² |G Aᵀ|², and |G Aᵀ|² is a sum over the r rows of A

    def adam(s, r):
        return s * r  # drop = η s Σ |G Aᵀ|, over r columns

    return {
        "sgd_alpha": sgd(2, 1),
        "adam_alpha": adam(2, 1),
        "sgd_r": sgd(1 / 2, 2),
        "adam_r": adam(1 / 2, 2),
        "sgd_both": sgd(1, 2),
        "adam_both": adam(1, 2),
        "adam_r_length": 1 / 2 * 2**0.5,  # s times a sum of r rows in unrelated directions
        "cosine": 2**-0.5,  # G AᵀA: the eigenvalues of AᵀA have mean 1 and mean square 2
        "best_sgd_alpha": "falls",
        "best_adam_alpha": "falls",
        "best_sgd_r": "rises",
        "best_adam_r": "stays",
    }
    ### END SOLUTION


### THE CHECK

import functools

import numpy as np

from ...adapters.lora import LoRALinear
from ...nn import Gradients, Linear
from ...nn.optim import SGD, AdamW
from ..exercise import Exercise, Viva
from ..parts import Predicted

RATE, DRAWS = 1e-3, 6


@functools.cache
def gradient(n):
    """A G without directions of its own, so that few draws of A are enough."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]


def first_step(Optimizer, alpha, r, n, seed):
    """G, and ΔW after one step of a LoRALinear."""
    G = gradient(n)
    layer, grads = LoRALinear(Linear(np.zeros((n, n))), r=r, alpha=alpha, rng=100 + seed), Gradients()
    _, cache = layer.forward(np.eye(n))  # dW = dyᵀ x = G for x = I and dy = Gᵀ
    layer.backward(G.T.copy(), cache, grads)
    Optimizer(layer.trainable_parameters(), lr=RATE).step(grads)
    return G, layer.delta()


def drop_and_length(Optimizer, alpha, r, n=128):
    steps = [first_step(Optimizer, alpha, r, n, seed) for seed in range(DRAWS)]
    return np.mean([(-(G * step).sum(), np.linalg.norm(step)) for G, step in steps], axis=0)


def best_rate(adam, alpha, r, n=24, steps=5):
    """The geometric mean over draws of the best of some rates, which are tried side by side."""
    rates, best = 2.0 ** np.arange(-8, 3, 0.5), []
    for seed in range(DRAWS):
        rng, s = np.random.default_rng(seed), alpha / r
        u, v = (z / np.linalg.norm(z) for z in rng.standard_normal((2, n)))
        D, C = np.sqrt(n) * np.outer(u, v), np.linspace(0.5, 1.5, n) ** 2  # W* - W, and the variances of x
        A = np.repeat(rng.uniform(-1, 1, (1, r, n)) / np.sqrt(n), len(rates), axis=0)
        parameters, moments = [A, np.zeros((len(rates), n, r))], [(0, 0), (0, 0)]
        for t in range(1, steps + 1):
            A, B = parameters
            G = (s * B @ A - D) * C
            for i, g in enumerate((s * B.swapaxes(1, 2) @ G, s * G @ A.swapaxes(1, 2))):
                if adam:
                    m, v = moments[i] = 0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g * g
                    g = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
                parameters[i] = parameters[i] - rates[:, None, None] * g
        A, B = parameters
        best.append(rates[np.nanargmin((((s * B @ A - D) ** 2) * C).sum((1, 2)))])
    return np.exp(np.mean(np.log(best)))


def moved(ratio):
    return "rises" if ratio > 1.5 else "falls" if ratio < 1 / 1.5 else "stays"


@functools.cache
def measured():
    found = {}
    for name, Optimizer in (("sgd", SGD), ("adam", AdamW)):
        drop, length = drop_and_length(Optimizer, 8, 4)
        for what, alpha, r in (("alpha", 16, 4), ("r", 8, 8), ("both", 16, 8)):
            found[f"{name}_{what}"] = float(drop_and_length(Optimizer, alpha, r)[0] / drop)
        found[f"{name}_r_length"] = float(drop_and_length(Optimizer, 8, 8)[1] / length)
        best = best_rate(name == "adam", 8, 2)
        found[f"best_{name}_alpha"] = moved(best_rate(name == "adam", 32, 2) / best)
        found[f"best_{name}_r"] = moved(best_rate(name == "adam", 8, 16) / best)
    G, step = first_step(SGD, 5, 96, 96, 0)
    found["cosine"] = float(-(G * step).sum() / np.linalg.norm(G) / np.linalg.norm(step))
    return {name: found[name] for name in predictions()}


laws = Predicted(predictions, " ".join(predictions()), truth=measured, tolerance=0.05)


def by(law, *names):
    """What a wrong law(α, r) gives for so many of the predictions, of which `names` are the last parts."""
    changes = {"alpha": (2, 1), "r": (1, 2), "both": (2, 2)}
    return {name: law(*changes[name.split("_")[1]]) for name in names}


@laws.mistake(
    "{it} has the scale once: with α taken for a learning rate, B alone grows with it",
    "How often is s a factor between A and ΔW = s B A, if B is itself a gradient?",
)
def alpha_is_a_rate():
    return predictions() | by(lambda alpha, r: alpha, "sgd_alpha")


@laws.mistake(
    "{it} has the scale twice, as for SGD: Adam divides one of them away",
    "What is left of the size of dB in dB/√(dB²)?",
)
def adam_as_sgd():
    return predictions() | by(lambda alpha, r: alpha**2, "adam_alpha")


@laws.mistake(
    "{it} has no scale: Adam does not see the size of dB, but B is multiplied by s again in the forward",
    "ΔW = s B A: if B is the same for every α, what happens to ΔW?",
)
def adam_hides_the_scale():
    return predictions() | by(lambda alpha, r: 1, "adam_alpha") | {"best_adam_alpha": "stays"}


@laws.mistake(
    "{it} is taken not to depend on r, as is often said of the scale α/r: what is measured does depend on r",
    "With which powers of s and of r does this quantity grow, with this optimizer?",
)
def the_same_for_every_r():
    return predictions() | by(lambda alpha, r: 1, "sgd_r", "adam_r_length") | {"best_sgd_r": "stays"}


@laws.mistake(
    "{it} has the change of s = α/r alone: a larger r also brings more rows of A",
    "Of how many terms is B A a sum?",
)
def scale_alone():
    names = "adam_r", "adam_r_length"
    s = by(lambda alpha, r: alpha / r, *names) | by(lambda alpha, r: (alpha / r) ** 2, "sgd_r")
    return predictions() | s | {"best_adam_r": "rises"}


@laws.mistake(
    "{it} follows the rule that α is doubled with r so that nothing changes: s stays the same, and more rows are added",
    "With s unchanged, what do twice as many rows of A, and of columns of B, add?",
)
def double_alpha_with_r():
    return predictions() | by(lambda alpha, r: 1, "sgd_both", "adam_both")


@laws.mistake(
    "{it} is that of the scale α/√r, rsLoRA's (or of α alone, where it is a word)",
    "Which scale does the equation have?",
)
def root_of_r():
    s = by(lambda alpha, r: alpha * r**0.5, "adam_r", "adam_both") | by(lambda alpha, r: alpha**2, "sgd_both")
    return predictions() | s | {"best_adam_r": "falls"}


@laws.mistake("{it} is that of the scale α, not divided by r", "If r is doubled and α is not, what happens to s?")
def not_divided_by_r():
    sgd = by(lambda alpha, r: alpha**2 * r, "sgd_r", "sgd_both")
    adam = by(lambda alpha, r: alpha * r, "adam_r", "adam_both")
    return predictions() | sgd | adam | {"adam_r_length": 2**0.5, "best_sgd_r": "falls"}


@laws.mistake(
    "{it} has the law of the length of ΔW, and the drop is asked",
    "Where directions are unrelated, do their lengths add up, and do their drops of the loss?",
)
def length_for_drop():
    length = by(lambda alpha, r: (alpha / r) ** 2 * r**0.5, "sgd_r", "sgd_both")
    return predictions() | length | by(lambda alpha, r: alpha / r * r**0.5, "adam_r", "adam_both")


@laws.mistake(
    "{it} goes the wrong way: what makes a step larger is compensated by a smaller rate",
    "If ΔW is 4 times as large at the same η, which η gives the old ΔW?",
)
def rate_with_alpha():
    return predictions() | {"best_sgd_alpha": "rises", "best_adam_alpha": "rises"}


@laws.mistake(
    "{it} is said not to depend on α, as if another α did not change the step", "How does SGD's first ΔW grow with α?"
)
def rate_without_alpha():
    return predictions() | {"best_sgd_alpha": "stays"}


@laws.mistake(
    "{it} is that of the same direction: r = in = out is taken for full fine-tuning",
    "ΔW is a multiple of G AᵀA. What must AᵀA be for that to point along G?",
)
def full_at_r_d():
    return predictions() | {"cosine": 1.0}


@laws.mistake(
    "{it} is the square of what it must be", "What is divided by what in a cosine: two lengths, or their squares?"
)
def cosine_squared():
    return predictions() | {"cosine": 0.5}


@laws.mistake(
    "{it} is that of unrelated directions: SGD's first step does lower the loss",
    "What is the sign of Σ G ∘ (G AᵀA)?",
)
def unrelated():
    return predictions() | {"cosine": 0.0}


@laws.mistake(
    "{it} has the wrong sign: the cosine is with -η G, which goes downhill too", "Which of the two is uphill?"
)
def uphill():
    return predictions() | {"cosine": -(2**-0.5)}


EXERCISE = Exercise(
    title="Scale laws",
    kind="predict, then run",
    minutes=20,
    difficulty=3,
    needs=["04", "09"],
    parts=[laws],
    hints=(
        "Write ΔW of the first step for each optimizer with s, G and A alone, and then the drop. Count the factors s.",
        "Each of the r rows of A adds a term of its own. In the drop these terms have one sign; in a length they are "
        "directions that have nothing to do with one another. The best rate compensates what the drop does.",
    ),
    viva=[
        Viva(
            "Somebody doubles r, and asks you whether α has to be doubled too. What do you answer?",
            "It depends on what is to stay. With Adam and α/r the drop of the first step, and in practice the best "
            "rate, stay when α does; doubling both keeps s and makes the step twice as large. With SGD neither does.",
            "Yes, always, since α should be 2r.",
        ),
        Viva(
            "Is α a learning rate?",
            "For the first step with Adam it looks like one: ΔW grows with η s. With SGD it goes with η s². And "
            "after training the function still contains s, and no η.",
            "Yes: it multiplies the update, and so it is one.",
        ),
    ],
    asks=["C4", "C5", "C6", "D3"],
    derivation="lora",
)
