"""Cross-attention in two blocks of a decoder that read one memory. The maths is in ops/attention.py.

    q_l = x_l Wq_lᵀ     k_l = m Wk_lᵀ     v_l = m Wv_lᵀ     P_l = softmax(q_l k_lᵀ/√D + mask)     l = 0, 1
    x_0 = x     x_1 = x_0 + P_0 v_0     y = x_1 + P_1 v_1

The decoder's x and the memory m, the encoder's output (batch, tokens, D), have one length here, so that one can be
mistaken for the other. Wq, Wk and Wv (2, D, D) hold a matrix for each block; attention has one head. The mask (batch,
1, keys) hides the padding of the source.
"""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem
from .attention import forbid, through_softmax, transpose
from .cross_entropy import softmax

# batch, tokens, D of each case
SHAPES = [(3, 5, 4), (2, 6, 7), (5, 4, 6), (4, 7, 3), (7, 3, 5), (6, 8, 2)]


def draw(rng, shape):
    batch, tokens, D = shape
    dy, x, m = rng.standard_normal((3, batch, tokens, D))
    Wq, Wk, Wv = rng.standard_normal((3, 2, D, D)) / np.sqrt(D)
    mask = forbid(np.arange(tokens) < (2 + np.arange(batch) % (tokens - 1))[:, None, None])
    inputs = {"x": x, "m": m, "Wq": 1.5 * Wq, "Wk": 1.5 * Wk, "Wv": Wv}
    return Case(dy, inputs, {"mask": mask}, {"batch": batch, "tokens": tokens, "D": D})


def weights(q, k, mask):
    """P"""
    return softmax(q @ transpose(k) / np.sqrt(q.shape[-1]) + mask)


def block(x, m, Wq, Wk, Wv, mask):
    """P v, where Wq, Wk and Wv are those of one block."""
    return weights(x @ Wq.T, m @ Wk.T, mask) @ (m @ Wv.T)


def forward(x, m, Wq, Wk, Wv, mask):
    for of_block in zip(Wq, Wk, Wv, strict=True):
        x = x + block(x, m, *of_block, mask)
    return x


def block_backward(dy, x, m, Wq, Wk, Wv, mask):
    """dq, dk and dv of one block"""
    q, k, v = x @ Wq.T, m @ Wk.T, m @ Wv.T
    P, root = weights(q, k, mask), np.sqrt(q.shape[-1])
    dS = through_softmax(P, dy @ transpose(v)) / root
    return dS @ k, transpose(dS) @ q, transpose(P) @ dy


def outer(d, x):
    """Σ d xᵀ over all tokens of all samples"""
    return np.tensordot(d, x, axes=((0, 1), (0, 1)))


def parts(dy, x, m, Wq, Wk, Wv, mask):
    """(x_l, dx_l+1, dq_l, dk_l, dv_l) of each block"""
    x1 = x + block(x, m, Wq[0], Wk[0], Wv[0], mask)
    last = block_backward(dy, x1, m, Wq[1], Wk[1], Wv[1], mask)
    d1 = dy + last[0] @ Wq[1]
    return [(x, d1, *block_backward(d1, x, m, Wq[0], Wk[0], Wv[0], mask)), (x1, dy, *last)]


def backward(dy, x, m, Wq, Wk, Wv, mask):
    blocks = parts(dy, x, m, Wq, Wk, Wv, mask)
    return {
        "dx": blocks[0][1] + blocks[0][2] @ Wq[0],
        "dm": sum(dk @ Wk[i] + dv @ Wv[i] for i, (_, _, _, dk, dv) in enumerate(blocks)),
        "dWq": np.array([outer(dq, x_l) for x_l, _, dq, _, _ in blocks]),
        "dWk": np.array([outer(dk, m) for *_, dk, _ in blocks]),
        "dWv": np.array([outer(dv, m) for *_, dv in blocks]),
    }


def terms(dy, x, m, Wq, Wk, Wv, mask):
    first, last = parts(dy, x, m, Wq, Wk, Wv, mask)
    return {
        "dx": {
            "the skip path": dy,
            "the path of the first queries": first[2] @ Wq[0],
            "the path of the second queries": last[2] @ Wq[1],
        },
        "dm": {
            "the path of the keys": first[3] @ Wk[0] + last[3] @ Wk[1],
            "the path of the values": first[4] @ Wv[0] + last[4] @ Wv[1],
        },
    }


def exchange(tensors, case):
    m, Wk, Wv = (case.inputs[name] for name in ("m", "Wk", "Wv"))
    through = sum(transpose(tensors["dWk"]) @ Wk + transpose(tensors["dWv"]) @ Wv)
    return relative_error(outer(m, tensors["dm"]), through)


cross_attention = Problem(
    "cross_attention",
    forward,
    backward,
    draw,
    terms,
    laws={"mᵀ dm = Σ dWkᵀ Wk + dWvᵀ Wv, because the decoder sees m through these matrices alone": exchange},
    says={
        "no_skip_path": "dx lacks the skip path: what reaches x around both blocks is missing",
        "no_path_of_the_keys": "dm lacks the path of the keys: the memory decides also where the decoder looks",
        "no_path_of_the_values": "dm lacks the path of the values",
    },
    asks={
        "no_path_of_the_keys": "If the memory changes, do only the values change, or the weights P too?",
        "no_path_of_the_values": "What does the decoder take from the memory and add to its stream?",
    },
    shapes=SHAPES,
    formula="x_1 = x + P_0 v_0, y = x_1 + P_1 v_1, P = softmax(q kᵀ/√D + mask), q = x_l Wqᵀ, k = m Wkᵀ, v = m Wvᵀ",
    aliases=("encoder_decoder",),
    pairs=False,
)


def of_block(i):
    """dm as one block adds it."""

    def dm(dy, x, m, Wq, Wk, Wv, mask):
        *_, dk, dv = parts(dy, x, m, Wq, Wk, Wv, mask)[i]
        return dk @ Wk[i] + dv @ Wv[i]

    return dm


cross_attention.computed("memory_of_the_last_block", dm=of_block(1))(
    "dm is what the last block adds alone: the other reads the memory too",
    "How many blocks read the memory, and what becomes of the gradients of one array that is read twice?",
)
cross_attention.computed("memory_of_the_first_block", dm=of_block(0))(
    "dm is what the first block adds alone: what came from the block above it was overwritten",
    "When the first block hands back its part of dm, what is in the array already?",
)
cross_attention.multiplied("memory_taken_as_constant", dm=0)(
    "dm is zero, as though the encoder were no part of the model", "Can the encoder learn from your gradient?"
)


def keys_in_dx(dy, x, m, Wq, Wk, Wv, mask):
    keys = terms(dy, x, m, Wq, Wk, Wv, mask)["dm"]["the path of the keys"]
    return backward(dy, x, m, Wq, Wk, Wv, mask)["dx"] + keys


cross_attention.computed("keys_to_the_decoder", dx=keys_in_dx)(
    "dx holds what flows through the keys, which belongs to dm", "Out of which stream did forward make the keys?"
)
cross_attention.called_with("streams_exchanged", x=lambda m: m, m=lambda x: x)(
    "the streams are exchanged when {it} is computed: queries are made of the memory, keys and values of the decoder",
    "Which stream makes the queries in forward, and which makes the keys and values?",
)
cross_attention.called_with("causal_by_habit", mask=lambda mask: mask + forbid(np.tri(mask.shape[-1])))(
    "P is recomputed with a causal mask too, which forward does not have: {it} is blind to later tokens",
    "Is the end of the source still to come when the decoder writes its first word?",
)
cross_attention.called_with("mask_forgotten", mask=0)(
    "the mask is forgotten when P is recomputed: {it} flows to and through the padding of the source",
    "Does the decoder know which tokens of the source are padding, and who tells it?",
)
cross_attention.computed(
    "keys_of_x_in_dWk", dWk=lambda dy, x, m, Wq, Wk, Wv, mask: np.array(
        [outer(dk, x_l) for x_l, _, _, dk, _ in parts(dy, x, m, Wq, Wk, Wv, mask)])
)("dWk is summed with x, not with the memory", "What does Wk multiply in the forward?")  # fmt: skip
cross_attention.computed(
    "values_of_x_in_dWv", dWv=lambda dy, x, m, Wq, Wk, Wv, mask: np.array(
        [outer(dv, x_l) for x_l, _, _, _, dv in parts(dy, x, m, Wq, Wk, Wv, mask)])
)("dWv is summed with x, not with the memory", "What does Wv multiply in the forward?")  # fmt: skip
cross_attention.computed(
    "memory_in_dWq", dWq=lambda dy, x, m, Wq, Wk, Wv, mask: np.array(
        [outer(dq, m) for _, _, dq, _, _ in parts(dy, x, m, Wq, Wk, Wv, mask)])
)("dWq is summed with the memory, not with the decoder's stream", "What does Wq multiply in the forward?")  # fmt: skip
cross_attention.computed(
    "first_x_in_both", dWq=lambda dy, x, m, Wq, Wk, Wv, mask: np.array(
        [outer(dq, x) for _, _, dq, _, _ in parts(dy, x, m, Wq, Wk, Wv, mask)])
)("dWq of the second block is summed with x, not with x_1, which the first block has added to",
  "Which x does the second block see?")  # fmt: skip
