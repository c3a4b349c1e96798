"""02 · The start

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ        s = α/r

    x (..., in)    W (out, in)    A (r, in)    B (out, r)    y (..., out)

Draw A and B for the first step of training, in float64, such that

1. y is what the frozen layer gives, bit for bit, whatever x and α are;
2. the adapter can learn: A or B has a gradient that is not zero;
3. what is random is drawn from the generator rng (numpy.random.Generator)
   that is given, and from nothing else: independent entries of mean 0;
4. if A is random, an x whose entries are independent, of mean 0 and variance
   1, gives an x Aᵀ whose entries have a variance between 1/3 and 1, whatever
   in, out and r are. (PEFT's default lies at 1/3.)

One number by hand: where in = 50 and the entries of A have the standard
deviation 0.1, an entry of x Aᵀ is a sum of 50 products of variance 0.01, and
has the variance 0.5: within the bounds.
"""

import numpy as np


def lora_init(rng, n_in, n_out, r):
    """Return A, B.

    >>> A, B = lora_init(np.random.default_rng(0), 50, 40, 3)
    >>> A.shape, B.shape
    ((3, 50), (40, 3))
    >>> x = np.random.default_rng(1).standard_normal((1000, 50))
    >>> bool(1 / 4 < (x @ A.T).var() < 5 / 4)
    True
    """
    ### BEGIN SOLUTION
    bound = 1 / np.sqrt(n_in)
    A = rng.uniform(-bound, bound, (r, n_in))
    B = np.zeros((n_out, r))
    return A, B
    ### END SOLUTION


### THE CHECK

from dataclasses import replace

from ...adapters.lora import LoRALinear
from ...nn import Linear
from ...verify.language import words
from ..exercise import Exercise, Viva
from ..parts import Value


OF_BOTH = {"both_zero", "product_not_zero", "own_generator"}  # the other rules are broken by the random matrix alone


class Start(Value):
    """Rules grade what is drawn; A = 0 is right too, and the answer says so."""

    def check(self, function, seed=0):
        checked = super().check(function, seed)
        broken = [finding for finding in checked.findings if finding.kind == "rule"]
        if not broken:
            return checked
        faults = [replace(finding, kind="fault") for finding in broken]
        if faults[0].name in OF_BOTH:
            return checked._replace(findings=faults)
        random = "A" if any(np.any(A) for *_, A, _ in drawn(function, seed)) else "B"
        rest = [finding for finding in checked.findings if finding.kind == "right" and finding.tensor != random]
        return checked._replace(findings=[*(replace(fault, tensor=random) for fault in faults), *rest])

    def compared(self, function, seed):
        checked = super().compared(function, seed)
        if checked.findings[0].kind == "right" and not any(np.any(A) for *_, A, _ in drawn(function, seed)):
            checked.findings[0] = replace(checked.findings[0], says=words("A = 0 with B random is right too"))
        return checked


def draw(rng, i):
    """Matrices so large that a measured variance is within 7 % of the true one."""
    n_in, n_out, r = int(rng.integers(300, 900)), int(rng.integers(50, 250)), 5 + 5 * i + int(rng.integers(4))
    return {"rng": rng, "n_in": n_in, "n_out": n_out, "r": r}


def truth(rng, n_in, n_out, r):
    """The library's own start; only its shapes are compared."""
    adapter = LoRALinear(Linear(np.zeros((n_out, n_in)), None), r=r, rng=rng)
    return adapter.lora_A.data, adapter.lora_B.data


def drawn(function, seed=0):
    """(in, out, r, A, B) of every case."""
    cases = [(case, init.by_name(function(*case.values()))) for case in init.cases(seed)]
    return [(case["n_in"], case["n_out"], case["r"], *tensors.values()) for case, tensors in cases]


def in_all(broken):
    """A rule that is broken where this is so in every case."""
    return lambda function: all(broken(*case) for case in drawn(function))


def deviates_by(of):
    """Is the standard deviation of A this function of in, out and r?"""
    return in_all(lambda n_in, n_out, r, A, B: abs(A.std() / of(n_in, n_out, r) - 1) < 0.07)


def in_any(broken):
    return lambda function: any(broken(*case) for case in drawn(function))


def same_from_any_generator(function):
    shape = 30, 20, 4
    return all(map(np.array_equal, *(function(np.random.default_rng(seed), *shape) for seed in (1, 2))))


def same_in_every_case(function):
    found = [A.std() for *_, A, _ in drawn(function)]
    return max(found) < 1.1 * min(found)


def has_equal_rows(n_in, n_out, r, A, B):
    random = A if np.any(A) else B
    return np.linalg.matrix_rank(random) < min(random.shape)


def is_not_centred(n_in, n_out, r, A, B):
    random = A if np.any(A) else B
    return abs(random.mean()) > 0.3 * random.std()


def is_out_of_bounds(n_in, n_out, r, A, B):
    return np.any(A) and not 0.29 < n_in * A.var() < 1.15  # the estimate is off by 7 % at most


init = Start(lora_init, "A B", truth=truth, draw=draw, compare=False)


def uniform(rng, shape, bound):
    return rng.uniform(-bound, bound, shape)


def with_deviation(of):
    """A start with a normal A of this standard deviation, and B = 0."""
    return lambda rng, n_in, n_out, r: (of(n_in, n_out, r) * rng.standard_normal((r, n_in)), np.zeros((n_out, r)))


@init.mistake(
    "{it} gives A as (in, r) and B as (r, out), which is another convention: y = x A B",
    "In x Aᵀ, which axis of A is summed with the last axis of x?",
)
def transposed(rng, n_in, n_out, r):
    return tuple(a.T for a in lora_init(rng, n_in, n_out, r))


@init.mistake("{it} returns B before A", "In which order does the statement name them?")
def returned_in_the_wrong_order(rng, n_in, n_out, r):
    return lora_init(rng, n_in, n_out, r)[::-1]


@init.mistake("{it} has in and out exchanged", "Which of A and B multiplies x, and how wide is x?")
def widths_exchanged(rng, n_in, n_out, r):
    return lora_init(rng, n_out, n_in, r)


@init.mistake(
    "{it} draws from NumPy's global random state, or from a generator without a seed, and not from rng",
    "Which generator is given, and what would make a run repeatable?",
)
def global_random_state(rng, n_in, n_out, r):
    return uniform(np.random.default_rng(), (r, n_in), 1 / np.sqrt(n_in)), np.zeros((n_out, r))


@init.rule(
    "A and B are both zero, and stay so: each has the other as a factor in its gradient",
    "Write down dA and dB: which matrix stands in each?",
    in_all(lambda n_in, n_out, r, A, B: not np.any(A) and not np.any(B)),
)
def both_zero(rng, n_in, n_out, r):
    return np.zeros((r, n_in)), np.zeros((n_out, r))


@init.rule(
    "B A is not 0 at the start, so that y is no longer the frozen layer's before the first step",
    "What must B A be, for the adapted model to begin where the frozen one is?",
    in_any(lambda n_in, n_out, r, A, B: np.any(B @ A)),
)
def product_not_zero(rng, n_in, n_out, r):
    return uniform(rng, (r, n_in), 1 / np.sqrt(n_in)), uniform(rng, (n_out, r), 1 / np.sqrt(r))


@init.rule(
    "{it} gives the same numbers whatever rng is: nothing is drawn from it",
    "Two layers of equal shape are drawn one after the other: are their A the same?",
    same_from_any_generator,
)
def own_generator(rng, n_in, n_out, r):
    return lora_init(np.random.default_rng(0), n_in, n_out, r)


@init.rule(
    "the rows of the random matrix depend on each other: its rank is below r",
    "Two equal rows of A get equal gradients for as long as B's columns are equal: what is r then worth?",
    in_any(has_equal_rows),
)
def equal_rows(rng, n_in, n_out, r):
    return np.repeat(uniform(rng, (1, n_in), 1 / np.sqrt(n_in)), r, axis=0), np.zeros((n_out, r))


@init.rule(
    "the mean of the random matrix is not 0, as with numbers drawn between 0 and 1",
    "What does an x of equal entries give, and how does that grow with in?",
    in_any(is_not_centred),
)
def not_centred(rng, n_in, n_out, r):
    return rng.random((r, n_in)) / np.sqrt(n_in), np.zeros((n_out, r))


@init.rule(
    "the standard deviation of A is 1/√r, as though A summed over r numbers",
    "An entry of x Aᵀ is a sum of how many products?",
    deviates_by(lambda n_in, n_out, r: 1 / np.sqrt(r)),
)
def by_the_root_of_r(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 1 / np.sqrt(r))(rng, n_in, n_out, r)


@init.rule(
    "the standard deviation of A is 1/r, which is another convention (PEFT's init_lora_weights='gaussian'): "
    "there the variance of x Aᵀ is in/r²",
    "Is in/r² within the bounds, whatever in and r are?",
    deviates_by(lambda n_in, n_out, r: 1 / r),
)
def by_r(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 1 / r)(rng, n_in, n_out, r)


@init.rule(
    "A is scaled by the width of the output, out, instead of that of the input",
    "An entry of x Aᵀ is a sum of how many products?",
    deviates_by(lambda n_in, n_out, r: 1 / np.sqrt(n_out)),
)
def by_the_root_of_out(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 1 / np.sqrt(n_out))(rng, n_in, n_out, r)


@init.rule(
    "the standard deviation of A is 1/in: the root is missing, and x Aᵀ nearly vanishes",
    "If a product has the variance v, what is the variance of a sum of in such products?",
    deviates_by(lambda n_in, n_out, r: 1 / n_in),
)
def without_the_root(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 1 / n_in)(rng, n_in, n_out, r)


@init.rule(
    "the variance of A is about 2/in, that of He or Glorot, made for ReLU or for a backward of the same width: "
    "x Aᵀ then has twice the variance of x",
    "Is there a ReLU after A that takes away half of the variance?",
    deviates_by(lambda n_in, n_out, r: np.sqrt(2 / (n_in + r / 2))),
)
def twice_the_variance(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: np.sqrt(2 / n_in))(rng, n_in, n_out, r)


@init.rule(
    "the standard deviation of A is the same whatever in is, so that x Aᵀ grows with in",
    "For in = 100 and in = 10,000, what is the variance of an entry of x Aᵀ?",
    same_in_every_case,
)
def same_whatever_in_is(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 0.05)(rng, n_in, n_out, r)


@init.rule(
    "the variance of x Aᵀ is not between 1/3 and 1 in every shape",
    "What is the variance of a sum of in independent products, and which variance must an entry of A then have?",
    in_any(is_out_of_bounds),
)
def out_of_bounds(rng, n_in, n_out, r):
    return with_deviation(lambda n_in, n_out, r: 3 / np.sqrt(n_in))(rng, n_in, n_out, r)


EXERCISE = Exercise(
    title="The start",
    kind="write",
    minutes=10,
    difficulty=1,
    needs=["01"],
    parts=[init],
    hints=(
        "Two conditions pull in opposite directions: B A must be 0, and not everything may be 0.",
        "An entry of x Aᵀ is a sum of in products. If each has the variance σ², what is that of the sum?",
    ),
    viva=[
        Viva(
            "Which gradient is zero now, and for how long?",
            "With B = 0 that of A, since dA has B as a factor; dB is not, since x Aᵀ is not. After one step B is not "
            "zero, and from the second on A learns too. With A = 0 it is the other way round.",
            "Both, B never moves since it starts at zero. Or: neither.",
        ),
        Viva(
            "Why not start with two small random matrices?",
            "The model would begin somewhere else than the pretrained one, by s B A in every layer, and no checkpoint "
            "holds that start. One zero factor costs nothing: it moves in the first step.",
            "It would be just as good, random numbers have mean zero.",
        ),
    ],
    asks=["B2", "C1", "C2", "C3", "C10"],
    derivation="lora",
)
