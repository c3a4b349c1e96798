"""The VeRA layer, y = x Wᵀ + b ∘ ((d ∘ (x Aᵀ)) Bᵀ) with W, A and B frozen. The maths is in ops/vera.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, in, out, r of each case: one is square
SHAPES = [(5, 3, 8, 6, 2), (4, 6, 7, 9, 3), (3, 2, 10, 9, 8), (2, 4, 6, 8, 5), (7, 2, 9, 9, 6), (6, 5, 11, 10, 7)]


def draw(rng, i):
    batch, tokens, width_in, width_out, r = SHAPES[i]
    inputs = {
        "x": rng.standard_normal((batch, tokens, width_in)),
        "d": rng.standard_normal(r),
        "b": rng.standard_normal(width_out),
    }
    shapes = {"W": (width_out, width_in), "A": (r, width_in), "B": (width_out, r)}
    constants = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sizes = {"r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def total(a):
    """Summed over the rows."""
    return a.sum(axis=(0, 1))


def forward(x, d, b, W, A, B):
    return x @ W.T + b * (d * (x @ A.T) @ B.T)


def backward(dy, x, d, b, W, A, B):
    h = x @ A.T
    dq = b * dy @ B
    return {"dx": dy @ W + d * dq @ A, "dd": total(dq * h), "db": total(dy * (d * h @ B.T))}


def terms(dy, x, d, b, W, A, B):
    return {
        "dx": {
            Words("the base path", "基础路径"): dy @ W,
            Words("the low-rank path", "低秩路径"): d * (b * dy @ B) @ A,
        }
    }


def same_share(tensors, case):
    d, b = case.inputs["d"], case.inputs["b"]
    return relative_error(np.sum(b * tensors["db"]), np.sum(d * tensors["dd"]))


vera = Problem(
    "vera",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "⟨b, db⟩ = ⟨d, dd⟩, because a factor moved from d to b changes no output",
            "⟨b, db⟩ = ⟨d, dd⟩，因为把一个因子从 d 移到 b 不改变输出",
        ): same_share
    },
    formula="y = x Wᵀ + b ∘ ((d ∘ (x Aᵀ)) Bᵀ)",
    rows=True,
    pairs=False,
)
fault = vera.fault


@fault(
    "the two vectors are exchanged: dd holds d where it holds b, and db holds b where it holds d",
    "两个向量用反了：dd 中应当是 b 而写成了 d，db 中应当是 d 而写成了 b",
    "Which of the two vectors stands between h and y on the way back to d?",
    "从 y 反向传播到 d 的路上，经过的是两个向量中的哪一个？",
    whole=True,
)
def vectors_exchanged(dy, x, d, b, W, A, B):
    h = x @ A.T
    return {"dd": total(d * (dy @ B) * h), "db": total(b * dy * (h @ B.T))}


@fault(
    "dd lacks b: dy reaches d through b and B",
    "dd 缺少 b：dy 要经过 b 和 B 才到达 d",
    "If b is zero, does d change y?",
    "若 b 为零，d 还会改变 y 吗？",
)
def no_b_in_d(dy, x, d, b, W, A, B):
    return {"dd": total(dy @ B * (x @ A.T))}


@fault(
    "db lacks d: b multiplies (d ∘ h) Bᵀ, not h Bᵀ",
    "db 缺少 d：b 乘的是 (d ∘ h) Bᵀ，而不是 h Bᵀ",
    "What exactly does b multiply in forward?",
    "前向传播中 b 乘的究竟是什么？",
)
def no_d_in_b(dy, x, d, b, W, A, B):
    return {"db": total(dy * (x @ A.T @ B.T))}


@fault(
    "the low-rank path of dx lacks b",
    "dx 的低秩路径缺少 b",
    "At the start b is zero, and the adapter is switched off: is it switched off in your dx too?",
    "训练开始时 b 为零，适配器相当于关闭：在你的 dx 中它也关闭了吗？",
)
def no_b_in_x(dy, x, d, b, W, A, B):
    return {"dx": dy @ W + d * (dy @ B) @ A}


@fault(
    "the low-rank path of dx lacks d",
    "dx 的低秩路径缺少 d",
    "Through which four factors does x reach y beside W?",
    "除了 W 之外，x 经过哪四个因子到达 y？",
)
def no_d_in_x(dy, x, d, b, W, A, B):
    return {"dx": dy @ W + b * dy @ B @ A}


@fault(
    "dd holds the factor d: y is linear in d, and its derivative does not",
    "dd 多乘了 d：y 对 d 是线性的，导数中不再含有 d",
    "If d is zero, is dd zero?",
    "若 d 为零，dd 也为零吗？",
)
def d_in_its_own_gradient(dy, x, d, b, W, A, B):
    return {"dd": d * backward(dy, x, d, b, W, A, B)["dd"]}


@fault(
    "db holds the factor b: y is linear in b, and its derivative does not",
    "db 多乘了 b：y 对 b 是线性的，导数中不再含有 b",
    "If b is zero, as at the start, is db zero, so that nothing ever learns?",
    "训练开始时 b 为零：db 也为零、因而什么都学不到吗？",
)
def b_in_its_own_gradient(dy, x, d, b, W, A, B):
    return {"db": b * backward(dy, x, d, b, W, A, B)["db"]}


@fault(
    "{it} is divided by the rank r, as LoRA's scale does: VeRA has no scale, d and b take its place",
    "{it} 除以了秩 r，如同 LoRA 的缩放因子：VeRA 没有缩放因子，由 d 和 b 代替",
    "Does a number beside b, d, A and B stand in forward?",
    "前向传播中，除了 b、d、A、B 之外还有别的数吗？",
)
def scale_of_lora(dy, x, d, b, W, A, B):
    right = backward(dy, x, d, b, W, A, B)
    return {"dx": dy @ W + d * (b * dy @ B) @ A / len(A), "dd": right["dd"] / len(A), "db": right["db"] / len(A)}


@fault(
    "dx lacks the base path, through the frozen W",
    "dx 缺少经过冻结权重 W 的基础路径",
    "W gets no gradient: does that keep the gradient from passing through it to x?",
    "W 没有梯度：这会阻止梯度经过它传到 x 吗？",
)
def no_base_path(dy, x, d, b, W, A, B):
    return {"dx": d * (b * dy @ B) @ A}


@fault(
    "dx lacks the low-rank path: A and B are frozen, and the gradient passes through them all the same",
    "dx 缺少低秩路径：A 和 B 虽然冻结，梯度仍然要经过它们",
    "Does a frozen matrix stop the gradient, or only keep its own?",
    "冻结的矩阵会阻断梯度，还是只是自己没有梯度？",
)
def no_low_rank_path(dy, x, d, b, W, A, B):
    return {"dx": dy @ W}


@fault(
    "dd is zero, which is so only as long as b is zero",
    "dd 为零，而这只在 b 为零时成立",
    "At the start of training dd is indeed zero: which vector makes it so, and what happens to that vector?",
    "训练开始时 dd 确实为零：是哪个向量使它为零？这个向量之后会怎样？",
)
def as_if_b_were_zero(dy, x, d, b, W, A, B):
    return {"dd": 0 * d}
