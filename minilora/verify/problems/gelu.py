"""GELU, in its tanh form. The maths is in ops/gelu.py."""

import math

import numpy as np

from ..problem import Case, Problem, Words

K = math.sqrt(2 / math.pi)
C = 0.044715

# batch, tokens, width of each case
SHAPES = [(4, 3, 7), (5, 6, 4), (3, 5, 8), (6, 4, 3), (2, 7, 9), (7, 2, 6)]


def draw(rng, i):
    batch, tokens, width = SHAPES[i]
    x = 1.5 * rng.standard_normal((batch, tokens, width))
    return Case(rng.standard_normal(x.shape), {"x": x}, {}, {"batch": batch, "tokens": tokens, "width": width})


def inner(x):
    """tanh u and u', for u = K (x + C x³)"""
    return np.tanh(K * (x + C * x * x * x)), K * (1 + 3 * C * x * x)


def product_rule(x, tanh, du):
    """The two terms of dy/dx."""
    return (1 + tanh) / 2, x * (1 - tanh * tanh) * du / 2


def slope(x, tanh, du):
    """dy/dx"""
    return sum(product_rule(x, tanh, du))


def forward(x):
    tanh, _ = inner(x)
    return x * (1 + tanh) / 2


def backward(dy, x):
    return {"dx": dy * slope(x, *inner(x))}


def terms(dy, x):
    direct, through_tanh = product_rule(x, *inner(x))
    return {
        "dx": {
            Words("the direct term (1 + tanh u)/2", "直接项 (1 + tanh u)/2"): dy * direct,
            Words("the tanh term", "tanh 项"): dy * through_tanh,
        }
    }


gelu = Problem(
    "gelu",
    forward,
    backward,
    draw,
    terms,
    formula="y = x (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³)",
    aliases=("gelu_tanh", "gelu_new"),
    rows=True,
    pairs=False,
)
fault = gelu.fault


@fault(
    "dx lacks the tanh term: x is differentiated, and what it is multiplied by is not",
    "dx 缺少 tanh 项：只对 x 求了导，没有对它所乘的因子求导",
    "In how many places does x stand in y, and how many terms has the product rule?",
    "x 在 y 中出现在几处？乘积法则有几项？",
)
def no_tanh_term(dy, x):
    direct, _ = product_rule(x, *inner(x))
    return {"dx": dy * direct}


@fault(
    "dx lacks the direct term (1 + tanh u)/2",
    "dx 缺少直接项 (1 + tanh u)/2",
    "For a large x the output is x itself: what must the slope be there, and what is yours?",
    "x 很大时输出就是 x 本身：那里的斜率应是多少？你的是多少？",
)
def no_direct_term(dy, x):
    _, through_tanh = product_rule(x, *inner(x))
    return {"dx": dy * through_tanh}


@fault(
    "the tanh term of dx is subtracted, where it is added",
    "dx 的 tanh 项用了减号，而应当相加",
    "With which signs do the two terms of the product rule come?",
    "乘积法则的两项各带什么符号？",
)
def tanh_term_subtracted(dy, x):
    direct, through_tanh = product_rule(x, *inner(x))
    return {"dx": dy * (direct - through_tanh)}


@fault(
    "the tanh term of dx lacks the inner derivative u'",
    "dx 的 tanh 项缺少内层导数 u'",
    "tanh is taken of u, not of x: what does the chain rule ask for?",
    "tanh 作用于 u 而不是 x：链式法则还要求什么？",
)
def no_inner_derivative(dy, x):
    tanh, _ = inner(x)
    return {"dx": dy * slope(x, tanh, 1)}


@fault(
    "the inner derivative u' in dx lacks the term of the cube, 3Cx²",
    "dx 中的内层导数 u' 缺少三次项的导数 3Cx²",
    "How many terms has u, and how many has your u'?",
    "u 有几项？你的 u' 有几项？",
)
def no_cubic_term(dy, x):
    tanh, _ = inner(x)
    return {"dx": dy * slope(x, tanh, K)}


@fault(
    "the inner derivative u' in dx lacks the 3 that comes from the cube",
    "dx 中的内层导数 u' 缺少对三次方求导得到的 3",
    "What is the derivative of x³?",
    "x³ 的导数是什么？",
)
def three_forgotten(dy, x):
    tanh, _ = inner(x)
    return {"dx": dy * slope(x, tanh, K * (1 + C * x * x))}


@fault(
    "the inner derivative u' in dx keeps the cube x³, where its power falls to x²",
    "dx 中的内层导数 u' 保留了 x³，而求导后应降为 x²",
    "u is an odd function of x: is your u' even?",
    "u 是 x 的奇函数：你的 u' 是偶函数吗？",
)
def power_not_lowered(dy, x):
    tanh, _ = inner(x)
    return {"dx": dy * slope(x, tanh, K * (1 + 3 * C * x * x * x))}


@fault(
    "the inner derivative u' in dx lacks the factor √(2/π)",
    "dx 中的内层导数 u' 缺少因子 √(2/π)",
    "Which constant multiplies all of u, and what becomes of it when u is differentiated?",
    "整个 u 前面乘着哪个常数？对 u 求导时它会怎样？",
)
def root_forgotten(dy, x):
    tanh, du = inner(x)
    return {"dx": dy * slope(x, tanh, du / K)}


@fault(
    "the inner derivative u' in dx lacks the coefficient 0.044715 of the cube",
    "dx 中的内层导数 u' 缺少三次项的系数 0.044715",
    "Compare the coefficients of u and of your u', term by term: is each still there?",
    "逐项比较 u 与你的 u' 的系数：每一个都还在吗？",
)
def coefficient_forgotten(dy, x):
    tanh, _ = inner(x)
    return {"dx": dy * slope(x, tanh, K * (1 + 3 * x * x))}


@fault(
    "dx lacks the factor 1/2: it is twice as large",
    "dx 缺少因子 1/2：结果大了一倍",
    "For a large x the output is x itself: what must the slope be there?",
    "x 很大时输出就是 x 本身：那里的斜率应是多少？",
)
def half_forgotten(dy, x):
    return {"dx": dy * 2 * slope(x, *inner(x))}


@fault(
    "the tanh term of dx lacks the factor 1/2, which the direct term has",
    "dx 的 tanh 项缺少因子 1/2，而直接项中有它",
    "The 1/2 stands in front of the whole product: how many of its terms does it reach?",
    "1/2 乘在整个乘积前面：求导后它应作用于几项？",
)
def half_forgotten_in_tanh_term(dy, x):
    direct, through_tanh = product_rule(x, *inner(x))
    return {"dx": dy * (direct + 2 * through_tanh)}


@fault(
    "the tanh term of dx is half as large: with (1 + tanh u)/2 = σ(2u), the 2 of 2u' is missing",
    "dx 的 tanh 项小了一半：若写成 (1 + tanh u)/2 = σ(2u)，则缺少 2u' 中的 2",
    "Of which argument is σ taken here, and what is the derivative of that argument?",
    "这里 σ 的自变量是什么？它的导数又是什么？",
)
def two_forgotten_in_sigmoid(dy, x):
    direct, through_tanh = product_rule(x, *inner(x))
    return {"dx": dy * (direct + through_tanh / 2)}


@fault(
    "dx takes 1 - tanh u for the derivative of tanh, where it is 1 - tanh² u",
    "dx 把 1 - tanh u 当作 tanh 的导数，而应当是 1 - tanh² u",
    "tanh is odd, so its slope is the same at u and at -u: is yours?",
    "tanh 是奇函数，它在 u 和 -u 处的斜率相同：你的也是吗？",
)
def tanh_not_squared(dy, x):
    tanh, du = inner(x)
    return {"dx": dy * ((1 + tanh) / 2 + x * (1 - tanh) * du / 2)}


@fault(
    "the tanh term of dx lacks the factor 1 - tanh² u: the derivative of tanh was forgotten",
    "dx 的 tanh 项缺少因子 1 - tanh² u：忘了对 tanh 求导",
    "For a very large x, tanh u no longer moves: what must become of the tanh term there?",
    "x 非常大时 tanh u 不再变化：那里的 tanh 项应变成什么？",
)
def tanh_not_differentiated(dy, x):
    tanh, du = inner(x)
    return {"dx": dy * ((1 + tanh) / 2 + x * du / 2)}


@fault(
    "the tanh term of dx lacks the factor x",
    "dx 的 tanh 项缺少因子 x",
    "In the product rule, what stays undifferentiated beside the derivative of the tanh?",
    "在乘积法则中，对 tanh 求导时，旁边保持不动的是什么？",
)
def x_forgotten(dy, x):
    tanh, du = inner(x)
    return {"dx": dy * slope(1, tanh, du)}


@fault(
    "the tanh term of dx is multiplied by the output y, where it is multiplied by x",
    "dx 的 tanh 项乘的是输出 y，而应当乘输入 x",
    "Which of the two did forward keep for the backward: x or y?",
    "前向传播为反向传播保存的是哪一个：x 还是 y？",
)
def output_for_input(dy, x):
    tanh, du = inner(x)
    return {"dx": dy * ((1 + tanh) / 2 + forward(x) * (1 - tanh * tanh) * du / 2)}


@fault(
    "dx takes the tanh of √(2/π) x: its u lacks the cube",
    "dx 对 √(2/π) x 取 tanh：其中的 u 缺少三次项",
    "Is the tanh u in the backward the same number as the tanh u in the forward?",
    "反向传播中的 tanh u 与前向传播中的 tanh u 是同一个数吗？",
)
def cube_missing_in_u(dy, x):
    _, du = inner(x)
    return {"dx": dy * slope(x, np.tanh(K * x), du)}


@fault(
    "dx takes the tanh of x, where it is that of u",
    "dx 对 x 取 tanh，而应当对 u 取 tanh",
    "What did forward take the tanh of?",
    "前向传播对什么取了 tanh？",
)
def tanh_of_x(dy, x):
    _, du = inner(x)
    return {"dx": dy * slope(x, np.tanh(x), du)}


@fault(
    "dx is the gradient of the exact GELU, x Φ(x) with the error function: forward has the tanh form",
    "dx 是用误差函数定义的精确 GELU，即 x Φ(x) 的梯度，而前向传播用的是 tanh 形式",
    "Its two forms agree to three decimals only: which of them did forward compute?",
    "GELU 的两种形式大约只有前三位小数相同：前向传播算的是哪一种？",
)
def erf_form(dy, x):
    normal = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return {"dx": dy * ((1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2 + x * normal)}


@fault(
    "dx is the gradient of the sigmoid form x σ(1.702x): forward has the tanh form",
    "dx 是 sigmoid 近似 x σ(1.702x) 的梯度，而前向传播用的是 tanh 形式",
    "Which approximation of GELU did forward compute?",
    "前向传播算的是 GELU 的哪一种近似？",
)
def sigmoid_form(dy, x):
    sigma = 1 / (1 + np.exp(-1.702 * x))
    return {"dx": dy * (sigma + 1.702 * x * sigma * (1 - sigma))}


@fault(
    "dx multiplies dy by the output y, where it is the slope dy/dx",
    "dx 把 dy 乘以输出 y，而应当乘以斜率 dy/dx",
    "What is the slope at x = 0, and what is the output there?",
    "x = 0 处的斜率是多少？那里的输出又是多少？",
)
def output_for_slope(dy, x):
    return {"dx": dy * forward(x)}


@fault(
    "dx is the slope alone: the upstream gradient dy is missing",
    "dx 只是斜率本身：缺少上游梯度 dy",
    "If the loss does not depend on y at all, what must dx be, and what is yours?",
    "如果损失完全不依赖 y，dx 应是多少？你的是多少？",
)
def upstream_forgotten(dy, x):
    return {"dx": slope(x, *inner(x))}
