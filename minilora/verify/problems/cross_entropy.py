"""Cross-entropy of softmax(logits). The maths is in ops/cross_entropy.py.

`count` divides the loss, as where a batch is a part of a larger one: it is neither the number of positions here
nor that of the labelled ones.
"""

import numpy as np

from ..problem import Case, Problem, Words

IGNORE = -100

# batch, tokens, V, count, ignored positions of each case
SHAPES = [(3, 5, 7, 20, 2), (2, 4, 9, 11, 3), (4, 6, 5, 31, 4), (5, 3, 8, 26, 5), (6, 7, 4, 50, 6), (7, 8, 6, 71, 7)]


def draw(rng, i):
    batch, tokens, V, count, ignored = SHAPES[i]
    targets = rng.integers(V, size=(batch, tokens))
    targets.flat[rng.choice(targets.size, ignored, replace=False)] = IGNORE
    inputs = {"logits": 2 * rng.standard_normal((batch, tokens, V))}
    sizes = {"batch": batch, "tokens": tokens, "V": V, "count": count}
    return Case(np.asarray(rng.standard_normal()), inputs, {"targets": targets, "count": count}, sizes)


def softmax(z, axis=-1):
    E = np.exp(z - z.real.max(axis=axis, keepdims=True))
    return E / E.sum(axis=axis, keepdims=True)


def onehot(targets, V):
    """A row of zeros where ignored."""
    return 1.0 * (targets[..., None] == np.arange(V))


def labelled(targets):
    return (targets != IGNORE)[..., None]


def forward(logits, targets, count):
    return -(onehot(targets, logits.shape[-1]) * np.log(softmax(logits))).sum() / count


def difference(logits, targets):
    """softmax(z) - onehot(t), 0 where ignored"""
    return labelled(targets) * softmax(logits) - onehot(targets, logits.shape[-1])


def backward(dL, logits, targets, count):
    return {"dlogits": dL / count * difference(logits, targets)}


def complete(logits, targets, count=None):
    """Without a count: a mean over all positions, each of which has a label."""
    if count is None:
        labels = np.arange(targets.size).reshape(targets.shape) % logits.shape[-1]
        targets, count = np.where(targets == IGNORE, labels, targets), targets.size
    return {"targets": targets, "count": count}


def without_ignored(case):
    return case._replace(constants=complete(case.inputs["logits"], case.constants["targets"]))


SOFTMAX = Words("the softmax term", "softmax 项")
ONE_HOT = Words("the one-hot term", "one-hot 项")


def terms(dL, logits, targets, count):
    return {
        "dlogits": {
            SOFTMAX: dL / count * labelled(targets) * softmax(logits),
            ONE_HOT: -dL / count * onehot(targets, logits.shape[-1]),
        }
    }


def row_sums(tensors, case):
    dz = tensors["dlogits"]
    return float(np.abs(dz.sum(axis=-1)).max() / np.abs(dz).max())


def ignored_rows(tensors, case):
    dz = tensors["dlogits"]
    return float(np.abs(dz[case.constants["targets"] == IGNORE]).max() / np.abs(dz).max())


cross_entropy = Problem(
    "cross_entropy",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "each row of dlogits sums to 0, because shifting a row of logits changes no probability",
            "dlogits 的每一行之和为 0，因为平移一行 logits 不改变任何概率",
        ): row_sums,
        Words(
            "dlogits is 0 at ignored positions, because they are not in the loss",
            "dlogits 在被忽略的位置为 0，因为它们不计入损失",
        ): ignored_rows,
    },
    formula="L = -1/count Σ log softmax(z)[target], over the positions with a label; dy is dL; -100 is no label",
    aliases=("ce", "cross_entropy_loss", "softmax_cross_entropy", "nll"),
    complete=complete,
    also="also without count: then a mean over all positions, and all have labels; and without dL, which is then 1",
    rows=True,
    simpler={
        Words(
            "where every position has a label, and count is their number", "每个位置都有标签、count 为位置总数"
        ): without_ignored,
    },
)
fault = cross_entropy.fault


@fault(
    "dlogits lacks the one-hot term, the part that raises the target",
    "dlogits 缺少独热项，即抬高目标类别的那一部分",
    "How does the loss know which token was right?",
    "损失从哪里知道哪个词元是正确的？",
)
def no_onehot_term(dL, logits, targets, count):
    return {"dlogits": terms(dL, logits, targets, count)["dlogits"][SOFTMAX]}


@fault(
    "dlogits lacks the softmax term, the gradient of log Σ exp z",
    "dlogits 缺少 softmax 项，即 log Σ exp z 的梯度",
    "What becomes of the loss when a logit other than the target's rises?",
    "当目标以外的某个 logit 升高时，损失会怎样？",
)
def no_softmax_term(dL, logits, targets, count):
    return {"dlogits": terms(dL, logits, targets, count)["dlogits"][ONE_HOT]}


@fault(
    "dlogits has the wrong sign: the one-hot minus the softmax",
    "dlogits 符号错误：成了独热减去 softmax",
    "Does the loss rise or fall when the logit of the target grows?",
    "目标的 logit 增大时，损失是升还是降？",
)
def sign_flipped(dL, logits, targets, count):
    return {"dlogits": -backward(dL, logits, targets, count)["dlogits"]}


@fault(
    "dlogits lacks the upstream gradient dL",
    "dlogits 缺少上游梯度 dL",
    "If the loss is multiplied by 10 before the backward begins, does your gradient change?",
    "若在反向传播之前把损失乘以 10，你的梯度会变吗？",
)
def upstream_forgotten(dL, logits, targets, count):
    return backward(1, logits, targets, count)


@fault(
    "dlogits is not divided by the count: it belongs to the sum of the losses, not to their mean",
    "dlogits 没有除以 count：它对应的是损失之和，而不是平均",
    "How much does one position weigh in the loss of forward?",
    "在前向传播的损失中，一个位置的权重是多少？",
)
def not_averaged(dL, logits, targets, count):
    return backward(dL, logits, targets, 1)


@fault(
    "dlogits is divided by the number of all positions, the ignored ones among them",
    "dlogits 除以了全部位置的个数，连被忽略的也算在内",
    "Does a position without a label count in the mean?",
    "没有标签的位置计入平均吗？",
)
def divided_by_all_positions(dL, logits, targets, count):
    return backward(dL, logits, targets, targets.size)


@fault(
    "dlogits is divided by the number of labels in this batch, where forward divides by the count it was given",
    "dlogits 除以了本批次的标签个数，而前向传播除以的是给定的 count",
    "When a large batch is taken in parts, by which number must every part divide?",
    "把一个大批次分成几部分计算时，每一部分应除以哪个数？",
)
def divided_by_labels_here(dL, logits, targets, count):
    return backward(dL, logits, targets, labelled(targets).sum())


@fault(
    "dlogits is divided by the size of the vocabulary as well: a mean over the logits",
    "dlogits 还多除以了词表大小：对 logits 也取了平均",
    "Over what does the loss take its mean: the positions, or also the logits of each?",
    "损失对什么取平均：只对位置，还是也对每个位置的 logits？",
)
def divided_by_vocabulary(dL, logits, targets, count):
    return backward(dL, logits, targets, count * logits.shape[-1])


@fault(
    "ignored positions have a gradient in dlogits, as if their label were token 0",
    "被忽略的位置在 dlogits 中有梯度，仿佛它们的标签是 0 号词元",
    "Which label did you put in the place of the ignored one, and what undoes it?",
    "你用哪个标签代替了被忽略的标签？后来又靠什么把它的影响去掉？",
)
def ignored_as_token_zero(dL, logits, targets, count):
    return backward(dL, logits, np.where(targets == IGNORE, 0, targets), count)


@fault(
    "the softmax term of dlogits is left at ignored positions: only the one-hot term is masked there",
    "dlogits 的 softmax 项仍留在被忽略的位置：那里只去掉了独热项",
    "If the loss skips a position, by which way can its logits still matter?",
    "损失跳过了某个位置，它的 logits 还能通过什么途径产生影响？",
)
def softmax_at_ignored(dL, logits, targets, count):
    return {"dlogits": dL / count * (softmax(logits) - onehot(targets, logits.shape[-1]))}


@fault(
    "dlogits is sent once more through the Jacobian of the softmax, which softmax - one-hot contains already",
    "dlogits 又经过了一次 softmax 的雅可比矩阵，而 softmax - 独热 已经包含了它",
    "Is softmax - one-hot the gradient of the probabilities, or of the logits?",
    "softmax - 独热 是对概率的梯度，还是对 logits 的梯度？",
)
def softmax_twice(dL, logits, targets, count):
    P, dz = softmax(logits), backward(dL, logits, targets, count)["dlogits"]
    return {"dlogits": P * (dz - (P * dz).sum(axis=-1, keepdims=True))}


@fault(
    "dlogits is the gradient of the probabilities, -1/P at the target: the backward of the softmax is missing",
    "dlogits 是对概率的梯度，即目标处的 -1/P：缺少 softmax 的反向传播",
    "Which step of forward lies between the logits and the probabilities?",
    "前向传播中 logits 与概率之间隔着哪一步？",
)
def stopped_at_probabilities(dL, logits, targets, count):
    return {"dlogits": -dL / count * onehot(targets, logits.shape[-1]) / softmax(logits)}


@fault(
    "dlogits is 0 outside the target: the Jacobian of the softmax is taken to be diagonal",
    "dlogits 在目标以外全为 0：softmax 的雅可比矩阵被当成了对角阵",
    "If another logit of the row rises, what happens to the probability of the target?",
    "同一行的另一个 logit 升高时，目标的概率会怎样？",
)
def target_only(dL, logits, targets, count):
    return {"dlogits": dL / count * onehot(targets, logits.shape[-1]) * (softmax(logits) - 1)}


@fault(
    "the softmax term of dlogits holds the logits themselves: the softmax is forgotten",
    "dlogits 的 softmax 项用的是 logits 本身：忘了 softmax",
    "Of which loss is logits - one-hot the gradient?",
    "logits - 独热 是哪种损失的梯度？",
)
def logits_for_softmax(dL, logits, targets, count):
    return {"dlogits": dL / count * (labelled(targets) * logits - onehot(targets, logits.shape[-1]))}


@fault(
    "the softmax term of dlogits holds log-probabilities, where it holds probabilities",
    "dlogits 的 softmax 项用了对数概率，而应当是概率",
    "Can the softmax term be negative?",
    "softmax 项可能为负吗？",
)
def log_softmax_for_softmax(dL, logits, targets, count):
    log_P = np.log(softmax(logits))
    return {"dlogits": dL / count * (labelled(targets) * log_P - onehot(targets, logits.shape[-1]))}


@fault(
    "the softmax term of dlogits is a sigmoid of each logit by itself",
    "dlogits 的 softmax 项成了逐个 logit 的 sigmoid",
    "Do the probabilities in your gradient sum to 1 over the vocabulary?",
    "你的梯度中的概率对整个词表求和为 1 吗？",
)
def sigmoid_for_softmax(dL, logits, targets, count):
    sigma = 1 / (1 + np.exp(-logits))
    return {"dlogits": dL / count * (labelled(targets) * sigma - onehot(targets, logits.shape[-1]))}


@fault(
    "the softmax term of dlogits is not normalised: it holds exp(z - max)",
    "dlogits 的 softmax 项没有归一化：用的是 exp(z - max)",
    "What must each row of your softmax sum to?",
    "你的 softmax 每一行之和应是多少？",
)
def not_normalised(dL, logits, targets, count):
    E = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return {"dlogits": dL / count * (labelled(targets) * E - onehot(targets, logits.shape[-1]))}


@fault(
    "the softmax term of dlogits is normalised over the tokens, where it runs over the vocabulary",
    "dlogits 的 softmax 项沿词元位置归一化，而应当沿词表归一化",
    "Between which alternatives does a position choose?",
    "一个位置是在哪些选项之间做选择？",
)
def softmax_over_tokens(dL, logits, targets, count):
    P = softmax(logits, axis=1)
    return {"dlogits": dL / count * (labelled(targets) * P - onehot(targets, logits.shape[-1]))}


@fault(
    "dlogits uses the targets of the next position: they were shifted once more than in forward",
    "dlogits 用了下一个位置的目标：目标比前向传播多移了一位",
    "Are the targets that you were given shifted already?",
    "给你的目标是否已经移过位？",
)
def targets_shifted_again(dL, logits, targets, count):
    last = np.full_like(targets[:, :1], IGNORE)
    return backward(dL, logits, np.concatenate([targets[:, 1:], last], axis=1), count)
