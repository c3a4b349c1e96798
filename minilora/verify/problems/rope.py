"""Rotary positions. The maths is in ops/rope.py."""

import numpy as np

from ..problem import Case, Problem, Words

# batch, tokens, heads, D of each case
SHAPES = [(3, 5, 2, 4), (2, 7, 3, 8), (4, 3, 5, 6), (5, 4, 7, 10), (6, 8, 4, 12), (7, 6, 8, 14)]


def draw(rng, i):
    batch, tokens, heads, D = SHAPES[i]
    x, dy = rng.standard_normal((2, *SHAPES[i]))
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "D": D}
    return Case(dy, {"x": x}, {"theta": 10.0 + 7 * i}, sizes)


def frequencies(D, theta):
    """θ^(-2i/D) of pair i"""
    return theta ** (-np.arange(0, D, 2) / D)


def angles(x, theta):
    """φ = t θ^(-2i/D), (tokens, 1, D/2)"""
    return np.arange(x.shape[1])[:, None, None] * frequencies(x.shape[-1], theta)


def halves(x):
    return np.split(x, 2, axis=-1)


def rotate(x, phi):
    a, b = halves(x)
    return np.concatenate([a * np.cos(phi) - b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)], axis=-1)


def forward(x, theta):
    return rotate(x, angles(x, theta))


def backward(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, theta))}


COS = Words("the cos term", "cos 项")
SIN = Words("the sin term", "sin 项")


def terms(dy, x, theta):
    phi = angles(x, theta)
    a, b = halves(dy)
    return {
        "dx": {
            COS: np.concatenate([a * np.cos(phi), b * np.cos(phi)], axis=-1),
            SIN: np.concatenate([b * np.sin(phi), -a * np.sin(phi)], axis=-1),
        }
    }


def lengths(x):
    """‖·‖² of each pair"""
    a, b = halves(x)
    return a * a + b * b


def lengths_kept(tensors, case):
    before, after = lengths(case.dy), lengths(tensors["dx"])
    return float(np.abs(after - before).max() / before.max())


def first_position(tensors, case):
    return float(np.abs(tensors["dx"] - case.dy)[:, 0].max() / np.abs(case.dy).max())


rope = Problem(
    "rope",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "each pair of dx is as long as that of dy, because a rotation keeps lengths",
            "dx 的每一对数与 dy 中对应的一对长度相同，因为旋转保持长度",
        ): lengths_kept,
        Words(
            "dx = dy at position 0, where the angle is 0",
            "在位置 0 处 dx = dy，因为那里的角度为 0",
        ): first_position,
    },
    formula="(a, b) → (a cos φ - b sin φ, b cos φ + a sin φ), the halves of each head, φ = t θ^(-2i/D), t = 0, 1, ...",
    aliases=("rotary",),
)
fault = rope.fault


@fault(
    "dx is rotated by φ, as in forward, where the gradient is rotated back",
    "dx 像前向传播那样旋转了 φ，而梯度应当反向旋转",
    "What is the transpose of a rotation matrix?",
    "旋转矩阵的转置是什么？",
)
def not_inverted(dy, x, theta):
    return {"dx": rotate(dy, angles(x, theta))}


@fault(
    "dx is dy itself: the rotation has no backward",
    "dx 就是 dy 本身：旋转没有反向传播",
    "Does a change of x reach y unturned?",
    "x 的变化会原封不动地传到 y 吗？",
)
def not_rotated(dy, x, theta):
    return {"dx": dy.copy()}


@fault(
    "the positions in the angles of dx count from 1, where forward counts from 0",
    "dx 的角度中位置从 1 数起，而前向传播从 0 数起",
    "By which angle does forward turn the first token?",
    "前向传播把第一个词元转了多大角度？",
)
def positions_from_one(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, theta) - frequencies(x.shape[-1], theta))}


@fault(
    "the positions in the angles of dx run on from sample to sample, where each sample begins at 0",
    "dx 的角度中位置在样本之间连续递增，而每个样本都应从 0 开始",
    "At which position does the second sample of a batch begin?",
    "批次中第二个样本从哪个位置开始？",
)
def positions_run_on(dy, x, theta):
    batch, tokens, _, D = x.shape
    t = np.arange(batch * tokens).reshape(batch, tokens, 1, 1)
    return {"dx": rotate(dy, -t * frequencies(D, theta))}


@fault(
    "the angles of dx grow with the head, where they grow with the token",
    "dx 的角度随头的序号增大，而应当随词元的位置增大",
    "Which axis of x is the position?",
    "x 的哪个轴表示位置？",
)
def heads_for_positions(dy, x, theta):
    return {"dx": rotate(dy, -np.arange(x.shape[2])[:, None] * frequencies(x.shape[-1], theta))}


@fault(
    "cos and sin are exchanged in dx",
    "dx 中 cos 和 sin 互换了",
    "At position 0 nothing is turned: which of the two factors is 1 there?",
    "位置 0 处没有旋转：那里哪个因子等于 1？",
)
def cos_and_sin_exchanged(dy, x, theta):
    return {"dx": rotate(dy, angles(x, theta) - np.pi / 2)}  # cos(φ - π/2) = sin φ, sin(φ - π/2) = -cos φ


@fault(
    "dx lacks the sin term, by which the two halves are mixed",
    "dx 缺少 sin 项，即把两半混合起来的那一项",
    "How many outputs does one entry of x reach?",
    "x 的一个元素影响几个输出？",
)
def no_sin_term(dy, x, theta):
    return {"dx": terms(dy, x, theta)["dx"][COS]}


@fault(
    "dx lacks the cos term, by which each half keeps a part of itself",
    "dx 缺少 cos 项，即每一半保留自身的那一项",
    "At position 0 nothing is turned: what is dx there?",
    "位置 0 处没有旋转：那里的 dx 应是什么？",
)
def no_cos_term(dy, x, theta):
    return {"dx": terms(dy, x, theta)["dx"][SIN]}


@fault(
    "the sin term of dx has the same sign in both halves, which is no rotation",
    "dx 的 sin 项在两半中符号相同，这不是旋转",
    "What is the determinant of your 2 × 2 matrix?",
    "你的 2 × 2 矩阵的行列式是多少？",
)
def same_sign_in_both_halves(dy, x, theta):
    phi = angles(x, theta)
    a, b = halves(dy)
    return {"dx": np.concatenate([a * np.cos(phi) + b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)], axis=-1)}


@fault(
    "only the first half of dx is rotated: the second is that of dy",
    "dx 只有前一半被旋转：后一半仍是 dy 的",
    "Which of the two numbers of a pair does forward change?",
    "前向传播改变一对数中的哪一个？",
)
def first_half_only(dy, x, theta):
    first, _ = halves(rotate(dy, -angles(x, theta)))
    return {"dx": np.concatenate([first, halves(dy)[1]], axis=-1)}


@fault(
    "dx pairs neighbours, where forward pairs entry i of the first half with entry i of the second",
    "dx 把相邻的数配成一对，而前向传播把前一半的第 i 个与后一半的第 i 个配对",
    "With which entry does forward mix the first entry of a head?",
    "前向传播把一个头的第一个元素与哪个元素混合？",
)
def neighbours_paired(dy, x, theta):
    turned = rotate(np.concatenate([dy[..., ::2], dy[..., 1::2]], axis=-1), -angles(x, theta))
    return {"dx": np.stack(halves(turned), axis=-1).reshape(dy.shape)}


@fault(
    "all pairs of dx are turned by the same angle, where each pair has a frequency of its own",
    "dx 的所有数对都转了同样的角度，而每一对应有自己的频率",
    "How far is the last pair turned from one token to the next, and how far the first?",
    "相邻词元之间，最后一对转多少？第一对转多少？",
)
def one_frequency(dy, x, theta):
    return {"dx": rotate(dy, -np.arange(x.shape[1])[:, None, None])}


@fault(
    "the exponent of θ in dx lacks the factor 2",
    "dx 中 θ 的指数缺少因子 2",
    "Does i in the exponent count the pairs of a head, or its entries?",
    "指数里的 i 数的是一个头的数对，还是元素？",
)
def exponent_halved(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, np.sqrt(theta)))}


@fault(
    "the exponent of θ in dx has the wrong sign: later pairs turn faster, where they turn slower",
    "dx 中 θ 的指数符号错误：靠后的数对转得更快，而应当更慢",
    "Which pair turns fastest in forward?",
    "前向传播中哪一对转得最快？",
)
def exponent_inverted(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, 1 / theta))}


@fault(
    "the exponent of θ in dx divides by the width of all heads together, where D is the width of one head",
    "dx 中 θ 的指数除以了所有头的总宽度，而 D 应是单个头的宽度",
    "Do two heads of one token turn by the same angles?",
    "同一个词元的两个头转的角度相同吗？",
)
def exponent_over_all_heads(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, theta ** (1 / x.shape[2])))}
