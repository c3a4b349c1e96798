"""Softmax attention: causal, with padding, and with grouped-query heads. The maths is in ops/attention.py.

q (batch, tokens, heads, D)   k, v (batch, tokens, groups, D)   S, P (batch, heads, queries, keys)

The mask, 0 or -1e9, broadcasts to the shape of S. The R = heads/groups query heads of a group share a key/value
head. Plain attention has groups = heads.
"""

from functools import partial

import numpy as np

from ..case import Case
from ..problem import Factor, Problem
from .cross_entropy import exponentials, softmax

# batch, tokens, heads, groups, D of each case
PLAIN = [(3, 5, 2, 2, 4), (2, 4, 3, 3, 7), (5, 3, 4, 4, 6), (4, 7, 5, 5, 3), (7, 6, 8, 8, 2), (6, 8, 7, 7, 5)]
GROUPED = [(3, 5, 4, 2, 6), (2, 7, 9, 3, 4), (5, 6, 16, 4, 3), (4, 3, 10, 5, 8), (7, 4, 18, 6, 2), (6, 8, 14, 7, 5)]


def forbid(see):
    return np.where(see, 0.0, -1e9)


def draw_case(rng, shape, mask):
    batch, tokens, heads, groups, D = shape
    q, dy = rng.standard_normal((2, batch, tokens, heads, D))
    k, v = rng.standard_normal((2, batch, tokens, groups, D))
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "D": D}
    if groups != heads:
        sizes["groups"] = groups
    return Case(dy, {"q": q, "k": k, "v": v}, {"mask": mask}, sizes)


def draw_causal(rng, shape):
    return draw_case(rng, shape, forbid(np.tri(shape[1])))


def draw_masked(rng, shape):
    """Samples of different lengths, the shortest of two tokens, padded at their end."""
    batch, tokens, *_ = shape
    lengths = 2 + np.arange(batch) % (tokens - 1)
    return draw_case(rng, shape, forbid(np.arange(tokens) < lengths[:, None, None, None]))


def total(a):
    """The sum over each row."""
    return a.sum(axis=-1, keepdims=True)


def transpose(a):
    return a.swapaxes(-1, -2)


def root(q):
    """√D"""
    return np.sqrt(q.shape[-1])


def share(k, heads):
    """Each key/value head once for every query head of its group."""
    return np.repeat(k, heads // k.shape[2], axis=2)


def grouped(q, groups):
    """(batch, tokens, groups, R, D)"""
    return q.reshape(*q.shape[:2], groups, -1, q.shape[-1])


def pairs(q, k):
    """q kᵀ"""
    return np.einsum("bqhd,bkhd->bhqk", q, share(k, q.shape[2]))


def to_queries(P, v):
    """P v"""
    return np.einsum("bhqk,bkhd->bqhd", P, share(v, P.shape[1]))


def to_keys(P, dy, groups):
    """Pᵀ dy of every query head: (batch, keys, groups, R, D)"""
    return grouped(np.einsum("bhqk,bqhd->bkhd", P, dy), groups)


def weights(q, k, mask):
    """P"""
    return softmax(pairs(q, k) / root(q) + mask)


def forward(q, k, v, mask):
    return to_queries(weights(q, k, mask), v)


def through_softmax(P, dP):
    """dS"""
    return P * (dP - total(P * dP))


def scores_gradient(dy, q, k, v, mask):
    """dS"""
    return through_softmax(weights(q, k, mask), pairs(dy, v))


def from_scores(dS, q, k):
    dk = to_keys(dS, q, k.shape[2]).sum(axis=3)
    return {"dq": to_queries(dS, k) / root(q), "dk": dk / root(q)}


def from_weights(P, dy, q, k, v):
    dv = to_keys(P, dy, k.shape[2]).sum(axis=3)
    return {**from_scores(through_softmax(P, pairs(dy, v)), q, k), "dv": dv}


def backward(dy, q, k, v, mask):
    return from_weights(weights(q, k, mask), dy, q, k, v)


def terms(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    direct, row_sum = from_scores(P * dP, q, k), from_scores(-P * total(P * dP), q, k)
    return {name: {"the direct term P ∘ dP": direct[name], "the row-sum term": row_sum[name]} for name in ("dq", "dk")}


def size(a):
    return float(np.abs(a).max())


def key_sums(tensors, case):
    dk = tensors["dk"]
    return size(dk.sum(axis=1)) / size(dk)


def value_sums(tensors, case):
    dv = tensors["dv"]
    return size(dv.sum(axis=1) - grouped(case.dy, dv.shape[2]).sum(axis=(1, 3))) / size(dv)


def queries_against_keys(tensors, case):
    q, k = case.inputs["q"], case.inputs["k"]
    along_q = grouped(q * tensors["dq"], k.shape[2]).sum(axis=(1, 3, 4))
    along_k = (k * tensors["dk"]).sum(axis=(1, 3))
    return size(along_q - along_k) / max(size(along_q), size(along_k))


def first_query(tensors, case):
    dq = tensors["dq"]
    return size(dq[:, 0]) / size(dq)


LAWS = {
    "dk sums to 0 over the positions, because adding one vector to all keys shifts whole rows of S": key_sums,
    "dv summed over the positions is dy summed over the positions, because the rows of P sum to 1": value_sums,
    "Σ q ∘ dq = Σ k ∘ dk, because doubling q and halving k changes no score": queries_against_keys,
}
CAUSAL_LAWS = LAWS | {
    "dq of the first token is 0, because it sees itself alone and its weight is always 1": first_query
}

FORMULA = "y = P v, P = softmax(S) over the keys, S = q kᵀ/√D + mask"


attention = partial(
    Problem,
    forward=forward,
    backward=backward,
    terms=terms,
    factors={"scale": Factor("the factor 1/√D", lambda q: 1 / root(q), ("dq", "dk"))},
    says={"no_row_sum_term": "{it} lacks the row-sum term of the softmax: its Jacobian is taken to be diagonal"},
    asks={
        "no_row_sum_term": "If one score of a row rises, what happens to the weights of the other keys?",
        "row_sum_term_with_wrong_sign": "What must a row of dS sum to, when a shift of the row changes no weight?",
        "no_scale": "What stands between the product q kᵀ and the scores S?",
    },
    simpler={"without the mask (mask = 0)": {"mask": lambda mask: 0 * mask}},
)
causal_attention = attention(
    "causal_attention",
    draw=draw_causal,
    laws=CAUSAL_LAWS,
    shapes=PLAIN,
    formula=FORMULA,
    aliases=("attention", "self_attention", "scaled_dot_product_attention"),
)
masked_attention = attention(
    "masked_attention", draw=draw_masked, laws=LAWS, shapes=PLAIN, formula=FORMULA, aliases=("padded_attention",)
)
grouped_query_attention = attention(
    "grouped_query_attention",
    draw=draw_causal,
    laws=CAUSAL_LAWS,
    shapes=GROUPED,
    formula=f"{FORMULA}; heads/groups query heads share a key/value head",
    aliases=("gqa",),
)

ALL = (causal_attention, masked_attention, grouped_query_attention)
CAUSAL = (causal_attention, grouped_query_attention)


def for_each(method):
    """This method of Problem, which adds a fault, for several problems at once: those of `of`, by default ALL."""

    def add(*arguments, **options):
        def sentences(says, asks, of=ALL):
            for problem in of:
                getattr(problem, method)(*arguments, **options)(says, asks)

        return sentences

    return add


add, computed, multiplied, called_with = map(for_each, ("add", "computed", "multiplied", "called_with"))


def with_dS(name, dS):
    """Add a fault in which dS is another function of P and dP."""

    def wrong(dy, q, k, v, mask):
        return from_scores(dS(weights(q, k, mask), pairs(dy, v)), q, k)

    return add(name, wrong)


def with_P(name, P):
    """Add a fault in which P is another function of q, k and the mask."""
    return add(name, lambda dy, q, k, v, mask: from_weights(P(q, k, mask), dy, q, k, v))


# The softmax: dS from P and dP


with_dS("row_sum_over_queries", lambda P, dP: P * (dP - (P * dP).sum(axis=-2, keepdims=True)))(
    "{it} takes the sum of P ∘ dP over the queries, not over the keys",
    "Along which axis did forward make the weights sum to 1?",
)
with_dS("row_sum_without_P", lambda P, dP: P * (dP - total(dP)))(
    "the row sum in {it} is that of dP, without the weights P",
    "dS says how far each dP lies above an average of its row: with which weights is that average taken?",
)
with_dS("row_sum_outside", lambda P, dP: P * dP - total(P * dP))(
    "the row-sum term of {it} lacks its own factor P: only the direct term has one",
    "Can a key that is masked, with P = 0, have a dS other than 0?",
)
with_dS("mean_for_row_sum", lambda P, dP: P * (dP - (P * dP).mean(axis=-1, keepdims=True)))(
    "the row-sum term of {it} is divided by the number of keys: a mean instead of a sum",
    "P already sums to 1 over the keys: what further average is there to take?",
)
with_dS("elementwise_jacobian", lambda P, dP: P * (1 - P) * dP)(
    "{it} uses P(1 - P), the slope of a sigmoid, as if each weight had only its own score",
    "On which scores does one weight depend: on its own, or on all of its row?",
)
with_dS("no_P_factor", lambda P, dP: dP - total(P * dP))(
    "dS lacks the factor P, and with it {it}",
    "A key with a weight of almost 0: how strongly can a small change of its score be felt?",
)


def row_sum_with_v(dy, q, k, v, mask):
    dP, along_v = pairs(dy, v), (dy * share(v, q.shape[2])).sum(axis=-1)
    return from_scores(weights(q, k, mask) * (dP - along_v.swapaxes(1, 2)[..., None]), q, k)


add("row_sum_with_v", row_sum_with_v)(
    "the row-sum term of {it} multiplies dy by v, not by the output",
    "Σ P dP is dy times a mixture of the values: under which name did forward compute that mixture?",
)
add("keys_for_values", lambda dy, q, k, v, mask: from_scores(through_softmax(weights(q, k, mask), pairs(dy, k)), q, k))(
    "dP, and with it {it}, is computed from the keys, not from the values", "What did forward multiply by P?"
)


# The scale


multiplied("scale_of_all_heads", dq=lambda q: 1 / np.sqrt(q.shape[2]), dk=lambda q: 1 / np.sqrt(q.shape[2]))(
    "{it} is scaled by the width of all heads together, but D is the width of one head",
    "Over how many numbers does the product of one query and one key sum?",
)
with_P("scale_forgotten_in_P", lambda q, k, mask: weights(q * root(q), k, mask))(
    "P is recomputed without the factor 1/√D, so that {it} rests on other weights than forward's",
    "Are your rows of P as even as those of forward, or sharper?",
)


# P as it is recomputed


with_P("not_normalised", lambda q, k, mask: exponentials(pairs(q, k) / root(q) + mask))(
    "P is not divided by the sums of its rows: {it} uses the exponentials themselves",
    "What do the rows of your P sum to?",
)
with_P("softmax_over_queries", lambda q, k, mask: transpose(softmax(transpose(pairs(q, k) / root(q) + mask))))(
    "P is normalised over the queries, not over the keys: {it} is wrong",
    "Who shares out its attention, a query among the keys, or a key among the queries?",
    of=CAUSAL,
)
called_with("mask_forgotten", mask=0)(
    "the mask is forgotten when P is recomputed: {it} flows through forbidden keys",
    "Which keys had the weight 0 in forward, and have they in your backward?",
)
with_P("masked_after_softmax", lambda q, k, mask: weights(q, k, 0) * (mask == 0))(
    "the mask is applied after the softmax: the rows of P behind {it} no longer sum to 1",
    "When a key is forbidden, who receives the weight that it would have had?",
)
with_P("masked_to_zero", lambda q, k, mask: softmax(pairs(q, k) / root(q) * (mask == 0)))(
    "forbidden scores are set to 0, but must be far below all others: {it} sees those keys", "What is exp(0)?"
)
called_with("sees_the_next_token", mask=lambda mask: forbid(np.tri(len(mask), k=1)))(
    "the mask of the backward lets each query see the next token too: {it} is off by one diagonal",
    "Which is the last key that the first query may see?",
    of=CAUSAL,
)
called_with("mask_transposed", mask=lambda mask: transpose(mask))(
    "the mask is transposed when P is recomputed: in {it} queries see the future, not the past",
    "Which of the mask's two axes is the query, and which the key?",
    of=CAUSAL,
)
masked_attention.called_with("causal_by_habit", mask=lambda mask: mask + forbid(np.tri(mask.shape[-1])))(
    "P is recomputed with a causal mask in addition to the padding, which forward does not have: {it} is wrong",
    "May a token of this forward look at a later one?",
)
masked_attention.called_with("padding_of_the_first_sample", mask=lambda mask: mask[:1])(
    "the padding of the first sample is used for all samples: {it} of the others is wrong",
    "Are the samples of a batch all of one length?",
)
masked_attention.called_with(
    "padded_queries_dropped", dy=lambda dy, mask: dy * (mask == 0).reshape(*dy.shape[:2], 1, 1)
)(
    "the queries at padded positions are left out of {it}, but only keys are masked",
    "Did forward give an output at padded positions, and did an upstream gradient arrive there?",
)


# Operands


computed(
    "dk_not_transposed",
    dk=lambda dy, q, k, v, mask: from_scores(transpose(scores_gradient(dy, q, k, v, mask)), q, k)["dk"],
)(
    "dk is computed with dS not transposed",
    "Key j was read by many queries: does its gradient sum over a row of dS, or over a column?",
)
computed(
    "dq_transposed", dq=lambda dy, q, k, v, mask: from_scores(transpose(scores_gradient(dy, q, k, v, mask)), q, k)["dq"]
)("dq is computed with dS transposed", "Query i has one row of scores: where in dS does its gradient lie?")
computed(
    "dv_not_transposed", dv=lambda dy, q, k, mask: to_keys(transpose(weights(q, k, mask)), dy, k.shape[2]).sum(axis=3)
)(
    "dv is computed with P not transposed",
    "Value j went into the outputs of which queries, and where in P are those weights?",
)
computed("dq_from_queries", dq=lambda dy, q, k, v, mask: from_scores(scores_gradient(dy, q, k, v, mask), q, q)["dq"])(
    "dq is computed from the queries, not from the keys", "By what is q multiplied to make the scores?"
)
computed(
    "dk_from_keys",
    dk=lambda dy, q, k, v, mask: from_scores(scores_gradient(dy, q, k, v, mask), share(k, q.shape[2]), k)["dk"],
)("dk is computed from the keys, not from the queries", "By what is k multiplied to make the scores?")
computed(
    "dv_from_dS", dv=lambda dy, q, k, v, mask: to_keys(scores_gradient(dy, q, k, v, mask), dy, k.shape[2]).sum(axis=3)
)("dv is computed from dS, not from P", "The values enter after the softmax: does their gradient pass through it?")


# The axes


def other_layout(a):
    """An array (batch, tokens, heads, D), its memory read as though it were (batch, heads, tokens, D)."""
    return a.reshape(len(a), a.shape[2], a.shape[1], -1).swapaxes(1, 2)


def back_from_it(a):
    return a.swapaxes(1, 2).reshape(a.shape)


def heads_reshaped(dy, q, k, v, mask):
    dy, q, k, v = map(other_layout, (dy, q, k, v))
    return {name: back_from_it(d) for name, d in backward(dy, q, k, v, mask).items()}


add("heads_reshaped", heads_reshaped)(
    "the arrays are reshaped to (batch, heads, tokens, D), not transposed: {it} mixes tokens and heads",
    "Where do the numbers of head 0 lie in q: side by side in memory, or one stretch in each token?",
)


def gradients_reshaped(dy, q, k, v, mask):
    return {name: back_from_it(d) for name, d in backward(dy, q, k, v, mask).items()}


add("gradients_reshaped", gradients_reshaped)(
    "{it} is right as (batch, heads, tokens, D), and then reshaped to (batch, tokens, heads, D), not transposed",
    "To exchange two axes, is it enough to give their lengths in another order?",
)


# The groups


def by_query_head(dy, q, k, v, mask):
    """dk and dv before their sum over the query heads of a group: (batch, keys, groups, R, D)"""
    P, groups = weights(q, k, mask), k.shape[2]
    dS = through_softmax(P, pairs(dy, v))
    return {"dk": to_keys(dS, q, groups) / root(q), "dv": to_keys(P, dy, groups)}


def with_heads(name, reduce):
    """Add a fault in which dk and dv are another function of what they are before that sum."""

    def wrong(dy, q, k, v, mask):
        return {name: reduce(d) for name, d in by_query_head(dy, q, k, v, mask).items()}

    return grouped_query_attention.add(name, wrong)


def first_head(a):
    """The first key/value head, repeated in place of the others."""
    return share(a[:, :, :1], a.shape[2])


with_heads("last_head_of_the_group", lambda d: d[:, :, :, -1])(
    "{it} holds the last query head of each group alone: the others were overwritten, not added",
    "Does your loop over the query heads add to the result of the head before, or overwrite it?",
)
with_heads("first_head_of_the_group", lambda d: d[:, :, :, 0])(
    "{it} holds the first query head of each group alone",
    "How many query heads have read one key head in forward?",
)
with_heads("mean_over_the_group", lambda d: d.mean(axis=3))(
    "{it} is a mean over the query heads of a group, but must be a sum",
    "Several query heads use the same key: do their gradients add up or average?",
)
with_heads(
    "summed_over_all_heads", lambda d: np.repeat(d.sum(axis=(2, 3), keepdims=True)[:, :, 0], d.shape[2], axis=2)
)(
    "{it} is summed over all query heads, of every group, and is the same for all key/value heads",
    "Which query heads have never read this key head?",
)
with_heads("heads_summed_across_groups", lambda d: d.reshape(*d.shape[:2], -1, d.shape[2], d.shape[4]).sum(axis=2))(
    "{it} is summed over every G-th query head, but the heads of a group stand side by side",
    "When you split the axis of the heads in two, which part comes first: the group, or the head in it?",
)


@grouped_query_attention.fault(
    "query heads read the wrong group, head h that of h mod G: {it} is wrong",
    "With two groups of three heads, which key head belongs to query head 1, counting from 0?",
)
def heads_of_the_wrong_group(dy, q, k, v, mask):
    heads, groups = q.shape[2], k.shape[2]
    order = np.arange(heads).reshape(-1, groups).T.ravel()  # side by side, those of h mod G
    wrong = backward(dy[:, :, order], q[:, :, order], k, v, mask)
    return wrong | {"dq": wrong["dq"][:, :, np.argsort(order)]}


grouped_query_attention.called_with("first_group_for_all", k=lambda k: first_head(k), v=lambda v: first_head(v))(
    "all query heads read the first key/value head, as in multi-query attention: {it} is wrong",
    "How many key heads are there, and does broadcasting hide all but one of them?",
)


@grouped_query_attention.fault(
    "{it} sums dS or P, and the queries or dy, over the group before they multiply: products of sums",
    "Does the dS of one query head ever meet the query of another?",
)
def products_of_sums(dy, q, k, v, mask):
    P, groups = weights(q, k, mask), k.shape[2]
    dS = through_softmax(P, pairs(dy, v))

    def product(M, x):
        summed = M.reshape(len(M), groups, -1, *M.shape[2:]).sum(axis=2)
        return to_keys(summed, grouped(x, groups).sum(axis=3), groups).sum(axis=3)

    return {"dk": product(dS, q) / root(q), "dv": product(P, dy)}
