"""12 · Attention's backward

a. Every head by itself, with a softmax over the keys:

    S = q kᵀ/√D + mask        P = softmax(S)        y = P v

    q, k, v, y, dy and dq, dk, dv (batch, tokens, heads, D)
    mask (tokens, tokens): the same for every sample and head. Row i is query
    i; 0 where it sees the key, -1e9 where it does not

dy is ∂L/∂y. Return dq, dk, dv. Nothing is kept from the forward.

One number by hand, with D = 1, two keys and no mask, for one query: q = 1,
k = (0, ln 3), v = (4, 8), dy = 1. S = (0, ln 3), P = (1/4, 3/4), y = 7.
∂P[1]/∂S[1] = P[1] (1 - P[1]) = 3/16, and what P[1] gains P[0] loses: y rises
by 3/16 · (8 - 4) = 3/4 for each unit of S[1]. So dk[1] = 3/4, and
dv = (1/4, 3/4).

b. In cross-attention x asks, and a memory answers (the encoder's output):

    q = project(x, 0)      k = project(memory, 1)      v = project(memory, 2)
    project(z, i) = z W[i]ᵀ + s (z A[i]ᵀ) B[i]ᵀ        s = α/r

    x, dx (batch, queries, in)      memory, dmemory (batch, keys, in)
    dq (batch, queries, out)        dk, dv (batch, keys, out)
    W (3, out, in), frozen          A, dA (3, r, in)    B, dB (3, out, r)

Index 0 is for q, 1 for k, 2 for v. Given dq, dk and dv, the gradients of a
loss in q, k and v, return dx, dmemory, dA and dB. There may be as many queries
as keys, or not. With every length 1, x = 2, W = (3, 5, 7), A = (1, 1, 1),
B = (1, 2, 3), α = 4, dq = 1: dx = 3 + 4 · 1 · 1 = 7, dB[0] = 4 · 1 · 2 = 8.
"""

import numpy as np


def attention_backward(dy, q, k, v, mask):
    """Return dq, dk, dv.

    >>> dy, q, k, v = np.array([[1, 0], [1, 1], [0, np.log(3)], [4, 8]]).reshape(4, 1, 2, 1, 1)
    >>> dq, dk, dv = attention_backward(dy, q, k, v, np.zeros((2, 2)))
    >>> dk.ravel().round(4), dv.ravel().round(4)
    (array([-0.75,  0.75]), array([0.25, 0.75]))
    """
    ### BEGIN SOLUTION
    root = np.sqrt(q.shape[-1])
    S = np.einsum("bihd,bjhd->bhij", q, k) / root + mask
    P = np.exp(S - S.max(axis=-1, keepdims=True))
    P /= P.sum(axis=-1, keepdims=True)
    dP = np.einsum("bihd,bjhd->bhij", dy, v)
    dS = P * (dP - (P * dP).sum(axis=-1, keepdims=True))
    dq = np.einsum("bhij,bjhd->bihd", dS, k) / root
    dk = np.einsum("bhij,bihd->bjhd", dS, q) / root
    dv = np.einsum("bhij,bihd->bjhd", P, dy)
    return dq, dk, dv
    ### END SOLUTION


def cross_attention_backward(dq, dk, dv, x, memory, W, A, B, alpha):
    """Return dx, dmemory, dA, dB.

    >>> one, three = np.ones((1, 1, 1)), np.ones((3, 1, 1))
    >>> W, B = np.array([3.0, 5, 7]).reshape(3, 1, 1), np.array([1.0, 2, 3]).reshape(3, 1, 1)
    >>> dx, dmemory, dA, dB = cross_attention_backward(one, one, one, 2 * one, 6 * one, W, three, B, 4.0)
    >>> float(dx[0, 0, 0]), float(dB[0, 0, 0])
    (7.0, 8.0)
    """
    ### BEGIN SOLUTION
    s = alpha / A.shape[1]
    dz, dA, dB = [], np.zeros_like(A), np.zeros_like(B)
    for i, (dy, z) in enumerate([(dq, x), (dk, memory), (dv, memory)]):
        dh = s * dy @ B[i]
        dz.append(dy @ W[i] + dh @ A[i])
        dA[i] = np.einsum("btr,bti->ri", dh, z)
        dB[i] = s * np.einsum("bto,btr->or", dy, z @ A[i].T)
    return dz[0], dz[1] + dz[2], dA, dB
    ### END SOLUTION


### THE CHECK

from dataclasses import replace
from functools import cached_property

from ...verify.problems import problems
from ...verify.problems.attention import from_weights, root, weights
from ...verify.problems.low_rank import backward
from ..exercise import Exercise, Viva
from ..parts import Gradient, Value

# batch, queries, keys, in, out, r: in the first two cases as many queries as keys
SHAPES = [
    (2, 4, 4, 5, 3, 2),
    (3, 2, 2, 4, 6, 3),
    (2, 3, 5, 6, 4, 3),
    (4, 6, 2, 3, 7, 2),
    (3, 5, 7, 7, 5, 4),
    (5, 1, 6, 4, 4, 1),
]


def draw(rng, i):
    batch, queries, keys, width_in, width_out, r = SHAPES[i]
    dq, x = rng.standard_normal((batch, queries, width_out)), rng.standard_normal((batch, queries, width_in))
    dk, dv = rng.standard_normal((2, batch, keys, width_out))
    memory, W = rng.standard_normal((batch, keys, width_in)), rng.standard_normal((3, width_out, width_in))
    A, B = rng.standard_normal((3, r, width_in)), rng.standard_normal((3, width_out, r))
    alpha = r + float(rng.uniform(1.5, 9))
    return {"dq": dq, "dk": dk, "dv": dv, "x": x, "memory": memory, "W": W, "A": A, "B": B, "alpha": alpha}


def truth(dq, dk, dv, x, memory, W, A, B, alpha):
    reads = zip((dq, dk, dv), (x, memory, memory), W, A, B, strict=True)
    of_q, of_k, of_v = (backward(dy, z, A, B, W, 1.0, alpha, len(A), 0.0) for dy, z, W, A, B in reads)
    dA, dB = (np.stack([of[name] for of in (of_q, of_k, of_v)]) for name in ("dA", "dB"))
    return of_q["dx"], of_k["dx"] + of_v["dx"], dA, dB


class Attention(Gradient):
    """The problem, and a mistake that it does not have. With D in dq and dk too, that one stands beside scale_twice."""

    @cached_property
    def bank(self):
        bank = replace(problems()[self.problem], faults=dict(problems()[self.problem].faults))
        bank.add(
            "scores_divided_by_D",
            lambda dy, q, k, v, mask: from_weights(weights(q / root(q), k, mask), dy, q, k, v),
        )(
            "the scores are divided by D, not by √D, when P is recomputed: {it} rests on other weights than forward's",
            "By what does the first equation divide q kᵀ?",
        )
        return bank


attention = Attention(attention_backward, "dq dk dv", problem="causal_attention", picture="dq dk dv")
cross = Value(cross_attention_backward, "dx dmemory dA dB", truth=truth, draw=draw)


def parts_of(dys, inputs, W, A, B, s, base=1):
    """What each of the three projections passes to its input, dA and dB. Each may be given another input."""
    dhs = [s * dy @ B_i for dy, B_i in zip(dys, B, strict=True)]
    dzs = [base * dy @ W_i + dh @ A_i for dy, dh, W_i, A_i in zip(dys, dhs, W, A, strict=True)]
    dA = [np.einsum("btr,bti->ri", dh, z) for dh, z in zip(dhs, inputs, strict=True)]
    dB = [s * np.einsum("bto,btr->or", dy, z @ A_i.T) for dy, z, A_i in zip(dys, inputs, A, strict=True)]
    return *dzs, np.stack(dA), np.stack(dB)


def fed_with(pick):
    """The adapters are given other inputs than q, k and v are made of."""

    def wrong(dq, dk, dv, x, memory, W, A, B, alpha):
        of_q, of_k, of_v, dA, dB = parts_of((dq, dk, dv), pick(x, memory), W, A, B, alpha / A.shape[1])
        return of_q, of_k + of_v, dA, dB

    return wrong


def scaled_by(s):
    def wrong(dq, dk, dv, x, memory, W, A, B, alpha):
        of_q, of_k, of_v, dA, dB = parts_of((dq, dk, dv), (x, memory, memory), W, A, B, s(alpha, A))
        return of_q, of_k + of_v, dA, dB

    return wrong


def joined_by(join, **base):
    """dx and dmemory are another function of what q, k and v pass down."""

    def wrong(dq, dk, dv, x, memory, W, A, B, alpha):
        *dzs, dA, dB = parts_of((dq, dk, dv), (x, memory, memory), W, A, B, alpha / A.shape[1], **base)
        return *join(*dzs), dA, dB

    return wrong


def add(name, wrong, says, asks):
    wrong.__name__ = name
    cross.mistake(says, asks)(wrong)


for name, pick, says, asks in [
    (
        "streams_exchanged",
        lambda x, memory: (memory, x, x),
        "{it}: the adapter of q is fed with the memory, and those of k and v with x",
        "Which of the two streams does each W read? An adapter reads what its W reads.",
    ),
    (
        "query_adapter_reads_memory",
        lambda x, memory: (memory, memory, memory),
        "{it}: the adapter of q is fed with the memory, as those of k and v are",
        "From which stream does cross-attention make the queries, and from which the keys and values?",
    ),
    (
        "key_adapter_reads_x",
        lambda x, memory: (x, x, memory),
        "{it}: the adapter of k is fed with x, from which q is made",
        "From which stream are the keys made, whichever queries read them?",
    ),
    (
        "value_adapter_reads_x",
        lambda x, memory: (x, memory, x),
        "{it}: the adapter of v is fed with x, from which q is made",
        "From which stream are the values made, whichever queries read them?",
    ),
    (
        "all_read_x",
        lambda x, memory: (x, x, x),
        "{it}: all three adapters are fed with x, as in self-attention",
        "What does the memory do in your function?",
    ),
]:
    add(name, fed_with(pick), says, asks)

for name, s, says, asks in [
    (
        "no_scale",
        lambda alpha, A: 1,
        "{it} has no scale: the low-rank paths are not multiplied by α/r",
        "By what does forward multiply the low-rank path, and is it in each of your gradients?",
    ),
    (
        "not_divided_by_r",
        lambda alpha, A: alpha,
        "the scale in {it} is α, not divided by r",
        "Which two numbers make up the scale?",
    ),
    (
        "divided_by_three",
        lambda alpha, A: alpha / len(A),
        "the scale in {it} is α/3: the first axis of A counts the projections, not the rank",
        "What do the three axes of A count?",
    ),
    (
        "scale_twice",
        lambda alpha, A: (alpha / A.shape[1]) ** 2,
        "the scale α/r is applied twice in {it}",
        "Which of the quantities that you multiply contains the scale already?",
    ),
]:
    add(name, scaled_by(s), says, asks)

for name, join, says, asks in [
    (
        "values_path_only",
        lambda of_q, of_k, of_v: (of_q, of_v),
        "{it} holds what comes back through the values alone: the keys' part is overwritten, not added",
        "By how many paths does the memory reach y?",
    ),
    (
        "keys_path_only",
        lambda of_q, of_k, of_v: (of_q, of_k),
        "{it} holds what comes back through the keys alone",
        "By how many paths does the memory reach y?",
    ),
    (
        "mean_of_both_paths",
        lambda of_q, of_k, of_v: (of_q, (of_k + of_v) / 2),
        "{it} is the mean of what comes back through keys and values, but must be their sum",
        "If the memory moves a little, do the changes along both paths add up or average?",
    ),
    (
        "keys_in_dx",
        lambda of_q, of_k, of_v: (of_q + of_k, of_v),
        "{it}: what comes back through the keys is given to x, but the keys are made from the memory",
        "From which stream are the keys made?",
    ),
    (
        "all_in_dx",
        lambda of_q, of_k, of_v: (of_q + of_k + of_v, of_k + of_v),
        "{it} holds what comes back through q, k and v, as in self-attention",
        "Which of q, k and v does a change of x reach here?",
    ),
    (
        "dx_and_dmemory_exchanged",
        lambda of_q, of_k, of_v: (of_k + of_v, of_q),
        "dx and dmemory are exchanged",
        "In which order do you return the gradients?",
    ),
]:
    add(name, joined_by(join), says, asks)

add(
    "no_base_path",
    joined_by(lambda of_q, of_k, of_v: (of_q, of_k + of_v), base=0),
    "{it} lacks the base path, through the frozen W",
    "W gets no gradient: does the gradient of its input vanish too?",
)


def of_the_last_sample(*arguments):
    dx, dmemory, *_ = cross_attention_backward(*arguments)
    dq, dk, dv, x, memory, W, A, B, alpha = arguments
    last = (a[-1:] for a in (dq, dk, dv, x, memory))
    return dx, dmemory, *cross_attention_backward(*last, W, A, B, alpha)[2:]


add(
    "last_sample_only",
    of_the_last_sample,
    "{it} holds the last sample alone: the others were overwritten, not added",
    "Does your loop over the samples add to the result of the sample before, or overwrite it?",
)


def of_scale_zero(dq, dk, dv, x, memory, W, A, B, alpha):
    dA, dB = cross_attention_backward(dq, dk, dv, x, memory, W, A, B, alpha)[2:]
    return dq @ W[0], dk @ W[1] + dv @ W[2], dA, dB


add(
    "no_low_rank_path",
    of_scale_zero,
    "{it} lacks the low-rank path, through A and B",
    "By how many paths does the input of one projection reach its output?",
)


EXERCISE = Exercise(
    title="Attention's backward",
    kind="write",
    minutes=60,
    difficulty=4,
    needs=["03", "04"],
    parts=[attention, cross],
    hints=(
        "a: recompute P. Then go back one step at a time, y to P and v, P to S, S to q and k, and check each shape. "
        "Only P to S is new: write ∂P_i/∂S_j for i = j and for i ≠ j. b: three times exercise 04, without dropout.",
        "a: what must a row of dS sum to, if adding 1 to a whole row of S changes nothing? b: write beside each of q, "
        "k and v what it is made of. How often is each stream read?",
    ),
    viva=[
        Viva(
            "Which adapters, on q, k, v and the output projection o, can change the attention pattern of their layer?",
            "Those on q and k alone: P is a softmax of q kᵀ. v and o act after P; they change what is fetched and what "
            "is made of it, and so the patterns of later layers, but not that of their own.",
            "All four, since all of them are part of attention.",
        ),
        Viva(
            "Is LoRA suited to cross-attention, and what does each adapter read there?",
            "Yes: an adapter belongs to one linear layer and reads what that layer reads. The one on q reads x, "
            "those on k and v read the memory. LoRA knows nothing of attention.",
            "No, it is made for self-attention, where q, k and v come from one input.",
        ),
    ],
    asks=["B8", "F7"],
    derivation="attention",
)
