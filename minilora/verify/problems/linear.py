"""The linear layer. The maths is in ops/linear.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, in, out of each case: one is square
SHAPES = [(5, 3, 4, 6), (3, 4, 7, 5), (6, 2, 8, 3), (2, 6, 5, 9), (4, 3, 7, 7), (7, 5, 3, 2)]


def draw(rng, i):
    batch, tokens, width_in, width_out = SHAPES[i]
    x = rng.standard_normal((batch, tokens, width_in))
    inputs = {"x": x, "W": rng.standard_normal((width_out, width_in)), "b": rng.standard_normal(width_out)}
    sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, {}, sizes)


def rows(a):
    """How many there are."""
    return a.shape[0] * a.shape[1]


def total(a):
    """Σ_n a_n, over every row."""
    return a.sum(axis=(0, 1))


def outer_total(a, b):
    """Σ_n a_n b_nᵀ, over every row."""
    return np.tensordot(a, b, axes=((0, 1), (0, 1)))


def forward(x, W, b):
    return x @ W.T + b


def backward(dy, x, W, b):
    dx = dy @ W
    dW = outer_total(dy, x)
    db = total(dy)
    return {"dx": dx, "dW": dW, "db": db}


def exchange(tensors, case):
    x, W = case.inputs["x"], case.inputs["W"]
    return relative_error(outer_total(x, tensors["dx"]), tensors["dW"].T @ W)


linear = Problem(
    "linear",
    forward,
    backward,
    draw,
    laws={
        Words(
            "xᵀ dx = dWᵀ W, because a change of basis of x that W undoes changes no output",
            "xᵀ dx = dWᵀ W，因为对 x 换基并由 W 抵消，不改变输出",
        ): exchange
    },
    formula="y = x Wᵀ + b",
    rows=True,
)
fault = linear.fault


@fault(
    "{it} is a mean over the rows, where it is a sum",
    "{it} 对各行取了平均，而应当求和",
    "Every row uses the same W and b: do their contributions add up or average? Who has divided already, if anyone?",
    "每一行都用同一个 W 和 b：它们的贡献是相加还是平均？如果需要除，是谁已经除过了？",
)
def averaged_over_rows(dy, x, W, b):
    return {"dW": outer_total(dy, x) / rows(dy), "db": total(dy) / rows(dy)}


@fault(
    "{it} holds the last sample alone: the others were overwritten, not added",
    "{it} 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, W, b):
    return {"dW": outer_total(dy[-1:], x[-1:]), "db": total(dy[-1:])}


@fault(
    "dW is the product of two sums over the rows, where it is the sum of the products of each row",
    "dW 是先对各行求和、再相乘，而应当先逐行相乘、再求和",
    "Can the dy of one row meet the x of another row on its way to W?",
    "某一行的 dy 会在通往 W 的路上遇到另一行的 x 吗？",
)
def product_of_sums(dy, x, W, b):
    return {"dW": np.outer(total(dy), total(x))}


@fault(
    "{it} has the wrong sign",
    "{it} 的符号反了",
    "Is it the gradient that carries the minus of gradient descent, or the update?",
    "梯度下降中的负号属于梯度本身，还是属于参数更新？",
)
def sign_flipped(dy, x, W, b):
    return backward(-dy, x, W, b)


@fault(
    "{it} is counted twice",
    "{it} 被计算了两次",
    "What was in the array before you added to it?",
    "在累加之前，数组里原来是什么？",
)
def counted_twice(dy, x, W, b):
    return backward(2 * dy, x, W, b)


@fault(
    "{it} leaves out the upstream gradient dy, as though it were 1 everywhere",
    "{it} 漏掉了上游梯度 dy，好像它处处为 1",
    "Of what is this the derivative: of the sum of all y, or of the loss?",
    "这是谁的导数：所有 y 之和的，还是损失的？",
)
def dy_forgotten(dy, x, W, b):
    return backward(np.ones_like(dy), x, W, b)


@fault(
    "{it} is computed from the output y in the place of its gradient dy",
    "{it} 用的是输出 y，而不是它的梯度 dy",
    "What travels backward through the layer: a value or a sensitivity of the loss?",
    "反向穿过这一层的是什么：数值本身，还是损失对它的敏感度？",
)
def y_for_dy(dy, x, W, b):
    return backward(forward(x, W, b), x, W, b)


@fault(
    "dx takes the bias b off dy before it goes back through W, where b has no part in dx",
    "dx 在经过 W 之前从 dy 中减去了偏置 b，而 b 与 dx 无关",
    "If b were larger, would y react more strongly to x?",
    "如果 b 更大，y 对 x 的反应会更强吗？",
)
def bias_in_dx(dy, x, W, b):
    return {"dx": (dy - b) @ W}


@fault(
    "dx goes back through the (pseudo-)inverse of W, where it goes back through W itself",
    "dx 经过的是 W 的（伪）逆，而应当是 W 本身",
    "Does backward look for the x that gives a y, or for how much each x weighs in the loss?",
    "反向传播是在求产生某个 y 的 x，还是在求每个 x 对损失有多大影响？",
)
def inverse_of_weight(dy, x, W, b):
    return {"dx": dy @ np.linalg.pinv(W).T}


@fault(
    "dx is a mean over the outputs, where it is a sum",
    "dx 对各个输出取了平均，而应当求和",
    "One x feeds every output of its row: how do the effects of several paths on the loss combine?",
    "一个 x 影响它所在行的每个输出：多条路径对损失的影响如何合并？",
)
def averaged_over_outputs(dy, x, W, b):
    return {"dx": dy @ W / len(W)}


@fault(
    "dx adds up all the rows and is the same for each, where every row has a dx of its own",
    "dx 把所有行加在一起、各行相同，而每一行应当有自己的 dx",
    "Which is shared by the rows and which is not: W or x?",
    "W 和 x 之中，哪个由各行共享，哪个不是？",
)
def rows_mixed(dy, x, W, b):
    return {"dx": total(dy) @ W + 0 * x}


@fault(
    "db is zero, as though b were no parameter",
    "db 为零，好像 b 不是参数",
    "If b grows a little, does y stay as it is?",
    "如果 b 增大一点，y 会保持不变吗？",
)
def bias_taken_as_constant(dy, x, W, b):
    return {"db": 0 * b}
