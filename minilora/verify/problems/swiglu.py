"""SwiGLU. The maths is in ops/swiglu.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, hidden of each case
SHAPES = [(3, 4, 7), (5, 2, 8), (4, 6, 5), (2, 7, 9), (7, 3, 4), (6, 5, 3)]


def draw(rng, i):
    shape = SHAPES[i]
    inputs = {"gate": 1.5 * rng.standard_normal(shape), "up": rng.standard_normal(shape)}
    return Case(rng.standard_normal(shape), inputs, {}, dict(zip(["batch", "tokens", "hidden"], shape, strict=True)))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def silu(z):
    return z * sigmoid(z)


def product_rule(z):
    """The two terms of silu'(z)."""
    sigma = sigmoid(z)
    return sigma, z * sigma * (1 - sigma)


def silu_slope(z):
    """silu'(z)"""
    return sum(product_rule(z))


def forward(gate, up):
    return silu(gate) * up


def backward(dy, gate, up):
    return {"dgate": dy * up * silu_slope(gate), "dup": dy * silu(gate)}


def terms(dy, gate, up):
    direct, through_sigma = product_rule(gate)
    return {
        "dgate": {
            Words("the direct term σ", "直接项 σ"): dy * up * direct,
            Words("the term zσ(1 - σ)", "zσ(1 - σ) 项"): dy * up * through_sigma,
        }
    }


def along_up(tensors, case):
    return relative_error(case.inputs["up"] * tensors["dup"], case.dy * forward(**case.inputs))


swiglu = Problem(
    "swiglu",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "up ∘ dup is dy ∘ y, because y is linear in up",
            "up ∘ dup 等于 dy ∘ y，因为 y 对 up 是线性的",
        ): along_up
    },
    formula="y = silu(gate) ∘ up, silu(z) = z σ(z)",
    rows=True,
    pairs=False,
)
fault = swiglu.fault


@fault(
    "gate and up are swapped: {it} is that of gate ∘ silu(up)",
    "gate 与 up 弄反了：{it} 是 gate ∘ silu(up) 的梯度",
    "Which of the two does forward pass through SiLU?",
    "前向传播让两者中的哪一个经过 SiLU？",
)
def roles_swapped(dy, gate, up):
    return {"dgate": dy * silu(up), "dup": dy * gate * silu_slope(up)}


@fault(
    "the gradients are swapped: dgate holds that of up, and dup that of gate",
    "两个梯度放反了：dgate 中是 up 的梯度，dup 中是 gate 的梯度",
    "In which order do you return the gradients?",
    "你按什么顺序返回这些梯度？",
    whole=True,
)
def gradients_swapped(dy, gate, up):
    right = backward(dy, gate, up)
    return {"dgate": right["dup"], "dup": right["dgate"]}


@fault(
    "{it} is that of a sigmoid gate, σ(gate) ∘ up: the factor z of silu(z) = z σ(z) is missing",
    "{it} 是 sigmoid 门 σ(gate) ∘ up 的梯度：缺少 silu(z) = z σ(z) 中的因子 z",
    "What tells SwiGLU from the first gated linear unit, GLU?",
    "SwiGLU 与最早的门控线性单元 GLU 有什么区别？",
)
def sigmoid_for_silu(dy, gate, up):
    sigma = sigmoid(gate)
    return {"dgate": dy * up * sigma * (1 - sigma), "dup": dy * sigma}


@fault(
    "{it} is that of a ReLU gate, max(gate, 0) ∘ up",
    "{it} 是 ReLU 门 max(gate, 0) ∘ up 的梯度",
    "Is silu(z) zero for a negative z?",
    "z 为负时 silu(z) 等于零吗？",
)
def relu_for_silu(dy, gate, up):
    return {"dgate": dy * up * (gate > 0), "dup": dy * np.maximum(gate, 0)}


@fault(
    "dgate lacks the term zσ(1 - σ) of silu': σ is not differentiated",
    "dgate 缺少 silu' 中的 zσ(1 - σ) 项：没有对 σ 求导",
    "In how many places does z stand in z σ(z), and how many terms has the product rule?",
    "z 在 z σ(z) 中出现在几处？乘积法则有几项？",
)
def no_sigmoid_term(dy, gate, up):
    return {"dgate": dy * up * sigmoid(gate)}


@fault(
    "dgate lacks the direct term σ of silu'",
    "dgate 缺少 silu' 中的直接项 σ",
    "For a large z, silu(z) is z itself: what must its slope be there, and what is yours?",
    "z 很大时 silu(z) 就是 z 本身：那里的斜率应是多少？你的是多少？",
)
def no_direct_term(dy, gate, up):
    _, through_sigma = product_rule(gate)
    return {"dgate": dy * up * through_sigma}


@fault(
    "dgate subtracts the term zσ(1 - σ) of silu', where it is added",
    "dgate 减去了 silu' 中的 zσ(1 - σ) 项，而应当加上",
    "Does σ grow or fall with z?",
    "σ 随 z 增大还是减小？",
)
def sigmoid_term_subtracted(dy, gate, up):
    direct, through_sigma = product_rule(gate)
    return {"dgate": dy * up * (direct - through_sigma)}


@fault(
    "the second term of silu' in dgate is σ(1 - σ), without the factor z",
    "dgate 中 silu' 的第二项是 σ(1 - σ)，缺少因子 z",
    "In the product rule, what stays undifferentiated beside the derivative of σ?",
    "在乘积法则中，对 σ 求导时，旁边保持不动的是什么？",
)
def z_forgotten(dy, gate, up):
    sigma = sigmoid(gate)
    return {"dgate": dy * up * (sigma + sigma * (1 - sigma))}


@fault(
    "the second term of silu' in dgate lacks the factor 1 - σ",
    "dgate 中 silu' 的第二项缺少因子 1 - σ",
    "For a very large z, σ no longer moves: what must become of the second term there?",
    "z 非常大时 σ 不再变化：那里的第二项应变成什么？",
)
def one_minus_sigma_forgotten(dy, gate, up):
    return {"dgate": dy * up * (sigmoid(gate) + silu(gate))}


@fault(
    "dgate takes the derivative of σ for 1 - σ²: that is the one of tanh",
    "dgate 把 σ 的导数当作 1 - σ²：那是 tanh 的导数",
    "Which function has the derivative σ(1 - σ), and which 1 - σ²?",
    "哪个函数的导数是 σ(1 - σ)，哪个是 1 - σ²？",
)
def slope_of_tanh(dy, gate, up):
    sigma = sigmoid(gate)
    return {"dgate": dy * up * (sigma + gate * (1 - sigma * sigma))}


@fault(
    "the second term of silu' in dgate uses 1 - silu(z), where it is 1 - σ(z)",
    "dgate 中 silu' 的第二项用了 1 - silu(z)，而应当是 1 - σ(z)",
    "Whose derivative brings the factor 1 - σ: that of silu, or that of σ?",
    "因子 1 - σ 来自谁的导数：silu 的，还是 σ 的？",
)
def one_minus_silu(dy, gate, up):
    return {"dgate": dy * up * (sigmoid(gate) + silu(gate) * (1 - silu(gate)))}


@fault(
    "dgate multiplies by silu(gate), where it is the derivative silu'(gate)",
    "dgate 乘的是 silu(gate)，而应当是导数 silu'(gate)",
    "What is silu at 0, and what is its slope there?",
    "silu 在 0 处的值是多少？斜率又是多少？",
)
def silu_not_differentiated(dy, gate, up):
    return {"dgate": dy * up * silu(gate)}


@fault(
    "dgate takes up alone for the slope: SiLU is left out",
    "dgate 只乘了 up：漏掉了 SiLU",
    "What does gate pass through before it meets up?",
    "gate 在与 up 相乘之前经过了什么？",
)
def silu_left_out_of_dgate(dy, gate, up):
    return {"dgate": dy * up}


@fault(
    "dgate takes silu' of up, where it is that of gate",
    "dgate 取的是 up 处的 silu'，而应当是 gate 处的",
    "At which point does the chain rule take the derivative of the activation?",
    "链式法则在哪一点取激活函数的导数？",
)
def slope_at_up(dy, gate, up):
    return {"dgate": dy * up * silu_slope(up)}


@fault(
    "dgate lacks the factor up",
    "dgate 缺少因子 up",
    "If up is zero, the output does not move with gate: what must dgate be?",
    "若 up 为零，输出不随 gate 变化：dgate 应是多少？",
)
def up_forgotten(dy, gate, up):
    return {"dgate": dy * silu_slope(gate)}


@fault(
    "dup multiplies by gate itself, where it is silu(gate)",
    "dup 乘的是 gate 本身，而应当是 silu(gate)",
    "What does up meet in the forward: gate, or what SiLU makes of it?",
    "前向传播中与 up 相乘的是 gate，还是它经过 SiLU 后的结果？",
)
def silu_left_out_of_dup(dy, gate, up):
    return {"dup": dy * gate}


@fault(
    "dup multiplies by the derivative silu'(gate), where it is silu(gate)",
    "dup 乘的是导数 silu'(gate)，而应当是 silu(gate)",
    "On the path of up, is there an activation to be differentiated?",
    "在 up 的路径上，有需要求导的激活函数吗？",
)
def slope_for_silu(dy, gate, up):
    return {"dup": dy * silu_slope(gate)}


@fault(
    "dup multiplies by silu(up), where it is silu(gate)",
    "dup 乘的是 silu(up)，而应当是 silu(gate)",
    "The output is linear in up: can dup still depend on up?",
    "输出对 up 是线性的：dup 还会依赖 up 吗？",
)
def silu_of_up(dy, gate, up):
    return {"dup": dy * silu(up)}


@fault(
    "dup multiplies by the whole output y: the factor up is still in it",
    "dup 乘的是整个输出 y：其中仍含有因子 up",
    "The output is linear in up: what is left of y after differentiation with respect to up?",
    "输出对 up 是线性的：y 对 up 求导之后还剩下什么？",
)
def output_for_silu(dy, gate, up):
    return {"dup": dy * forward(gate, up)}


@fault(
    "{it} is without the upstream gradient dy",
    "{it} 中没有上游梯度 dy",
    "If the loss does not depend on y at all, what must both gradients be?",
    "如果损失完全不依赖 y，这两个梯度应是多少？",
)
def upstream_forgotten(dy, gate, up):
    return backward(np.ones_like(dy), gate, up)
