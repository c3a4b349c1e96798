"""Dropout, with the mask as an argument. The maths is in ops/dropout.py."""

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, width and p of each case
SHAPES = [(5, 3, 8, 0.2), (4, 7, 6, 0.1), (3, 5, 9, 0.3), (6, 2, 7, 0.4), (2, 8, 5, 0.15), (7, 4, 10, 0.25)]


def draw(rng, i):
    *shape, p = SHAPES[i]
    dy, x = rng.standard_normal((2, *shape))
    sizes = dict(zip(["batch", "tokens", "width"], shape, strict=True)) | {"1-p": 1 - p}
    return Case(dy, {"x": x}, {"keep": draw_mask(rng, shape, p), "p": p}, sizes)


def draw_mask(rng, shape, p):
    """0 with probability p, else 1/(1-p)."""
    return (rng.random(shape) >= p) / (1 - p)


def forward(x, keep, p):
    return x * keep


def backward(dy, x, keep, p):
    return {"dx": dy * keep}


def masked(dy, x, keep, p):
    return {"dx": (0 * dy, dy / (1 - p))}


def at_dropped(tensors, case):
    dx, kept = tensors["dx"], case.constants["keep"] != 0
    return relative_error(dx, dx * kept)


dropout = Problem(
    "dropout",
    forward,
    backward,
    draw,
    laws={
        Words(
            "dx is 0 where x was dropped, because such an x changes no output",
            "在 x 被丢弃的位置 dx 为 0，因为那里的 x 不影响输出",
        ): at_dropped
    },
    formula="y = x ∘ keep; keep is 0 where x is dropped, else 1/(1-p)",
    rows=True,
    pairs=False,
    masked=masked,
)
fault = dropout.fault


@fault(
    "dx lacks the mask: dy passes as though nothing had been dropped",
    "dx 缺少掩码：dy 原样通过，好像没有任何元素被丢弃",
    "How much does the loss change if you change an x that forward has set to 0?",
    "如果改变一个在前向传播中被置零的 x，损失会变化多少？",
)
def mask_forgotten(dy, x, keep, p):
    return {"dx": dy}


@fault(
    "dx lacks the factor 1/(1-p) at the entries that were kept",
    "dx 在保留的元素上缺少因子 1/(1-p)",
    "What else does forward do to the entries that survive, so that the mean of y is x?",
    "为了使 y 的期望等于 x，前向传播对保留下来的元素还做了什么？",
)
def mask_not_rescaled(dy, x, keep, p):
    return {"dx": dy * keep * (1 - p)}


@fault(
    "dx is rescaled by 1/(1-p) everywhere, but what was dropped is not set to 0",
    "dx 处处乘了 1/(1-p)，但被丢弃的位置没有置零",
    "Forward does two things to x: which of them is missing on the way back?",
    "前向传播对 x 做了两件事：反向时少了哪一件？",
)
def rescaled_not_masked(dy, x, keep, p):
    return {"dx": dy / (1 - p)}


@fault(
    "dx applies the mask twice, and with it the factor 1/(1-p)",
    "dx 把掩码乘了两次，因子 1/(1-p) 也随之乘了两次",
    "How often does x meet the mask on its way to y?",
    "x 到 y 的路上遇到掩码几次？",
)
def mask_twice(dy, x, keep, p):
    return {"dx": dy * keep * keep}


@fault(
    "dx uses the mask the wrong way round: the gradient passes where x was dropped",
    "dx 把掩码用反了：梯度恰好通过被丢弃的位置",
    "Does a 0 in the mask mean kept or dropped?",
    "掩码中的 0 表示保留还是丢弃？",
)
def mask_inverted(dy, x, keep, p):
    return {"dx": dy * (1 / (1 - p) - keep)}


@fault(
    "dx is rescaled by 1/p, where forward rescales by 1/(1-p)",
    "dx 乘的是 1/p，而前向传播乘的是 1/(1-p)",
    "Is p the probability to drop or to keep?",
    "p 是丢弃的概率，还是保留的概率？",
)
def divided_by_p(dy, x, keep, p):
    return {"dx": dy * keep * (1 - p) / p}


@fault(
    "dx uses the mask of the first sample for all of them",
    "dx 对所有样本都用了第一个样本的掩码",
    "Were the same features dropped in every sample?",
    "每个样本被丢弃的是相同的特征吗？",
)
def first_mask_for_all(dy, x, keep, p):
    return {"dx": dy * keep[:1]}


@fault(
    "dx is multiplied by x, which the derivative of y by x no longer contains",
    "dx 多乘了 x，而 y 对 x 的导数中已不含 x",
    "y is linear in x: on what does its slope depend?",
    "y 关于 x 是线性的：它的斜率取决于什么？",
)
def multiplied_by_x(dy, x, keep, p):
    return {"dx": dy * x * keep}


@fault(
    "dx is the mask alone, without the upstream gradient dy",
    "dx 只是掩码本身，漏掉了上游梯度 dy",
    "Of what is this the derivative: of the sum of all y, or of the loss?",
    "这是谁的导数：所有 y 之和的，还是损失的？",
)
def dy_forgotten(dy, x, keep, p):
    return {"dx": keep}
