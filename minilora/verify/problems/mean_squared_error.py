"""Mean squared error. The maths is in ops/mean_squared_error.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, width of each case
SHAPES = [(3, 5, 4), (4, 2, 7), (2, 6, 5), (6, 3, 8), (7, 4, 3), (5, 7, 6)]


def draw(rng, i):
    shape = SHAPES[i]
    dL = np.array(rng.uniform(1.2, 1.8))  # neither 1 nor 2
    target = 1 + rng.standard_normal(shape)
    sizes = dict(zip(["batch", "tokens", "width"], shape, strict=True))
    return Case(dL, {"y": rng.standard_normal(shape)}, {"target": target}, sizes)


def forward(y, target):
    residual = y - target
    return (residual * residual).mean()


def backward(dL, y, target):
    return {"dy": dL * 2 * (y - target) / y.size}


def terms(dL, y, target):
    return {
        "dy": {
            Words("the term of y", "y 的项"): dL * 2 * y / y.size,
            Words("the term of the target", "目标值的项"): -dL * 2 * target / y.size,
        }
    }


def along_residual(tensors, case):
    y, target = case.inputs["y"], case.constants["target"]
    return relative_error((tensors["dy"] * (y - target)).sum(), 2 * case.dy * forward(y, target))


mean_squared_error = Problem(
    "mean_squared_error",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "dy · (y - t) is 2 dL L, because scaling the residual by c scales L by c²",
            "dy · (y - t) 等于 2 dL L，因为残差放大 c 倍时 L 放大 c² 倍",
        ): along_residual
    },
    formula="L = mean((y - target)²); dy, as an argument, is dL",
    aliases=("mse", "mse_loss"),
    rows=True,
)
fault = mean_squared_error.fault


@fault(
    "dy lacks the 2 that comes from the square",
    "dy 缺少对平方求导得到的 2",
    "What is the derivative of a square, and does this loss have a 1/2 that would cancel it?",
    "平方的导数是什么？这个损失里有能与之相消的 1/2 吗？",
)
def two_forgotten(dL, y, target):
    return {"dy": dL * (y - target) / y.size}


@fault(
    "dy is not divided by n: it is the gradient of a sum, where the loss is a mean",
    "dy 没有除以 n：那是求和的梯度，而这个损失是平均",
    "If every number came twice, the loss would stay the same: what would become of each entry of dy?",
    "若每个数都出现两次，损失不变：dy 的每个分量会怎样？",
)
def sum_for_mean(dL, y, target):
    return {"dy": dL * 2 * (y - target)}


@fault(
    "dy is divided by the number of samples, where it is the number of all entries",
    "dy 除以的是样本数，而应当是全部元素的个数",
    "Over how many numbers does forward take the mean?",
    "前向传播对多少个数取了平均？",
)
def divided_by_samples(dL, y, target):
    return {"dy": dL * 2 * (y - target) / len(y)}


@fault(
    "dy is divided by n twice",
    "dy 除以了两次 n",
    "Who divides by n: the loss, the gradient, or both, one after the other?",
    "除以 n 的是谁：损失、梯度，还是两者先后各除了一次？",
)
def divided_twice(dL, y, target):
    return {"dy": dL * 2 * (y - target) / y.size**2}


@fault(
    "dy has the wrong sign: the residual is taken as target minus y",
    "dy 的符号反了：残差取成了目标减 y",
    "If y lies above the target and grows, does the loss grow or fall?",
    "若 y 高于目标并继续增大，损失变大还是变小？",
)
def sign_flipped(dL, y, target):
    return {"dy": dL * 2 * (target - y) / y.size}


@fault(
    "dy lacks the upstream gradient dL",
    "dy 缺少上游梯度 dL",
    "If the loss is multiplied by 10 afterwards, what must become of dy?",
    "如果之后把损失乘以 10，dy 应当怎样变化？",
)
def upstream_forgotten(dL, y, target):
    return {"dy": 2 * (y - target) / y.size}


@fault(
    "dy lacks the target: it is the gradient of the mean of y²",
    "dy 缺少目标：那是 y² 平均值的梯度",
    "At which y is the loss smallest, and is your gradient zero there?",
    "y 取何值时损失最小？你的梯度在那里为零吗？",
)
def target_forgotten(dL, y, target):
    return {"dy": dL * 2 * y / y.size}


@fault(
    "dy adds the target to y, where the residual is their difference",
    "dy 把目标与 y 相加，而残差是两者之差",
    "At which y is the loss smallest, and is your gradient zero there?",
    "y 取何值时损失最小？你的梯度在那里为零吗？",
)
def target_added(dL, y, target):
    return {"dy": dL * 2 * (y + target) / y.size}


@fault(
    "dy keeps the square of the residual, where the power falls to 1",
    "dy 保留了残差的平方，而求导后应降为一次",
    "Can your dy be negative, and must it not be where y lies below the target?",
    "你的 dy 可能为负吗？y 低于目标时它难道不应为负吗？",
)
def power_not_lowered(dL, y, target):
    return {"dy": dL * 2 * (y - target) ** 2 / y.size}


@fault(
    "dy is the gradient of the mean absolute error: it holds only the signs of the residual",
    "dy 是平均绝对误差的梯度：只含残差的符号",
    "Must an entry that is far off have a larger gradient than one that is nearly right?",
    "偏差很大的分量，其梯度是否应当大于几乎正确的分量？",
)
def absolute_error(dL, y, target):
    return {"dy": dL * np.sign(y - target) / y.size}


@fault(
    "dy is the gradient of the root of the loss, the RMSE",
    "dy 是损失的平方根，即均方根误差 RMSE 的梯度",
    "Does forward take a root at its end?",
    "前向传播最后开平方了吗？",
)
def root_of_the_loss(dL, y, target):
    return {"dy": dL * (y - target) / y.size / np.sqrt(forward(y, target))}


@fault(
    "every entry of dy is the same: it holds the mean of the residuals, where each entry has its own",
    "dy 的每个分量都相同：用了残差的平均值，而每个分量应有自己的残差",
    "Which terms of the sum contain one given y?",
    "求和式中有哪些项含有某一个给定的 y？",
)
def mean_of_the_residuals(dL, y, target):
    return {"dy": np.full_like(y, dL * 2 * (y - target).mean() / y.size)}


@fault(
    "dy is multiplied by the loss itself",
    "dy 又乘以了损失本身",
    "What comes from above: the value of the loss, or its gradient dL?",
    "从上游传来的是损失的值，还是它的梯度 dL？",
)
def loss_for_upstream(dL, y, target):
    return {"dy": forward(y, target) * 2 * (y - target) / y.size}
