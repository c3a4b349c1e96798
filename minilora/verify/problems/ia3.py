"""(IA)³ on either side of a frozen linear layer. The maths is in ops/ia3.py.

out side        y = l ∘ (x Wᵀ + b)          dx = (l ∘ dy) W         dl = Σ dy ∘ (x Wᵀ + b)
in side         y = (l ∘ x) Wᵀ + b          dx = l ∘ (dy W)         dl = Σ (dy W) ∘ x
"""

# ruff: noqa: E741  (l is the paper's letter)

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, in, out of each case: one is square
SHAPES = [(5, 3, 8, 6), (4, 6, 7, 9), (3, 2, 10, 9), (2, 4, 6, 8), (7, 2, 9, 9), (6, 5, 11, 10)]


def drawn(width_of_l):
    def draw(rng, i):
        batch, tokens, width_in, width_out = SHAPES[i]
        sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
        inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "l": rng.standard_normal(sizes[width_of_l])}
        constants = {"W": rng.standard_normal((width_out, width_in)), "b": rng.standard_normal(width_out)}
        return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)

    return draw


def total(a):
    """Summed over the rows."""
    return a.sum(axis=(0, 1))


def complete(x, l, W, b=None):
    return {"W": W, "b": 0 if b is None else b}


# ---- on the out side ----


def forward(x, l, W, b):
    return l * (x @ W.T + b)


def backward(dy, x, l, W, b):
    return {"dx": l * dy @ W, "dl": total(dy * (x @ W.T + b))}


def along_y(tensors, case):
    y = forward(**case.inputs, **case.constants)
    return relative_error(case.inputs["l"] * tensors["dl"], total(case.dy * y))


ia3 = Problem(
    "ia3",
    forward,
    backward,
    drawn("out"),
    laws={
        Words(
            "l ∘ dl is dy ∘ y summed over the rows, because y is linear in l",
            "l ∘ dl 等于 dy ∘ y 对所有行求和，因为 y 对 l 是线性的",
        ): along_y
    },
    formula="y = l ∘ (x Wᵀ + b)",
    complete=complete,
    also="also without b",
    rows=True,
)
fault = ia3.fault


@fault(
    "dl lacks the bias: l rescales x Wᵀ + b, and not x Wᵀ alone",
    "dl 缺少偏置：l 缩放的是 x Wᵀ + b，而不只是 x Wᵀ",
    "Is b added before or after l multiplies?",
    "b 是在乘 l 之前还是之后加上的？",
)
def bias_not_scaled(dy, x, l, W, b):
    return {"dl": total(dy * (x @ W.T))}


@fault(
    "dl lacks the output x Wᵀ + b that l multiplies: it is the gradient of a vector that is added",
    "dl 缺少与 l 相乘的输出 x Wᵀ + b：这是相加的向量的梯度",
    "What is y where l is zero?",
    "l 为零时 y 是什么？",
)
def added_to_y(dy, x, l, W, b):
    return {"dl": total(dy)}


@fault(
    "dx lacks l: dy passes l on its way to W",
    "dx 缺少 l：dy 在到达 W 之前要先经过 l",
    "Where l is zero, does x change y?",
    "l 为零的地方，x 还会改变 y 吗？",
)
def no_l_in_x(dy, x, l, W, b):
    return {"dx": dy @ W}


@fault(
    "dl is summed with y, which holds l already, where it is with x Wᵀ + b",
    "dl 求和时用了已经含有 l 的 y，而应当用 x Wᵀ + b",
    "Did you keep the output before or after l?",
    "你保存的是乘 l 之前还是之后的输出？",
)
def after_l(dy, x, l, W, b):
    return {"dl": total(dy * forward(x, l, W, b))}


@fault(
    "dl is that of the in side, Σ (dy W) ∘ x, a number for each input: here l rescales the outputs",
    "dl 用的是输入一侧的公式 Σ (dy W) ∘ x，每个输入一个数：这里 l 缩放的是输出",
    "How many entries has l: as many as x has features, or y?",
    "l 有多少个元素：与 x 的特征数相同，还是与 y 的相同？",
)
def of_the_in_side(dy, x, l, W, b):
    return {"dl": total(dy @ W * x)}


# ---- on the in side ----


def feed_forward(x, l, W, b):
    return (l * x) @ W.T + b


def feed_forward_backward(dy, x, l, W, b):
    dz = dy @ W
    return {"dx": l * dz, "dl": total(dz * x)}


def along_x(tensors, case):
    return relative_error(case.inputs["l"] * tensors["dl"], total(tensors["dx"] * case.inputs["x"]))


ia3_feed_forward = Problem(
    "ia3_feed_forward",
    feed_forward,
    feed_forward_backward,
    drawn("in"),
    laws={
        Words(
            "l ∘ dl is dx ∘ x summed over the rows, because y depends on l ∘ x alone",
            "l ∘ dl 等于 dx ∘ x 对所有行求和，因为 y 只依赖于 l ∘ x",
        ): along_x
    },
    formula="y = (l ∘ x) Wᵀ + b",
    complete=complete,
    also="also without b",
    rows=True,
)
fault = ia3_feed_forward.fault


@fault(
    "dl lacks the x that l multiplies: it is the gradient of a vector that is added",
    "dl 缺少与 l 相乘的 x：这是相加的向量的梯度",
    "What reaches W where l is zero?",
    "l 为零时，到达 W 的是什么？",
)
def added_to_x(dy, x, l, W, b):
    return {"dl": total(dy @ W)}


@fault(
    "dx lacks l: it is the gradient dy W of l ∘ x, not of x",
    "dx 缺少 l：这是 l ∘ x 的梯度 dy W，而不是 x 的",
    "What does W see in forward: x, or l ∘ x?",
    "前向传播中 W 看到的是 x 还是 l ∘ x？",
)
def no_l_in_dx(dy, x, l, W, b):
    return {"dx": dy @ W}


@fault(
    "dl is summed with l ∘ x, which holds l already, where it is with x",
    "dl 求和时用了已经含有 l 的 l ∘ x，而应当用 x",
    "Did you keep the input before or after l?",
    "你保存的是乘 l 之前还是之后的输入？",
)
def input_after_l(dy, x, l, W, b):
    return {"dl": total(dy @ W * (l * x))}


@fault(
    "dl is that of the out side, Σ dy ∘ (x Wᵀ + b), a number for each output: here l rescales the inputs",
    "dl 用的是输出一侧的公式 Σ dy ∘ (x Wᵀ + b)，每个输出一个数：这里 l 缩放的是输入",
    "How many entries has l: as many as x has features, or y?",
    "l 有多少个元素：与 x 的特征数相同，还是与 y 的相同？",
)
def of_the_out_side(dy, x, l, W, b):
    return {"dl": total(dy * (x @ W.T + b))}


@fault(
    "dx holds l twice",
    "dx 乘了两次 l",
    "Was the gradient that you multiplied by l that of l ∘ x, or already that of x?",
    "你乘以 l 的那个梯度，是 l ∘ x 的梯度，还是已经是 x 的梯度？",
)
def l_twice(dy, x, l, W, b):
    return {"dx": l * l * (dy @ W)}
