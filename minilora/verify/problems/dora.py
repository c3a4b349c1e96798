"""DoRA, y = g ∘ (x Vᵀ) with V = W + s B A, W frozen, and g = m/‖V‖ of each row: a length for each output.

    G = dyᵀ x               the gradient of g ∘ V, summed over the rows of x
    dm = ⟨G, V⟩/n           n = ‖V‖, of each row; v̂ = V/n
    dV = g ∘ (G - v̂ ⟨G, v̂⟩)       the second term is the path through the norm
    dB = s dV Aᵀ            dA = s Bᵀ dV            dx = (g ∘ dy) V

Source: Liu et al. (2024), "DoRA: weight-decomposed low-rank adaptation". Its section 4.3 holds n constant in backward,
which saves memory under autograd, and PEFT does so: there dV = g ∘ G, which is not the gradient.
"""

import numpy as np

from ..problem import Case, Problem, Words, relative_error
from .linear import outer_total, rows

# batch, tokens, in, out, r, alpha of each case: one is square
SHAPES = [(5, 3, 8, 6, 2, 7), (4, 6, 7, 9, 3, 16), (3, 2, 10, 9, 8, 14), (2, 4, 6, 8, 5, 3), (7, 2, 9, 9, 6, 11),
          (6, 5, 11, 10, 7, 4)]  # fmt: skip


def draw(rng, i):
    batch, tokens, width_in, width_out, r, alpha = SHAPES[i]
    x = rng.standard_normal((batch, tokens, width_in))
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((width_out, r))
    m = 1 + rng.random(width_out)
    constants = {"W": 2 * rng.standard_normal((width_out, width_in)), "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    dy = rng.standard_normal((batch, tokens, width_out))
    return Case(dy, {"x": x, "m": m, "A": A, "B": B}, constants, sizes)


def total(a, axis=1):
    return a.sum(axis=axis, keepdims=True)


def merged(A, B, W, alpha, r):
    """V and the lengths n of its rows, (out, 1)"""
    V = W + alpha / r * B @ A
    return V, np.sqrt(total(V * V))


def forward(x, m, A, B, W, alpha, r):
    V, n = merged(A, B, W, alpha, r)
    return x @ (m[:, None] / n * V).T


def through(dV, A, B, s):
    """dA and dB"""
    return {"dA": s * B.T @ dV, "dB": s * dV @ A.T}


def backward(dy, x, m, A, B, W, alpha, r):
    V, n = merged(A, B, W, alpha, r)
    g, unit = m[:, None] / n, V / n
    G = outer_total(dy, x)
    dV = g * (G - unit * total(G * unit))
    dm = (G * unit).sum(axis=1)
    return {"dx": dy * g[:, 0] @ V, "dm": dm, **through(dV, A, B, alpha / r)}


def complete(x, m, A, B, W, alpha=None, r=None, s=None):
    r = len(A) if r is None else r
    if alpha is None:
        alpha = r if s is None else s * r
    return {"W": W, "alpha": alpha, "r": r}


def exchange(tensors, case):
    A, B = case.inputs["A"], case.inputs["B"]
    return relative_error(B.T @ tensors["dB"], tensors["dA"] @ A.T)


def along_m(tensors, case):
    y = forward(**case.inputs, **case.constants)
    return relative_error(case.inputs["m"] * tensors["dm"], (case.dy * y).sum(axis=(0, 1)))


dora = Problem(
    "dora",
    forward,
    backward,
    draw,
    laws={
        Words(
            "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output",
            "Bᵀ dB = dA Aᵀ，因为把一个可逆矩阵从 B 移到 A 不改变输出",
        ): exchange,
        Words(
            "m ∘ dm is dy ∘ y summed over the rows, because y is linear in m",
            "m ∘ dm 等于 dy ∘ y 对所有行求和，因为 y 对 m 是线性的",
        ): along_m,
    },
    formula="y = x W'ᵀ, W' = m ∘ V/‖V‖ of each row, V = W + s B A, s = α/r",
    complete=complete,
    also="also without r (that of A), and with s for alpha/r",
    rows=True,
)
fault = dora.fault


@fault(
    "{it} holds the norm ‖V‖ constant: the convention of PEFT and of section 4.3 of the DoRA paper, not the gradient",
    "{it} 把范数 ‖V‖ 当作常数：这是 PEFT 和 DoRA 论文 4.3 节的约定，而不是完整的梯度",
    "Does ‖V‖ change when B changes, and do you want the gradient, or PEFT's step?",
    "B 变化时 ‖V‖ 会变吗？你要的是梯度，还是 PEFT 的更新？",
)
def norm_held_constant(dy, x, m, A, B, W, alpha, r):
    _, n = merged(A, B, W, alpha, r)
    return through(m[:, None] / n * outer_total(dy, x), A, B, alpha / r)


@fault(
    "{it} takes the norm of each column of V, where m is a length for each output, a row",
    "{it} 用的是 V 每一列的范数，而 m 是每个输出（即每一行）的长度",
    "How many entries has m: as many as W has rows, or columns?",
    "m 有多少个元素：与 W 的行数相同，还是与列数相同？",
)
def norm_of_columns(dy, x, m, A, B, W, alpha, r):
    V, _ = merged(A, B, W, alpha, r)
    n, G = np.sqrt(total(V * V, axis=0)), outer_total(dy, x)
    dV = m[:, None] / n * (G - V / n * total(G * V / n, axis=0))
    return {"dx": dy * m @ (V / n), "dm": (G * V / n).sum(axis=1), **through(dV, A, B, alpha / r)}


@fault(
    "{it} takes the norm of the frozen W, where it is that of V = W + s B A",
    "{it} 用的是冻结权重 W 的范数，而应当是 V = W + s B A 的范数",
    "Which matrix has rows of the length m in forward, at every step of training?",
    "前向传播中，训练的每一步，哪个矩阵的各行被除以自己的长度？",
)
def norm_of_W(dy, x, m, A, B, W, alpha, r):
    V, _ = merged(A, B, W, alpha, r)
    n, G = np.sqrt(total(W * W)), outer_total(dy, x)
    return {"dx": dy * (m / n[:, 0]) @ V, "dm": (G * V / n).sum(axis=1), **through(m[:, None] / n * G, A, B, alpha / r)}


@fault(
    "{it} lacks the magnitude m: V is normalised, and not scaled again",
    "{it} 缺少幅度 m：V 归一化之后没有再乘回来",
    "If m is doubled, the output doubles: what do these gradients do?",
    "若 m 加倍，输出也加倍：这些梯度会怎样？",
)
def magnitude_forgotten(dy, x, m, A, B, W, alpha, r):
    wrong = backward(dy, x, np.ones_like(m), A, B, W, alpha, r)
    return {name: wrong[name] for name in ("dx", "dA", "dB")}


@fault(
    "dm lacks the factor 1/‖V‖",
    "dm 缺少因子 1/‖V‖",
    "What does m multiply in forward: V, or V divided by its length?",
    "前向传播中 m 乘的是 V，还是除以长度之后的 V？",
)
def magnitude_not_divided(dy, x, m, A, B, W, alpha, r):
    V, _ = merged(A, B, W, alpha, r)
    return {"dm": (outer_total(dy, x) * V).sum(axis=1)}


@fault(
    "dm holds the factor m: y is linear in m, and its derivative does not",
    "dm 多乘了 m：y 对 m 是线性的，导数中不再含有 m",
    "If m is zero, is dm zero?",
    "若 m 为零，dm 也为零吗？",
)
def magnitude_in_its_own_gradient(dy, x, m, A, B, W, alpha, r):
    return {"dm": m * backward(dy, x, m, A, B, W, alpha, r)["dm"]}


@fault(
    "dm is zero: the magnitude is never trained",
    "dm 为零：幅度从不被训练",
    "Which three tensors does DoRA train?",
    "DoRA 训练哪三个张量？",
)
def magnitude_frozen(dy, x, m, A, B, W, alpha, r):
    return {"dm": 0 * m}


@fault(
    "dx passes through W alone, where it passes through V = W + s B A",
    "dx 只经过 W，而应当经过 V = W + s B A",
    "By how many paths does x reach y?",
    "x 通过几条路径到达 y？",
)
def no_low_rank_path(dy, x, m, A, B, W, alpha, r):
    _, n = merged(A, B, W, alpha, r)
    return {"dx": dy * (m / n[:, 0]) @ W}


@fault(
    "{it} lacks the scale s = α/r",
    "{it} 缺少缩放因子 s = α/r",
    "What exactly stands between W and B A in forward?",
    "前向传播中 W 与 B A 之间还有什么？",
)
def no_scale(dy, x, m, A, B, W, alpha, r):
    right = backward(dy, x, m, A, B, W, alpha, r)
    return {name: right[name] * r / alpha for name in ("dA", "dB")}


@fault(
    "the scale s = α/r is applied twice, in {it}",
    "缩放因子 s = α/r 乘了两次（在 {it} 中）",
    "Which of the quantities that you multiply contains the scale already?",
    "你相乘的几个量中，哪一个已经含有缩放因子？",
)
def scale_twice(dy, x, m, A, B, W, alpha, r):
    right = backward(dy, x, m, A, B, W, alpha, r)
    return {name: right[name] * alpha / r for name in ("dA", "dB")}


@fault(
    "{it} is a mean over the rows, where it is a sum",
    "{it} 对各行取了平均，而应当求和",
    "Every row uses the same m, A and B: do their contributions add up or average?",
    "每一行都用同样的 m、A 和 B：它们的贡献是相加还是平均？",
)
def averaged_over_rows(dy, x, m, A, B, W, alpha, r):
    right = backward(dy, x, m, A, B, W, alpha, r)
    return {name: right[name] / rows(x) for name in ("dm", "dA", "dB")}


@fault(
    "{it} holds the last sample alone: the others were overwritten, not added",
    "{it} 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, m, A, B, W, alpha, r):
    wrong = backward(dy[-1:], x[-1:], m, A, B, W, alpha, r)
    return {name: wrong[name] for name in ("dm", "dA", "dB")}
