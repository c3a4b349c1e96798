"""23 · One batch, many adapters

A server holds one base and many adapters. In one batch each sample asks for
its own adapter, or for none:

    y[n] = x[n] Wᵀ + s (x[n] Aᵀ) Bᵀ     with the A, B and s of adapter idx[n]
    y[n] = x[n] Wᵀ                      where idx[n] = -1

    x (batch, tokens, in)    W (out, in)    y (batch, tokens, out)
    As       a list of matrices A (r, in), Bs of matrices B (out, r), in the
             same order; r may differ from adapter to adapter
    scales   (adapters,), the scale s of each
    idx      (batch,), integers from -1 to adapters - 1. Several samples may
             share an adapter, and an adapter may have no sample

Two things are asked of a server. Samples are not taken one by one in Python: a
loop may go over the adapters, of which there are few, not over the samples.
And no (out, in) matrix B A is formed: each would be as large as W.

One number by hand, with in = out = tokens = 1, and a batch of two: x = 2, 3,
W = 5. One adapter, A = 7, B = 11, s = 0.5, and idx = 0, -1.
y = 10 + 0.5 · 2 · 77 = 87, and 15.
"""

import numpy as np


def multi_lora_forward(x, W, As, Bs, scales, idx):
    """Return y.

    >>> x, W, A, B = np.array([[[2.0]], [[3.0]]]), np.array([[5.0]]), np.array([[7.0]]), np.array([[11.0]])
    >>> multi_lora_forward(x, W, [A], [B], np.array([0.5]), np.array([0, -1])).ravel()
    array([87., 15.])
    """
    ### BEGIN SOLUTION
    y = x @ W.T
    for i, (A, B, s) in enumerate(zip(As, Bs, scales, strict=True)):
        mine = idx == i
        y[mine] += s * (x[mine] @ A.T) @ B.T
    return y
    ### END SOLUTION


### THE CHECK

from ... import ops
from ..measure import instructions, peak_bytes
from ..exercise import Exercise, Viva
from ..parts import Value

# tokens, in, out, ranks, idx of each case: idx is never in order alone, and once all ask for none
CASES = [
    (3, 5, 4, (2, 2), (1, 0, -1, 0, 1)),
    (2, 4, 6, (1, 3, 2), (2, -1, 0, 1, 2, -1)),
    (4, 6, 6, (3, 2), (-1, 0, 1)),
    (1, 7, 3, (2, 4, 1, 3), (3, 1, 1, 0)),
    (2, 3, 5, (2, 5), (-1, -1, -1, -1)),
    (5, 3, 4, (4, 1, 2), (0, 2, -1, 2, 0, 2)),
]


def draw(rng, i):
    tokens, n, m, ranks, idx = CASES[i]
    return {
        "x": rng.standard_normal((len(idx), tokens, n)),
        "W": rng.standard_normal((m, n)),
        "As": [rng.standard_normal((r, n)) for r in ranks],
        "Bs": [rng.standard_normal((m, r)) for r in ranks],
        "scales": 0.4 + np.arange(len(ranks)) + rng.uniform(0, 0.5, len(ranks)),
        "idx": np.array(idx),
    }


def one_by_one(x, W, As, Bs, scales, idx):
    """The layer of the library, for each sample."""
    y = [x_n @ W.T for x_n in x]
    for n in np.flatnonzero(idx >= 0):
        i = idx[n]
        y[n] = y[n] + ops.lora_forward(x[n], As[i], Bs[i], scales[i])[0]
    return np.stack(y)


def steps_of_python(function, samples):
    """How many instructions Python itself carries out for a batch of so many samples."""
    x, W = np.ones((samples, 2, 3)), np.ones((4, 3))
    As, Bs = [np.ones((1, 3)), np.ones((2, 3))], [np.ones((4, 1)), np.ones((4, 2))]
    return instructions(function, x, W, As, Bs, np.array([0.5, 2.0]), np.arange(samples) % 3 - 1)


def loops_over_samples(function):
    """Is there more to do in Python for 60 samples than for 12? Whatever loops takes a few instructions for each."""
    few, many = steps_of_python(function, 12), steps_of_python(function, 60)
    return many - few >= 48


def forms_the_product(function, n=300):
    """Does it take the memory of an (out, in) matrix beside those that it is given?"""
    A, B = np.ones((1, n)), np.ones((n, 1))
    arguments = np.ones((3, 1, n)), np.ones((n, n)), [A, A], [B, B], np.array([0.5, 2.0]), np.array([1, -1, 0])
    return peak_bytes(function, *arguments) > 8 * n * n / 2


forward = Value(multi_lora_forward, "y", truth=one_by_one, draw=draw)


def layer(x, W, As, Bs, scales, idx, base=1.0):
    """y of the adapters at idx; base times the base path."""
    y = base * x @ W.T
    for i in range(len(As)):
        mine = idx == i
        y[mine] += scales[i] * (x[mine] @ As[i].T) @ Bs[i].T
    return y


@forward.mistake(
    "{it} has the last adapter where idx is -1, as NumPy counts from the end: those samples ask for none",
    "What is scales[-1] in NumPy, and what does -1 mean here?",
)
def last_for_none(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx % len(As))


@forward.mistake(
    "{it} has the first adapter where idx is -1: those samples ask for none", "Which adapter has a sample with idx -1?"
)
def first_for_none(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, np.maximum(idx, 0))


@forward.mistake("{it} is zero where idx is -1: the base path is missing there", "What does a sample with idx -1 get?")
def zero_for_none(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx) * (idx >= 0)[:, None, None]


@forward.mistake("{it} has no base path", "What must y be where every B is zero?")
def no_base(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx, base=0.0)


@forward.mistake("{it} has the base path once for each adapter", "How often is x Wᵀ in y?")
def base_for_each(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx, base=float(len(As)))


@forward.mistake("{it} has the base path twice where a sample has an adapter", "How often is x Wᵀ in y?")
def base_twice(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx) + x @ W.T * (idx >= 0)[:, None, None]


@forward.mistake(
    "{it} has no base path where a sample has an adapter: the low-rank path replaces it, and is not added",
    "What is in y[n] before the low-rank path comes to it, and what after?",
)
def base_replaced(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, idx) - x @ W.T * (idx >= 0)[:, None, None]


@forward.mistake(
    "{it} takes the first adapter for none: those that ask for adapter 0 get the base alone",
    "Which numbers in idx stand for an adapter?",
)
def none_for_the_first(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, np.where(idx == 0, -1, idx))


@forward.mistake("{it} has no low-rank path", "Which two paths lead from x to y?")
def no_adapters(x, W, As, Bs, scales, idx):
    return x @ W.T


@forward.mistake("{it} has no scale: s is left out", "Where s is 0, what must y be?")
def no_scale(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales**0, idx)


@forward.mistake(
    "{it} has one scale for all samples, that of the first adapter", "Whose scale does a sample with idx 1 get?"
)
def one_scale(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales[0] + 0 * scales, idx)


@forward.mistake("{it} has one scale for all, the mean of them", "Whose scale does a sample with idx 1 get?")
def mean_scale(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales.mean() + 0 * scales, idx)


@forward.mistake("in {it} the scale is divided by r: it is s already, not α", "What stands in scales, α or α/r?")
def divided_by_r(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales / np.array([len(A) for A in As]), idx)


@forward.mistake("the scale is on the base path of {it} too", "Does s change what the frozen layer does?")
def scale_on_both(x, W, As, Bs, scales, idx):
    s = np.where(idx >= 0, scales[idx], 1.0)[:, None, None]
    return s * layer(x, W, As, Bs, scales**0, idx)


@forward.mistake("{it} has the first adapter for every sample that has one", "What does idx say of the second sample?")
def first_for_all(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, np.minimum(idx, 0))


@forward.mistake("{it} has every adapter in every sample", "How many adapters act on one sample?")
def all_for_all(x, W, As, Bs, scales, idx):
    return x @ W.T + sum(layer(x, W, As, Bs, scales, 0 * idx + i, base=0.0) for i in range(len(As)))


@forward.mistake(
    "{it} takes idx to start from 1: each sample has the adapter before its own", "Which adapter does idx 0 name?"
)
def counted_from_one(x, W, As, Bs, scales, idx):
    return layer(x, W, As, Bs, scales, np.where(idx < 0, -1, (idx - 1) % len(As)))


@forward.mistake(
    "{it} is in the order of the adapters, not in that of the batch: samples were grouped and not put back",
    "Whose y is y[0] after you sort by idx?",
)
def not_put_back(x, W, As, Bs, scales, idx):
    order = np.argsort(idx, kind="stable")
    return layer(x[order], W, As, Bs, scales, idx[order])


@forward.mistake(
    "{it} cuts every adapter to the smallest rank, so that they fit in one array",
    "What is lost of an A of 5 rows, if 2 are kept?",
)
def cut_to_the_smallest(x, W, As, Bs, scales, idx):
    r = min(len(A) for A in As)
    return layer(x, W, [A[:r] for A in As], [B[:, :r] for B in Bs], scales, idx)


def padded(x, W, As, Bs, scales, idx, mode, **how):
    """All A and all B of the largest rank, filled up in this way."""
    r = max(len(A) for A in As)
    As = [np.pad(A, ((0, r - len(A)), (0, 0)), mode, **how) for A in As]
    return layer(x, W, As, [np.pad(B, ((0, 0), (0, r - B.shape[1])), mode, **how) for B in Bs], scales, idx)


@forward.mistake(
    "{it} shows that smaller ranks are filled up with ones: they add to the output",
    "What must stand in the rows that are added to A, or the columns that are added to B, so that B A stays as it is?",
)
def padded_with_ones(*given):
    return padded(*given, "constant", constant_values=1.0)


@forward.mistake(
    "{it} shows that smaller ranks are filled up with their last row and column again: they add to the output",
    "What must stand in the rows that are added to A, or the columns that are added to B, so that B A stays as it is?",
)
def padded_with_the_last(*given):
    return padded(*given, "edge")


@forward.mistake(
    "{it} shows that smaller ranks are filled up from their first row and column on: they add to the output",
    "What must stand in the rows that are added to A, or the columns that are added to B, so that B A stays as it is?",
)
def padded_from_the_first(*given):
    return padded(*given, "wrap")


@forward.rule(
    "{it} goes through the samples one by one in Python: every product is a small one",
    "Which samples can share one product?",
    loops_over_samples,
)
def loop_over_samples(*given):
    return one_by_one(*given)


@forward.rule(
    "{it} forms an (out, in) matrix B A, which is as large as W",
    "How many entries does B A have, and how many does x Aᵀ have?",
    forms_the_product,
)
def product_formed(x, W, As, Bs, scales, idx):
    y = x @ W.T
    for i in range(len(As)):
        y[idx == i] = x[idx == i] @ (W + scales[i] * Bs[i] @ As[i]).T
    return y


EXERCISE = Exercise(
    title="One batch, many adapters",
    kind="write",
    minutes=20,
    difficulty=3,
    needs=["01"],
    parts=[forward],
    hints=(
        "What do all samples have in common, whatever their adapter is? Do that first, for the whole batch at once.",
        "For one adapter: which samples are its own, how do you take them out of x, and how do you put what you have "
        "computed back into their places?",
    ),
    viva=[
        Viva(
            "Why does a server not merge, if a merged model is as fast as its base?",
            "A merged W serves one adapter. With many in a batch, each would need a W of its own in memory, and the "
            "base's product could no longer be one for the whole batch.",
            "Merging takes too long to do for each request.",
        ),
        Viva(
            "Ranks differ. How do you put all A in one array, and what does it cost?",
            "Rows of zeros up to the largest rank: they add nothing to B A, and cost memory and work. So group "
            "by rank, or take the samples of one adapter at a time.",
            "Fill up with small random numbers; they hardly matter.",
        ),
    ],
    asks=["G3", "I8"],
    derivation="lora",
)
