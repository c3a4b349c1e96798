"""Softmax attention: causal, with padding, and with grouped-query heads. The maths is in ops/attention.py.

q (batch, tokens, heads, D)   k, v (batch, tokens, groups, D)   S, P (batch, heads, queries, keys)

The mask, 0 or -1e9, broadcasts to the shape of S. The R = heads/groups query heads of a group share a key/value
head. Plain attention has groups = heads.
"""

import numpy as np

from ..problem import Case, Problem, Words

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


def draw_causal(rng, i):
    return draw_case(rng, PLAIN[i], forbid(np.tri(PLAIN[i][1])))


def draw_masked(rng, i):
    """Samples of different lengths, the shortest of two tokens, padded at their end."""
    batch, tokens, *_ = PLAIN[i]
    lengths = 2 + (i + np.arange(batch)) % (tokens - 1)
    return draw_case(rng, PLAIN[i], forbid(np.arange(tokens) < lengths[:, None, None, None]))


def draw_grouped(rng, i):
    return draw_case(rng, GROUPED[i], forbid(np.tri(GROUPED[i][1])))


def total(a):
    """Over each row."""
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


def softmax(S):
    E = np.exp(S - S.real.max(axis=-1, keepdims=True))
    return E / total(E)


def weights(q, k, mask):
    """P"""
    return softmax(pairs(q, k) / root(q) + mask)


def forward(q, k, v, mask):
    return to_queries(weights(q, k, mask), v)


def through_softmax(P, dP):
    """dS"""
    return P * (dP - total(P * dP))


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
    return {
        name: {
            Words("the direct term P ∘ dP", "直接项 P ∘ dP"): direct[name],
            Words("the row-sum term", "行和项"): row_sum[name],
        }
        for name in ("dq", "dk")
    }


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
    Words(
        "dk sums to 0 over the positions, because adding one vector to all keys shifts whole rows of S",
        "dk 对各位置求和为 0，因为给所有键加上同一个向量只会让 S 的每一行整体平移",
    ): key_sums,
    Words(
        "dv summed over the positions is dy summed over the positions, because the rows of P sum to 1",
        "dv 对各位置之和等于 dy 对各位置之和，因为 P 的每一行之和为 1",
    ): value_sums,
    Words(
        "Σ q ∘ dq = Σ k ∘ dk, because doubling q and halving k changes no score",
        "Σ q ∘ dq = Σ k ∘ dk，因为 q 加倍、k 减半不改变任何得分",
    ): queries_against_keys,
}
CAUSAL_LAWS = LAWS | {
    Words(
        "dq of the first token is 0, because it sees itself alone and its weight is always 1",
        "第一个词元的 dq 为 0，因为它只看得见自己，权重恒为 1",
    ): first_query
}

FORMULA = "y = P v, P = softmax(S) over the keys, S = q kᵀ/√D + mask"


def without_mask(case):
    return case._replace(constants={"mask": 0 * case.constants["mask"]})


SIMPLER = {Words("without the mask (mask = 0)", "没有掩码（mask = 0）"): without_mask}

causal_attention = Problem(
    "causal_attention", forward, backward, draw_causal, terms, CAUSAL_LAWS,
    formula=FORMULA, aliases=("attention", "self_attention", "scaled_dot_product_attention"), simpler=SIMPLER,
)  # fmt: skip
masked_attention = Problem(
    "masked_attention", forward, backward, draw_masked, terms, LAWS,
    formula=FORMULA, aliases=("padded_attention",), simpler=SIMPLER,
)  # fmt: skip
grouped_query_attention = Problem(
    "grouped_query_attention", forward, backward, draw_grouped, terms, CAUSAL_LAWS,
    formula=f"{FORMULA}; heads/groups query heads share a key/value head", aliases=("gqa",), simpler=SIMPLER,
)  # fmt: skip

ALL = (causal_attention, masked_attention, grouped_query_attention)
CAUSAL = (causal_attention, grouped_query_attention)


def fault(*words, of=ALL, whole=False):
    """Problem.fault, for several problems."""

    def add(wrong):
        for problem in of:
            problem.fault(*words, whole=whole)(wrong)
        return wrong

    return add


# The softmax: dS from P and dP


@fault(
    "{it} lacks the row-sum term of the softmax: its Jacobian is taken to be diagonal",
    "{it} 缺少 softmax 的行和项：雅可比矩阵被当成了对角阵",
    "If one score of a row rises, what happens to the weights of the other keys?",
    "一行中某个得分升高时，其他键的权重会怎样？",
)
def no_row_sum_term(dy, q, k, v, mask):
    return from_scores(weights(q, k, mask) * pairs(dy, v), q, k)


@fault(
    "{it} takes the sum of P ∘ dP over the queries, where it runs over the keys",
    "{it} 中 P ∘ dP 沿查询方向求和，而应当沿键方向求和",
    "Along which axis did forward make the weights sum to 1?",
    "前向传播让权重沿哪个轴的和为 1？",
)
def row_sum_over_queries(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    return from_scores(P * (dP - (P * dP).sum(axis=-2, keepdims=True)), q, k)


@fault(
    "the row sum in {it} is that of dP, without the weights P",
    "{it} 中的行和是对 dP 求的，没有乘权重 P",
    "dS says how far each dP lies above an average of its row: with which weights is that average taken?",
    "dS 衡量每个 dP 比所在行的平均高出多少：这个平均用的是什么权重？",
)
def row_sum_without_P(dy, q, k, v, mask):
    dP = pairs(dy, v)
    return from_scores(weights(q, k, mask) * (dP - total(dP)), q, k)


@fault(
    "the row-sum term of {it} lacks its own factor P: only the direct term has one",
    "{it} 的行和项缺少它自己的因子 P：只有直接项乘了 P",
    "Can a key that is masked, with P = 0, have a dS other than 0?",
    "一个被屏蔽、P = 0 的键，它的 dS 能不为 0 吗？",
)
def row_sum_outside(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    return from_scores(P * dP - total(P * dP), q, k)


@fault(
    "the row-sum term of {it} has the wrong sign",
    "{it} 的行和项符号错误",
    "What must a row of dS sum to, when a shift of the row changes no weight?",
    "整行平移不改变任何权重，那么 dS 的每一行之和应是多少？",
)
def row_sum_added(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    return from_scores(P * (dP + total(P * dP)), q, k)


@fault(
    "the row-sum term of {it} is divided by the number of keys: a mean in the place of a sum",
    "{it} 的行和项除以了键的个数：用平均代替了求和",
    "P already sums to 1 over the keys: what further average is there to take?",
    "P 对键的和已经是 1：还需要再取什么平均？",
)
def mean_for_row_sum(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    return from_scores(P * (dP - (P * dP).mean(axis=-1, keepdims=True)), q, k)


@fault(
    "{it} uses P(1 - P), the slope of a sigmoid, as if each weight had only its own score",
    "{it} 用了 sigmoid 的导数 P(1 - P)，仿佛每个权重只取决于自己的得分",
    "On which scores does one weight depend: on its own, or on all of its row?",
    "一个权重取决于哪些得分：只有它自己的，还是整行的？",
)
def elementwise_jacobian(dy, q, k, v, mask):
    P = weights(q, k, mask)
    return from_scores(P * (1 - P) * pairs(dy, v), q, k)


@fault(
    "dS lacks the factor P, and with it {it}",
    "dS 缺少因子 P，{it} 因此也错",
    "A key with a weight of almost 0: how strongly can a small change of its score be felt?",
    "一个权重几乎为 0 的键：它的得分稍有变化，影响能有多大？",
)
def no_P_factor(dy, q, k, v, mask):
    P, dP = weights(q, k, mask), pairs(dy, v)
    return from_scores(dP - total(P * dP), q, k)


@fault(
    "the row-sum term of {it} multiplies dy by v, where it is dy by the output",
    "{it} 的行和项用 dy 乘了 v，而应当用 dy 乘输出",
    "Σ P dP is dy times a mixture of the values: under which name did forward compute that mixture?",
    "Σ P dP 是 dy 与各个 v 的加权和的乘积：前向传播中这个加权和叫什么？",
)
def row_sum_with_v(dy, q, k, v, mask):
    dP, along_v = pairs(dy, v), (dy * share(v, q.shape[2])).sum(axis=-1)
    return from_scores(weights(q, k, mask) * (dP - along_v.swapaxes(1, 2)[..., None]), q, k)


@fault(
    "dP, and with it {it}, is computed from the keys, where it comes from the values",
    "dP 由 k 算出，而应当由 v 算出，{it} 因此也错",
    "What did forward multiply by P?",
    "前向传播中与 P 相乘的是什么？",
)
def keys_for_values(dy, q, k, v, mask):
    return from_scores(through_softmax(weights(q, k, mask), pairs(dy, k)), q, k)


# The scale


@fault(
    "{it} lacks the factor 1/√D",
    "{it} 缺少因子 1/√D",
    "What stands between the product q kᵀ and the scores S?",
    "从乘积 q kᵀ 到得分 S 之间还有什么？",
)
def scale_forgotten(dy, q, k, v, mask):
    return from_scores(through_softmax(weights(q, k, mask), pairs(dy, v)) * root(q), q, k)


@fault(
    "{it} has the factor 1/√D twice: it is divided by D",
    "{it} 中的因子 1/√D 用了两次：实际除以了 D",
    "How often did forward divide the scores, and has one of your tensors been divided before?",
    "前向传播对得分做了几次这样的除法？你用到的张量里是否有一个早已除过？",
)
def scale_twice(dy, q, k, v, mask):
    return from_scores(through_softmax(weights(q, k, mask), pairs(dy, v)) / root(q), q, k)


@fault(
    "{it} is scaled by the width of all heads together, where D is the width of one head",
    "{it} 的缩放用了所有头的总宽度，而 D 应是单个头的宽度",
    "Over how many numbers does the product of one query and one key sum?",
    "一个查询与一个键的内积对多少个数求和？",
)
def scale_of_all_heads(dy, q, k, v, mask):
    return from_scores(through_softmax(weights(q, k, mask), pairs(dy, v)) / np.sqrt(q.shape[2]), q, k)


@fault(
    "P is recomputed without the factor 1/√D, so that {it} rests on other weights than forward's",
    "重新计算 P 时漏掉了因子 1/√D，{it} 用的权重与前向传播不同",
    "Are your rows of P as even as those of forward, or sharper?",
    "你的 P 的各行与前向传播一样平缓，还是更尖锐？",
)
def scale_forgotten_in_P(dy, q, k, v, mask):
    return from_weights(weights(q * root(q), k, mask), dy, q, k, v)


# P as it is recomputed


@fault(
    "P is not divided by the sums of its rows: {it} uses the exponentials themselves",
    "P 没有除以行和：{it} 直接用了指数值",
    "What do the rows of your P sum to?",
    "你的 P 每一行之和是多少？",
)
def not_normalised(dy, q, k, v, mask):
    P = weights(q, k, mask)
    return from_weights(P / P.max(axis=-1, keepdims=True), dy, q, k, v)  # exp(S - max)


@fault(
    "P is normalised over the queries, where softmax runs over the keys: {it} is wrong",
    "P 沿查询方向归一化，而 softmax 应沿键方向：{it} 不正确",
    "Who shares out its attention, a query among the keys, or a key among the queries?",
    "是谁在分配注意力：查询在各个键之间，还是键在各个查询之间？",
    of=CAUSAL,
)
def softmax_over_queries(dy, q, k, v, mask):
    return from_weights(transpose(softmax(transpose(pairs(q, k) / root(q) + mask))), dy, q, k, v)


@fault(
    "the mask is forgotten when P is recomputed: {it} flows through forbidden keys",
    "重新计算 P 时忘了掩码：梯度流过了被屏蔽的键，{it} 不正确",
    "Which keys had the weight 0 in forward, and have they in your backward?",
    "前向传播中哪些键的权重为 0？在你的反向传播中也是吗？",
)
def mask_forgotten(dy, q, k, v, mask):
    return from_weights(weights(q, k, 0), dy, q, k, v)


@fault(
    "the mask is applied after the softmax: the rows of P behind {it} no longer sum to 1",
    "掩码用在了 softmax 之后：{it} 所用的 P 各行之和不再为 1",
    "When a key is forbidden, who receives the weight that it would have had?",
    "一个键被屏蔽后，它本来的权重归谁？",
)
def masked_after_softmax(dy, q, k, v, mask):
    return from_weights(weights(q, k, 0) * (mask == 0), dy, q, k, v)


@fault(
    "forbidden scores are set to 0, where they must be far below all others: {it} sees those keys",
    "被屏蔽的得分被置为 0，而应当远低于其他得分：{it} 仍看得见那些键",
    "What is exp(0)?",
    "exp(0) 等于多少？",
)
def masked_to_zero(dy, q, k, v, mask):
    return from_weights(softmax(pairs(q, k) / root(q) * (mask == 0)), dy, q, k, v)


@fault(
    "the mask of the backward lets each query see the next token too: {it} is off by one diagonal",
    "反向传播的掩码让每个查询多看到下一个词元：掩码差了一条对角线，{it} 因此不正确",
    "Which is the last key that the first query may see?",
    "第一个查询能看到的最后一个键是哪一个？",
    of=CAUSAL,
)
def sees_the_next_token(dy, q, k, v, mask):
    return from_weights(weights(q, k, forbid(np.tri(len(mask), k=1))), dy, q, k, v)


@fault(
    "the mask is transposed when P is recomputed: in {it} queries see the future, not the past",
    "重新计算 P 时掩码被转置：{it} 中查询看到的是未来而不是过去",
    "Which of the mask's two axes is the query, and which the key?",
    "掩码的两个轴中，哪个是查询，哪个是键？",
    of=CAUSAL,
)
def mask_transposed(dy, q, k, v, mask):
    return from_weights(weights(q, k, transpose(mask)), dy, q, k, v)


@fault(
    "P is recomputed with a causal mask beside the padding, which forward does not have: {it} is wrong",
    "重新计算 P 时除填充掩码外还加了因果掩码，而前向传播没有：{it} 不正确",
    "May a token of this forward look at a later one?",
    "在这个前向传播中，一个词元可以看后面的词元吗？",
    of=(masked_attention,),
)
def causal_by_habit(dy, q, k, v, mask):
    return from_weights(weights(q, k, mask + forbid(np.tri(mask.shape[-1]))), dy, q, k, v)


@fault(
    "the padding of the first sample is used for all samples: {it} of the others is wrong",
    "第一个样本的填充掩码被用于所有样本：其余样本的 {it} 不正确",
    "Are the samples of a batch all of one length?",
    "一个批次中的样本长度都相同吗？",
    of=(masked_attention,),
)
def padding_of_the_first_sample(dy, q, k, v, mask):
    return from_weights(weights(q, k, mask[:1]), dy, q, k, v)


@fault(
    "the queries at padded positions are left out of {it}, where only keys are masked",
    "填充位置上的查询在 {it} 中被略去，而掩码只作用于键",
    "Did forward give an output at padded positions, and did an upstream gradient arrive there?",
    "前向传播在填充位置有输出吗？那里有上游梯度传来吗？",
    of=(masked_attention,),
)
def padded_queries_dropped(dy, q, k, v, mask):
    return backward(dy * (mask == 0).reshape(*dy.shape[:2], 1, 1), q, k, v, mask)


# Operands


@fault(
    "dk is computed with dS not transposed",
    "计算 dk 时 dS 没有转置",
    "Key j was read by many queries: does its gradient sum over a row of dS, or over a column?",
    "第 j 个键被许多查询读取：它的梯度是对 dS 的一行求和，还是一列？",
)
def dk_not_transposed(dy, q, k, v, mask):
    dS = through_softmax(weights(q, k, mask), pairs(dy, v))
    return {"dk": from_scores(transpose(dS), q, k)["dk"]}


@fault(
    "dq is computed with dS transposed",
    "计算 dq 时 dS 被转置了",
    "Query i has one row of scores: where in dS does its gradient lie?",
    "第 i 个查询对应一行得分：它的梯度在 dS 的哪里？",
)
def dq_transposed(dy, q, k, v, mask):
    dS = through_softmax(weights(q, k, mask), pairs(dy, v))
    return {"dq": from_scores(transpose(dS), q, k)["dq"]}


@fault(
    "dv is computed with P not transposed",
    "计算 dv 时 P 没有转置",
    "Value j went into the outputs of which queries, and where in P are those weights?",
    "第 j 个 v 进入了哪些查询的输出？这些权重在 P 的哪里？",
)
def dv_not_transposed(dy, q, k, v, mask):
    return {"dv": to_keys(transpose(weights(q, k, mask)), dy, k.shape[2]).sum(axis=3)}


@fault(
    "dq is computed from the queries, where it comes from the keys",
    "dq 由 q 算出，而应当由 k 算出",
    "What does q meet in the product that makes the scores?",
    "在得分的乘积里，q 与什么相乘？",
)
def dq_from_queries(dy, q, k, v, mask):
    dS = through_softmax(weights(q, k, mask), pairs(dy, v))
    return {"dq": from_scores(dS, q, q)["dq"]}


@fault(
    "dk is computed from the keys, where it comes from the queries",
    "dk 由 k 算出，而应当由 q 算出",
    "What does k meet in the product that makes the scores?",
    "在得分的乘积里，k 与什么相乘？",
)
def dk_from_keys(dy, q, k, v, mask):
    dS = through_softmax(weights(q, k, mask), pairs(dy, v))
    return {"dk": from_scores(dS, share(k, q.shape[2]), k)["dk"]}


@fault(
    "{it} has the other's place",
    "{it} 占了对方的位置",
    "In which order does your function return its gradients?",
    "你的函数按什么顺序返回各个梯度？",
    of=(causal_attention, masked_attention),
    whole=True,
)
def dq_and_dk_exchanged(dy, q, k, v, mask):
    true = backward(dy, q, k, v, mask)
    return {"dq": true["dk"], "dk": true["dq"]}


@fault(
    "dv is computed from dS, where it comes from P",
    "dv 由 dS 算出，而应当由 P 算出",
    "The values enter after the softmax: does their gradient pass through it?",
    "v 在 softmax 之后才参与计算：它的梯度会经过 softmax 吗？",
)
def dv_from_dS(dy, q, k, v, mask):
    dS = through_softmax(weights(q, k, mask), pairs(dy, v))
    return {"dv": to_keys(dS, dy, k.shape[2]).sum(axis=3)}


# The groups

GROUPS = (grouped_query_attention,)


def by_query_head(dy, q, k, v, mask):
    """dk and dv before their sum over the query heads of a group: (batch, keys, groups, R, D)"""
    P, groups = weights(q, k, mask), k.shape[2]
    dS = through_softmax(P, pairs(dy, v))
    return {"dk": to_keys(dS, q, groups) / root(q), "dv": to_keys(P, dy, groups)}


def reduced(reduce, dy, q, k, v, mask):
    return {name: reduce(d) for name, d in by_query_head(dy, q, k, v, mask).items()}


@fault(
    "{it} holds the last query head of each group alone: the others were overwritten, not added",
    "{it} 只保留了每组最后一个查询头：其余的被覆盖，而不是累加",
    "What does your loop over the query heads do with what the head before has left?",
    "在查询头的循环里，前一个头的结果是被累加还是被覆盖？",
    of=GROUPS,
)
def last_head_of_the_group(dy, q, k, v, mask):
    return reduced(lambda d: d[:, :, :, -1], dy, q, k, v, mask)


@fault(
    "{it} holds the first query head of each group alone",
    "{it} 只含每组的第一个查询头",
    "How many query heads have read one key head in forward?",
    "前向传播中一个键头被几个查询头读取？",
    of=GROUPS,
)
def first_head_of_the_group(dy, q, k, v, mask):
    return reduced(lambda d: d[:, :, :, 0], dy, q, k, v, mask)


@fault(
    "{it} is a mean over the query heads of a group, where it is a sum",
    "{it} 对组内的查询头取了平均，而应当求和",
    "Several query heads use the same key: do their gradients add up or average?",
    "多个查询头用同一个键：它们的梯度是相加还是平均？",
    of=GROUPS,
)
def mean_over_the_group(dy, q, k, v, mask):
    return reduced(lambda d: d.mean(axis=3), dy, q, k, v, mask)


@fault(
    "{it} is summed over all query heads, of every group, and is the same for all key/value heads",
    "{it} 对所有组的全部查询头求和，因而每个键/值头都相同",
    "Which query heads have never read this key head?",
    "哪些查询头从未读取过这个键头？",
    of=GROUPS,
)
def summed_over_all_heads(dy, q, k, v, mask):
    return reduced(lambda d: np.broadcast_to(d.sum(axis=(2, 3), keepdims=True)[:, :, 0], k.shape), dy, q, k, v, mask)


@fault(
    "{it} is summed over every G-th query head, where the heads of a group stand side by side",
    "{it} 以步长 G 选取查询头求和，而同一组的查询头应当是相邻的",
    "When you split the axis of the heads in two, which part comes first: the group, or the head in it?",
    "把头的轴拆成两个轴时，哪个在前：组，还是组内的头？",
    of=GROUPS,
)
def heads_summed_across_groups(dy, q, k, v, mask):
    across = lambda d: d.reshape(*d.shape[:2], -1, d.shape[2], d.shape[4]).sum(axis=2)  # noqa: E731
    return reduced(across, dy, q, k, v, mask)


@fault(
    "query heads read the wrong group, head h that of h mod G: {it} is wrong",
    "查询头用错了组，第 h 个头用了第 h mod G 组：{it} 不正确",
    "With two groups of three heads, which key head belongs to query head 1, counting from 0?",
    "若有两组、每组三个头，下标为 1 的查询头（下标从 0 开始）对应哪个键/值头？",
    of=GROUPS,
)
def heads_of_the_wrong_group(dy, q, k, v, mask):
    heads, groups = q.shape[2], k.shape[2]
    order = np.arange(heads).reshape(-1, groups).T.ravel()  # side by side, those of h mod G
    wrong = backward(dy[:, :, order], q[:, :, order], k, v, mask)
    return wrong | {"dq": wrong["dq"][:, :, np.argsort(order)]}


@fault(
    "all query heads read the first key/value head, as in multi-query attention: {it} is wrong",
    "所有查询头都读取第一个键/值头，如同多查询注意力（MQA）：{it} 不正确",
    "How many key heads are there, and does broadcasting hide all but one of them?",
    "一共有几个键头？广播是否只用到了其中一个？",
    of=GROUPS,
)
def first_group_for_all(dy, q, k, v, mask):
    first = lambda a: share(a[:, :, :1], a.shape[2])  # noqa: E731
    return backward(dy, q, first(k), first(v), mask)


@fault(
    "{it} sums dS or P, and the queries or dy, over the group before they multiply: products of sums",
    "{it} 先在组内把 dS 或 P 以及 q 或 dy 分别求和再相乘：成了和的乘积",
    "Does the dS of one query head ever meet the query of another?",
    "一个查询头的 dS 会与另一个头的查询相乘吗？",
    of=GROUPS,
)
def products_of_sums(dy, q, k, v, mask):
    P, groups = weights(q, k, mask), k.shape[2]
    dS = through_softmax(P, pairs(dy, v))

    def product(M, x):
        summed = M.reshape(len(M), groups, -1, *M.shape[2:]).sum(axis=2)
        return to_keys(summed, grouped(x, groups).sum(axis=3), groups).sum(axis=3)

    return {"dk": product(dS, q) / root(q), "dv": product(P, dy)}
