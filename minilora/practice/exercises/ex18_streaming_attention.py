"""18 · Attention in blocks

One head of causal attention, computed from one block of keys at a time:

    S = q kᵀ / √D        P = softmax(S), by rows        o = P v

    q (Tq, D)    k, v (Tk, D)    o (Tq, D)    lse (Tq,)

lse is the log of the sum of the exponentials of the scores that a query sees,
a number for each query.

The queries are the last Tq of Tk positions, as in decoding with a cache: query
i is at position Tk - Tq + i and sees the keys at positions 0 to its own. Where
Tq > Tk, the first queries come before every key and see none of them: their
o is 0 and their lse is -∞.

Keys and values are read in blocks of `block` positions, from the first on; the
last block may be shorter. No array may be as large as (Tq, Tk): what is kept
between blocks is a few numbers a query. Scores may be in the thousands, and the
result must be that of the softmax over all keys at once.

One number by hand: D = 1, one query q = 1, two keys k = 0 and ln 3 = 1.0986
with v = 4 and 8, block 1. The exponentials of the scores are 1 and 3:
P = 1/4, 3/4, o = 1/4 · 4 + 3/4 · 8 = 7, lse = ln (1 + 3) = 1.3863.
"""

import numpy as np


def streaming_attention(q, k, v, block):
    """Return o, lse.

    >>> k, v = np.array([[0.0], [np.log(3.0)]]), np.array([[4.0], [8.0]])
    >>> o, lse = streaming_attention(np.ones((1, 1)), k, v, 1)
    >>> round(float(o[0, 0]), 6), round(float(lse[0]), 4)
    (7.0, 1.3863)
    """
    ### BEGIN SOLUTION
    (Tq, D), Tk = q.shape, len(k)
    position = np.arange(Tk - Tq, Tk)[:, None]
    m = np.full((Tq, 1), -1e30)  # finite: -∞ - m must be -∞
    Z, o = np.zeros((Tq, 1)), np.zeros((Tq, D))
    for j in range(0, Tk, block):
        keys = np.arange(j, min(j + block, Tk))
        S = np.where(keys <= position, q @ k[keys].T / np.sqrt(D), -np.inf)
        m_new = np.maximum(m, S.max(axis=1, keepdims=True))
        c, E = np.exp(m - m_new), np.exp(S - m_new)
        Z, o, m = c * Z + E.sum(axis=1, keepdims=True), c * o + E @ v[keys], m_new
    sees = Z > 0
    Z = np.where(sees, Z, 1.0)
    return o / Z, np.where(sees, m + np.log(Z), -np.inf)[:, 0]
    ### END SOLUTION


### THE CHECK


from ...ops.blockwise_attention import blockwise_attention_forward
from ..measure import peak_bytes
from ..exercise import Exercise, Viva
from ..parts import Value

# Tq, Tk, D, block, and the size of the scores of each case
SHAPES = [(4, 11, 5, 3, 2), (3, 10, 4, 2, 3), (7, 7, 2, 16, 1.5), (9, 9, 3, 4, 1), (6, 8, 6, 3, 300), (9, 5, 7, 2, 2.5)]


def draw(rng, i):
    Tq, Tk, D, block, size = SHAPES[i]
    q, k, v = rng.standard_normal((Tq, D)), rng.standard_normal((Tk, D)), rng.standard_normal((Tk, D))
    if size > 100:  # growing along the keys, so that the largest score comes late
        q, k = np.abs(q) + 0.5, (np.abs(k) + 0.5) * np.linspace(0.2, 1, Tk)[:, None]
    return {"q": q, "k": size * k, "v": v, "block": block}


def truth(q, k, v, block):
    """The library's attention of N tokens in one block, with what is missing at the front of q or of k and v padded."""
    N = max(len(q), len(k))
    padded = [np.pad(a, ((N - len(a), 0), (0, 0)))[None] for a in (q, k, v)]
    o, cache = blockwise_attention_forward(*padded, q.shape[1], True, np.arange(N)[None] >= N - len(k), block=N)
    lse = cache.L[0, 0, -len(q) :, 0]
    return o[0, -len(q) :], np.where(lse > -1e29, lse, -np.inf)


def forms_the_scores(function):
    """Does it take half the memory of all scores, 4 MB here, or more?"""
    T = 1024
    q, k, v = np.zeros((T, 2)), np.zeros((T, 2)), np.zeros((T, 2))
    return peak_bytes(function, q, k, v, 32) > 8 * T * T / 2


attention = Value(streaming_attention, "o lse", truth=truth, draw=draw)


def streamed(q, k, v, block, root=None, **changes):
    """The solution with something changed: see[key, position, j], the order of the updates, the result."""
    get = changes.get
    (Tq, D), Tk = q.shape, len(k)
    root = np.sqrt(D) if root is None else root
    position = np.arange(get("first", Tk - Tq), get("first", Tk - Tq) + Tq)[:, None]
    hidden, sees = get("hidden", -np.inf), get("sees", lambda keys, at, j: keys <= at)
    m, Z, o = np.full((Tq, 1), get("start", -1e30)), np.zeros((Tq, 1)), np.zeros((Tq, D))
    for j in range(0, get("end", Tk), block):
        keys = np.arange(j, min(j + block, Tk))
        S = np.where(sees(keys, position, j), q @ k[keys].T / root, hidden)
        m_new = get("largest", np.maximum)(m, S.max(axis=1, keepdims=True))
        c, E = get("rescale", lambda m, m_new: np.exp(m - m_new))(m, m_new), np.exp(S - m_new)
        for_Z, for_o = get("factors", lambda c: (c, c))(c)
        new = get("new", lambda c: 1)(c)
        Z, o, m = for_Z * Z + new * E.sum(axis=1, keepdims=True), for_o * o + new * (E @ v[keys]), m_new
    if get("guard", True):
        Z = np.where(Z > 0, Z, 1.0)
    o, lse = o / Z, np.where(m > -1e29, m + np.log(Z), -np.inf) if get("guard", True) else m + np.log(Z)
    return o, get("lse", lambda lse, m, Z: lse)(lse, m, Z)[:, 0]


def of_blocks(q, k, v, block, combine):
    """What attention to each block alone gives, put together by `combine`."""
    Tq, Tk = len(q), len(k)
    at = np.arange(Tk - Tq, Tk)
    parts, sums = [], []
    for j in range(0, Tk, block):
        S = np.where(
            np.arange(j, min(j + block, Tk)) <= at[:, None], q @ k[j : j + block].T / np.sqrt(q.shape[1]), -1e30
        )
        m = S.max(axis=1, keepdims=True)
        E = np.exp(S - m) * (S > -1e29)
        Z = E.sum(axis=1, keepdims=True)
        parts.append(E @ v[j : j + block] / np.where(Z > 0, Z, 1))
        sums.append(np.where(Z > 0, m + np.log(np.where(Z > 0, Z, 1)), -np.inf)[:, 0])
    seen = np.maximum(sum(np.isfinite(s) * 1.0 for s in sums), 1)[:, None]
    return combine(sum(parts), seen), np.logaddexp.reduce(sums, axis=0)


@attention.mistake(
    "{it} adds sums of different blocks that were taken with different maxima",
    "After the first block, what has been subtracted from its scores? And after a later one with a larger maximum?",
)
def never_rescaled(q, k, v, block):
    return streamed(q, k, v, block, factors=lambda c: (1, 1))


@attention.mistake(
    "{it}: of the two sums that are kept, only that of the exponentials is rescaled when the maximum moves",
    "Which of the sums that you keep contain exp(S - m)?",
)
def values_not_rescaled(q, k, v, block):
    return streamed(q, k, v, block, factors=lambda c: (c, 1))


@attention.mistake(
    "{it} rescales old sums by the inverse factor",
    "If the maximum grows, do the old exponentials become larger or smaller than they were?",
)
def rescaled_the_wrong_way(q, k, v, block):
    return streamed(q, k, v, block, rescale=lambda m, m_new: np.exp(np.where(m > -1e29, m_new - m, 0)))


@attention.mistake(
    "{it} rescales what was just added as well as the old sums",
    "With which maximum was the newest block's exponential taken?",
)
def new_block_rescaled_too(q, k, v, block):
    return streamed(q, k, v, block, new=lambda c: np.where(c > 0, c, 1))


@attention.mistake(
    "{it} takes a softmax within each block and adds the blocks' results",
    "What must the weights of one query sum to, over the keys of all blocks?",
)
def softmax_in_each_block(q, k, v, block):
    return of_blocks(q, k, v, block, lambda total, seen: total)


@attention.mistake(
    "{it} is the mean of what attention to each block alone gives",
    "Does a block with large scores weigh more than one with small scores?",
)
def mean_of_the_blocks(q, k, v, block):
    return of_blocks(q, k, v, block, lambda total, seen: total / seen)


@attention.mistake(
    "{it} has every query attend only to the keys of its own block: that is local attention, another function",
    "Which keys does the last query see?",
)
def own_block_only(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: (keys <= at) & (keys // block == at // block))


@attention.mistake(
    "{it} has no causal mask: queries see keys that come after them",
    "Which keys does the query at position 0 see?",
)
def no_mask(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: keys == keys)


@attention.mistake(
    "in {it} the causal mask is one of whole blocks: a query sees all keys of the block in which it lies",
    "In the block on the diagonal, which keys come after which queries?",
)
def diagonal_block_open(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: (j <= at) & (keys >= 0))


@attention.mistake(
    "in {it} the block on the diagonal is left out: a query sees only the blocks before the one in which it lies",
    "Does a query see the key at its own position?",
)
def diagonal_block_closed(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: keys < at // block * block)


@attention.mistake("in {it} a query does not see the key at its own position", "Up to which position does it see?")
def own_key_hidden(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: keys < at)


@attention.mistake(
    "in {it} the mask counts keys from the start of each block, not from the first key",
    "At which position is the first key of the second block?",
)
def mask_counts_within_the_block(q, k, v, block):
    return streamed(q, k, v, block, sees=lambda keys, at, j: keys - j <= at)


@attention.mistake(
    "in {it} query i is at position i: right only where there are as many queries as keys",
    "With one query and a cache of ten keys, which of them does it see?",
)
def queries_at_the_front(q, k, v, block):
    return streamed(q, k, v, block, first=0)


@attention.mistake(
    "in {it} a query that sees no key attends to all of them alike: it is hidden by a large number, not by -∞",
    "What is the sum over no key at all?",
)
def mean_where_nothing_is_seen(q, k, v, block):
    return streamed(q, k, v, block, hidden=-1e9)


@attention.mistake(
    "{it} is not a number where a query sees no key: there -∞ is subtracted from -∞, or 0 divided by 0",
    "For such a query, what are the maximum and the sum after the last block?",
)
def nothing_seen_is_nan(q, k, v, block):
    return streamed(q, k, v, block, start=-np.inf, guard=False)


@attention.mistake(
    "{it} is not a number where a query sees no key of one block: that block's maximum alone is subtracted, "
    "and it is -∞",
    "Of which scores is the number that you subtract the largest?",
)
def maximum_of_the_block(q, k, v, block):
    return streamed(q, k, v, block, largest=lambda m, block_max: block_max)


@attention.mistake(
    "{it} is not finite where scores are large: what is subtracted from a row's, if anything, is not their largest",
    "What are exp(1000) and exp(-1000), and which number makes the largest exponent of each row 0?",
)
def overflows(q, k, v, block):
    return streamed(q, k, v, block, start=0.0, largest=lambda m, block_max: m)


@attention.mistake(
    "{it} lacks the maximum: it is the log of the sum that was kept", "By which factor is that sum too small?"
)
def no_maximum_in_lse(q, k, v, block):
    return streamed(q, k, v, block, lse=lambda lse, m, Z: np.where(m > -1e29, np.log(Z), -np.inf))


@attention.mistake("{it} is the largest score alone", "For two equal scores, by how much is lse larger than either?")
def maximum_for_lse(q, k, v, block):
    return streamed(q, k, v, block, lse=lambda lse, m, Z: np.where(m > -1e29, m, -np.inf))


@attention.mistake("{it} is the sum of exponentials, of which the log was not taken", "What is lse of a single score?")
def no_log(q, k, v, block):
    return streamed(q, k, v, block, lse=lambda lse, m, Z: np.exp(lse))


@attention.mistake("{it}: the scores are not divided by √D", "In the equation of S, what is q kᵀ divided by?")
def no_root(q, k, v, block):
    return streamed(q, k, v, block, root=1.0)


@attention.mistake(
    "{it}: the scores are divided by D, not by its root", "In the equation of S, what is q kᵀ divided by?"
)
def divided_by_D(q, k, v, block):
    return streamed(q, k, v, block, root=q.shape[1])


@attention.mistake(
    "{it} leaves out the last keys where their number is not a multiple of the block's",
    "With 11 keys and blocks of 3, how many blocks are there?",
)
def short_block_left_out(q, k, v, block):
    return streamed(q, k, v, block, end=len(k) // block * block)


@attention.mistake(
    "{it} is the sum over v, not divided by the sum of the exponentials", "What must one query's weights sum to?"
)
def not_divided(q, k, v, block):
    o, lse = streamed(q, k, v, block)
    largest = streamed(q, k, v, block, lse=lambda lse, m, Z: m)[1]
    return o * np.exp(np.where(largest > -1e29, lse - largest, 0))[:, None], lse


@attention.rule(
    "{it} takes the memory of all (Tq, Tk) scores at once",
    "How many scores are there for one block of keys, and how many in all?",
    forms_the_scores,
)
def all_scores_at_once(q, k, v, block):
    return streamed(q, k, v, len(k))


EXERCISE = Exercise(
    title="Attention in blocks",
    kind="write",
    minutes=40,
    difficulty=4,
    needs=["12"],
    parts=[attention],
    hints=(
        "Write it first for a single block, with the largest score subtracted from each row. Which two sums do you "
        "need at the end? Then ask what a second block does to them.",
        "When a later block has a larger maximum, everything summed so far was taken with an older one. How does "
        "exp(S - old) become exp(S - new), without S? And what if a row's scores in a block are all -∞?",
    ),
    viva=[
        Viva(
            "Why can a softmax be computed in blocks exactly, although each weight depends on all scores?",
            "Each row's weights share one divisor, and a shift of the maximum is one factor for the whole row. So "
            "sums over blocks can be put right afterwards with one number a row, without the scores.",
            "It cannot: attention in blocks is an approximation that is good when blocks are large.",
        ),
        Viva(
            "Why is lse kept, and the matrix of weights not?",
            "With lse the backward recomputes a block of weights as exp(S - lse), from q and k; and two results over "
            "different keys are merged by it. It is one number a query instead of one for each key.",
            "It is the loss of the attention layer, which the backward starts from.",
        ),
    ],
    asks=["I6"],
    derivation="blockwise_attention",
)
