"""A residual block, y = x + tanh(x Uᵀ) Vᵀ.

    a = x Uᵀ        h = tanh a        y = x + h Vᵀ        x, y (..., width)   U (hidden, width)   V (width, hidden)

Two paths lead from x to y, and what comes back along them is added up:

    da = (dy V) ∘ (1 - h²)        dx = dy + da U        dU = daᵀ x        dV = dyᵀ h

Source: He et al. (2016), "Deep residual learning for image recognition".
"""

import numpy as np

from ..problem import Case, Problem, Words, relative_error
from .linear import outer_total, rows

# batch, tokens, width, hidden of each case: one is square
SHAPES = [(5, 3, 4, 7), (3, 4, 6, 5), (6, 2, 5, 8), (2, 5, 8, 3), (4, 3, 6, 6), (7, 4, 3, 9)]


def draw(rng, i):
    batch, tokens, width, hidden = SHAPES[i]
    dy, x = rng.standard_normal((2, batch, tokens, width))
    U = rng.standard_normal((hidden, width)) / np.sqrt(width)
    sizes = {"batch": batch, "tokens": tokens, "width": width, "hidden": hidden}
    return Case(dy, {"x": x, "U": U, "V": rng.standard_normal((width, hidden))}, {}, sizes)


def forward(x, U, V):
    return x + np.tanh(x @ U.T) @ V.T


def branch(dy, x, U, V):
    """da and h"""
    h = np.tanh(x @ U.T)
    return dy @ V * (1 - h * h), h


def backward(dy, x, U, V):
    h = np.tanh(x @ U.T)
    da = dy @ V * (1 - h * h)
    dx = dy + da @ U
    dU = outer_total(da, x)
    dV = outer_total(dy, h)
    return {"dx": dx, "dU": dU, "dV": dV}


def terms(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": {Words("the skip path", "跳跃路径"): dy, Words("the branch", "支路"): da @ U}}


def exchange(tensors, case):
    x, U = case.inputs["x"], case.inputs["U"]
    return relative_error(outer_total(x, tensors["dx"] - case.dy), tensors["dU"].T @ U)


def growth(tensors, case):
    x, U, V = case.inputs.values()
    return relative_error(np.sum(tensors["dV"] * V), np.sum(case.dy * (forward(x, U, V) - x)))


residual = Problem(
    "residual",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "xᵀ (dx - dy) = dUᵀ U, because the branch sees x through U alone",
            "xᵀ (dx - dy) = dUᵀ U，因为分支只通过 U 看到 x",
        ): exchange,
        Words(
            "Σ dV ∘ V = Σ dy ∘ (y - x), because the branch is linear in V",
            "Σ dV ∘ V = Σ dy ∘ (y - x)，因为分支关于 V 是线性的",
        ): growth,
    },
    formula="y = x + tanh(x Uᵀ) Vᵀ",
    rows=True,
)
fault = residual.fault


def through(da, dy, x, U):
    """What a wrong da makes of dx and dU."""
    return {"dx": dy + da @ U, "dU": outer_total(da, x)}


@fault(
    "dx lacks the skip path: what reaches x around the branch is missing",
    "dx 缺少跳跃连接的那一项：绕过分支直接到达 x 的梯度没有计入",
    "If the branch gave 0 for every x, what would y be, and what then dx?",
    "如果分支对任何 x 都输出 0，y 是什么？dx 又是什么？",
)
def no_skip_path(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": da @ U}


@fault(
    "dx lacks the branch: only the skip path has come back",
    "dx 缺少分支的那一项：只有跳跃连接的梯度传了回来",
    "By how many paths does x reach y?",
    "x 通过几条路径到达 y？",
)
def no_branch(dy, x, U, V):
    return {"dx": dy}


@fault(
    "dx counts the skip path twice",
    "dx 把跳跃连接的梯度计算了两次",
    "Where in your backward is dy added to dx, and is it there only once?",
    "在你的反向传播中，dy 在哪里被加进 dx？是否只加了一次？",
)
def skip_path_twice(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": 2 * dy + da @ U}


@fault(
    "dx counts the branch twice",
    "dx 把分支的梯度计算了两次",
    "Into which array does the branch write its gradient, and who adds that array to dx?",
    "分支把梯度写进了哪个数组？又是谁把这个数组加进 dx？",
)
def branch_twice(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": dy + 2 * da @ U}


@fault(
    "dx subtracts the branch from the skip path, where both are added",
    "dx 从跳跃连接的梯度中减去了分支的梯度，而两者应当相加",
    "With which sign does the branch enter y?",
    "分支以什么符号进入 y？",
)
def branch_subtracted(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": dy - da @ U}


@fault(
    "dx adds x itself on the skip path, where the gradient dy belongs",
    "dx 在跳跃连接上加的是 x 本身，而应当是梯度 dy",
    "What travels back along the skip path: a value, or the gradient of one?",
    "沿跳跃连接传回来的是数值，还是数值的梯度？",
)
def x_on_skip_path(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": x + da @ U}


@fault(
    "dx multiplies the gradients of the two paths, where they are added",
    "dx 把两条路径的梯度相乘，而应当相加",
    "The chain rule multiplies along one path: what does it do with paths that lie side by side?",
    "链式法则沿一条路径相乘：对并列的路径又该怎么做？",
)
def paths_multiplied(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": dy * (da @ U)}


@fault(
    "{it} has only half of dy: it was shared out between the two paths",
    "{it} 只得到了一半的 dy：dy 被平分给了两条路径",
    "If one addend of a sum grows by a little, does the sum grow by as much or by half?",
    "加法中的一个加数增大一点，和会增大同样多，还是只增大一半？",
)
def gradient_shared_out(dy, x, U, V):
    return backward(dy / 2, x, U, V)


@fault(
    "the gradient of the branch, in {it}, lacks the derivative of tanh",
    "分支的梯度（在 {it} 中）缺少 tanh 的导数",
    "Where tanh is saturated, how much of the gradient can still come through?",
    "在 tanh 饱和的地方，还能有多少梯度通过？",
)
def no_tanh_derivative(dy, x, U, V):
    return through(dy @ V, dy, x, U)


@fault(
    "the derivative of tanh, in {it}, is made of a = x Uᵀ in the place of h = tanh a",
    "tanh 的导数（在 {it} 中）用了 a = x Uᵀ，而应当用 h = tanh a",
    "Can the derivative of tanh be negative?",
    "tanh 的导数会是负数吗？",
)
def tanh_derivative_of_a(dy, x, U, V):
    a = x @ U.T
    return through(dy @ V * (1 - a * a), dy, x, U)


@fault(
    "the derivative of tanh, in {it}, is taken at h in the place of a: tanh is applied once too often",
    "tanh 的导数（在 {it} 中）取在 h 处，而应当取在 a 处：tanh 多作用了一次",
    "At which point does forward pass through tanh, and which of the two did you keep?",
    "前向传播在哪一点经过 tanh？你保存的是它的输入还是输出？",
)
def tanh_applied_twice(dy, x, U, V):
    h = np.tanh(x @ U.T)
    return through(dy @ V * (1 - np.tanh(h) ** 2), dy, x, U)


@fault(
    "the derivative of tanh, in {it}, has h in the place of h²",
    "tanh 的导数（在 {it} 中）用了 h，而应当是 h²",
    "tanh is odd: is its derivative the same at a and at -a, and is yours?",
    "tanh 是奇函数：它的导数在 a 和 -a 处相同吗？你的呢？",
)
def h_not_squared(dy, x, U, V):
    return through(dy @ V * (1 - np.tanh(x @ U.T)), dy, x, U)


@fault(
    "the derivative of tanh, in {it}, is that of the sigmoid",
    "tanh 的导数（在 {it} 中）用成了 sigmoid 的导数",
    "How steep is tanh at 0, and how steep is the function that you differentiated?",
    "tanh 在 0 处的斜率是多少？你求导的那个函数呢？",
)
def sigmoid_derivative(dy, x, U, V):
    h = np.tanh(x @ U.T)
    return through(dy @ V * h * (1 - h), dy, x, U)


@fault(
    "dV is summed with a, from before tanh, in the place of h",
    "dV 求和时用了 tanh 之前的 a，而不是 h",
    "What does V multiply in the forward?",
    "前向传播中 V 乘的是什么？",
)
def weight_from_a(dy, x, U, V):
    return {"dV": outer_total(dy, x @ U.T)}


@fault(
    "{it} is computed from dx in the place of dy: the paths were added up before the branch was done",
    "{it} 用的是 dx，而不是 dy：分支还没算完，两条路径就已经相加",
    "The branch ends at y: whose gradient enters it there? Does your dy still hold that?",
    "分支的终点是 y：在那里进入分支的是谁的梯度？你的 dy 此时还是它吗？",
)
def dx_for_dy(dy, x, U, V):
    wrong = backward(backward(dy, x, U, V)["dx"], x, U, V)
    return {"dU": wrong["dU"], "dV": wrong["dV"]}


@fault(
    "dU is summed with y in the place of x, as if x had been overwritten by the sum",
    "dU 求和时用了 y，而不是 x，好像 x 已被相加的结果覆盖",
    "Is the x that you kept for backward still the one that U has seen?",
    "你为反向传播保存的 x，还是 U 当时看到的那个吗？",
)
def y_for_x(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dU": outer_total(da, forward(x, U, V))}


@fault(
    "{it} is a mean over the rows, where it is a sum",
    "{it} 对各行取了平均，而应当求和",
    "Every row uses the same U and V: do their contributions add up or average?",
    "每一行都用同一个 U 和 V：它们的贡献是相加还是平均？",
)
def averaged_over_rows(dy, x, U, V):
    da, h = branch(dy, x, U, V)
    return {"dU": outer_total(da, x) / rows(x), "dV": outer_total(dy, h) / rows(x)}


@fault(
    "{it} holds the last sample alone: the others were overwritten, not added",
    "{it} 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, U, V):
    da, h = branch(dy, x, U, V)
    return {"dU": outer_total(da[-1:], x[-1:]), "dV": outer_total(dy[-1:], h[-1:])}
