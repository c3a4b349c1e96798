"""RMS norm. The maths is in ops/rms_norm.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, width of each case
SHAPES = [(5, 3, 6), (4, 6, 7), (3, 4, 9), (6, 2, 5), (2, 7, 8), (7, 5, 4)]


def draw(rng, i):
    batch, tokens, width = SHAPES[i]
    x = 1 + 2 * rng.standard_normal((batch, tokens, width))
    sizes = {"batch": batch, "tokens": tokens, "width": width}
    inputs = {"x": x, "g": rng.standard_normal(width)}
    return Case(rng.standard_normal(x.shape), inputs, {"eps": 1e-2 * (1 + i)}, sizes)


def mean(a):
    return a.mean(axis=-1, keepdims=True)


def total(a):
    """Over every row."""
    return a.sum(axis=(0, 1))


def normalise(x, eps):
    """x̂ and rms"""
    rms = np.sqrt(mean(x * x) + eps)
    return x / rms, rms


def forward(x, g, eps):
    xhat, _ = normalise(x, eps)
    return xhat * g


def backward(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    dx = (dxhat - xhat * mean(dxhat * xhat)) / rms
    dg = total(dy * xhat)
    return {"dx": dx, "dg": dg}


def terms(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {
        "dx": {
            Words("the direct term dx̂/rms", "直接项 dx̂/rms"): dxhat / rms,
            Words("the rms term", "rms 项"): -xhat * mean(dxhat * xhat) / rms,
        }
    }


def along_x(tensors, case):
    x, eps = case.inputs["x"], case.constants["eps"]
    _, rms = normalise(x, eps)
    return relative_error(mean(x * tensors["dx"]), eps / rms**2 * mean(case.dy * forward(**case.inputs, eps=eps)))


def along_g(tensors, case):
    g = case.inputs["g"]
    return relative_error(g * tensors["dg"], total(case.dy * forward(**case.inputs, **case.constants)))


def without_gain(case):
    return case._replace(inputs=case.inputs | {"g": np.ones_like(case.inputs["g"])})


rms_norm = Problem(
    "rms_norm",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "each row of dx is orthogonal to x, up to (ε/rms²) dy·y: scaling x changes the output through ε alone",
            "dx 的每一行都与 x 正交，只差 (ε/rms²) dy·y：缩放 x 只通过 ε 改变输出",
        ): along_x,
        Words(
            "g ∘ dg is dy ∘ y summed over the rows, because y is linear in g",
            "g ∘ dg 等于 dy ∘ y 对所有行求和，因为 y 对 g 是线性的",
        ): along_g,
    },
    formula="y = x̂ ∘ g, x̂ = x/rms, rms = √(mean(x²) + ε), over the features of each row",
    rows=True,
    simpler={
        Words("with almost no ε (1e-12)", "ε 几乎为 0（1e-12）"): lambda case: case._replace(constants={"eps": 1e-12}),
        Words("with the gain g = 1", "增益 g = 1 "): without_gain,
    },
)
fault = rms_norm.fault


def with_rms(rms, dy, x, g):
    """dx and dg with another rms"""
    xhat, dxhat = x / rms, dy * g
    return {"dx": (dxhat - xhat * mean(dxhat * xhat)) / rms, "dg": total(dy * xhat)}


@fault(
    "dx treats the rms as a constant: the rms term is missing",
    "dx 把 rms 当作常数：缺少 rms 项",
    "By how many paths does one x reach the outputs of its row?",
    "一个 x 通过几条路径影响它所在行的输出？",
)
def no_rms_term(dy, x, g, eps):
    _, rms = normalise(x, eps)
    return {"dx": dy * g / rms}


@fault(
    "dx lacks the direct term: only the path through the rms is left",
    "dx 缺少直接项：只剩下经过 rms 的路径",
    "If the rms did not change at all, would the output still feel a change of x?",
    "假如 rms 完全不变，x 的变化还会影响输出吗？",
)
def no_direct_term(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    return {"dx": -xhat * mean(dy * g * xhat) / rms}


@fault(
    "the rms term of dx is added, where it is subtracted",
    "dx 的 rms 项用了加号，而应当减去",
    "When a positive x grows, does the rms grow or shrink, and what does that do to the outputs of the row?",
    "正的 x 变大时，rms 变大还是变小？这一行的输出又会怎样？",
)
def rms_term_added(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat + xhat * mean(dxhat * xhat)) / rms}


@fault(
    "the rms term of dx is twice as large: the 2 from the square meets no 1/2 from the root",
    "dx 的 rms 项大了一倍：平方求导得到的 2 没有与开方求导得到的 1/2 相消",
    "What is the derivative of √s, and what of the 2 that the square brings is then left?",
    "√s 的导数是什么？平方带来的因子 2 最后还剩下多少？",
)
def rms_term_doubled(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - 2 * xhat * mean(dxhat * xhat)) / rms}


@fault(
    "dx lacks the factor 1/rms",
    "dx 缺少因子 1/rms",
    "If x is scaled by 10, the output stays the same: what then happens to dx?",
    "若 x 放大 10 倍而输出不变，dx 会怎样变化？",
)
def not_divided_by_rms(dy, x, g, eps):
    xhat, _ = normalise(x, eps)
    dxhat = dy * g
    return {"dx": dxhat - xhat * mean(dxhat * xhat)}


@fault(
    "dx is divided by the mean square, where it is divided by its root",
    "dx 除以了均方值，而应当除以它的平方根",
    "If x is scaled by 10 and the output stays the same, by how much does dx shrink: 10 or 100?",
    "若 x 放大 10 倍而输出不变，dx 会缩小多少倍：10 还是 100？",
)
def divided_by_mean_square(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - xhat * mean(dxhat * xhat)) / rms**2}


@fault(
    "the rms term of dx lacks the factor 1/rms, which the direct term has",
    "dx 的 rms 项缺少因子 1/rms，而直接项中有它",
    "Both terms must scale alike when x is scaled: do they?",
    "x 缩放时，两项应当以同样的方式缩放：它们是这样吗？",
)
def rms_term_not_divided(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": dxhat / rms - xhat * mean(dxhat * xhat)}


@fault(
    "the rms term of dx uses x in the place of x̂",
    "dx 的 rms 项用了 x，而不是 x̂",
    "Is ∂rms/∂x equal to x/C or to x̂/C?",
    "∂rms/∂x 等于 x/C 还是 x̂/C？",
)
def input_for_normalised(dy, x, g, eps):
    _, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - x * mean(dxhat * x)) / rms}


@fault(
    "the rms term of dx is a sum over the features, where it is a mean",
    "dx 的 rms 项用了对特征求和，而应当取平均",
    "Each x² enters the mean square with the weight 1/C: where has that gone?",
    "每个 x² 以权重 1/C 进入均方值：这个权重去哪里了？",
)
def sum_for_mean(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - x.shape[-1] * xhat * mean(dxhat * xhat)) / rms}


@fault(
    "the mean in the rms term of dx is that of dx̂ alone, where it is that of dx̂ ∘ x̂",
    "dx 的 rms 项中取平均的只是 dx̂，而应当是 dx̂ ∘ x̂",
    "If the rms changes, how much does each output of the row change: all by the same amount?",
    "rms 变化时，这一行的各个输出变化多少？变化量都相同吗？",
)
def mean_without_xhat(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - xhat * mean(dxhat)) / rms}


@fault(
    "the rms term of dx is the mean itself, the same for the whole row: its factor x̂ is missing",
    "dx 的 rms 项就是那个平均值本身，整行相同：缺少因子 x̂",
    "Which x of a row moves the rms the most?",
    "一行中哪个 x 对 rms 的影响最大？",
)
def mean_alone(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - mean(dxhat * xhat)) / rms}


@fault(
    "dx subtracts the mean of dx̂ as well: the mean term of layer norm, which RMS norm has not",
    "dx 还减去了 dx̂ 的均值：那是层归一化的均值项，RMS 归一化没有",
    "Does the forward subtract a mean from x?",
    "前向传播中 x 减去均值了吗？",
)
def mean_term_of_layer_norm(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / rms}


@fault(
    "dx takes its mean over the rows of the batch, where the rms belongs to each row by itself",
    "dx 的均值取自批次中的各行，而 rms 属于各自的那一行",
    "Over what does the forward take the mean of the squares: over rows, or over the features of one row?",
    "前向传播对什么取平方的平均：对各行，还是对一行内的特征？",
)
def mean_over_the_batch(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - xhat * (dxhat * xhat).mean(axis=(0, 1))) / rms}


@fault(
    "dx is computed from dy without the gain g",
    "dx 用的是 dy，没有乘以增益 g",
    "Which quantity does x̂ meet first on its way to y, and what does that do to dy on the way back?",
    "x̂ 到 y 的路上先遇到哪个量？反向传播时它对 dy 做什么？",
)
def gain_forgotten(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    return {"dx": (dy - xhat * mean(dy * xhat)) / rms}


@fault(
    "the rms term of dx takes its mean without the gain g, which the direct term has",
    "dx 的 rms 项取平均时没有乘增益 g，而直接项中有它",
    "Which gradient arrives at x̂, and do both terms start from it?",
    "到达 x̂ 的是哪个梯度？两项都从它出发吗？",
)
def gain_forgotten_in_the_mean(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    return {"dx": (dy * g - xhat * mean(dy * xhat)) / rms}


@fault(
    "dx has the gain g in front of everything, where it belongs inside the mean",
    "dx 把增益 g 提到了整个式子前面，而它应当在均值之内",
    "g differs from feature to feature: can it be taken out of a mean over the features?",
    "每个特征的 g 各不相同：能把它从对特征的均值中提出来吗？",
)
def gain_out_of_the_mean(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    return {"dx": g * (dy - xhat * mean(dy * xhat)) / rms}


@fault(
    "{it} leaves ε out of the rms, where forward has it",
    "{it} 中的 rms 漏掉了 ε，而前向传播中有它",
    "Which rms did forward divide by?",
    "前向传播除以的是哪个 rms？",
)
def eps_forgotten(dy, x, g, eps):
    return backward(dy, x, g, 0)


@fault(
    "{it} adds ε outside the root, √mean(x²) + ε, where forward adds it inside",
    "{it} 把 ε 加在根号外，即 √mean(x²) + ε，而前向传播加在根号内",
    "Is ε added to the mean of the squares or to its root?",
    "ε 是加在均方值上，还是加在它的平方根上？",
)
def eps_outside_root(dy, x, g, eps):
    return with_rms(np.sqrt(mean(x * x)) + eps, dy, x, g)


@fault(
    "dx is the gradient of another RMS norm, with √mean(x²) + ε: forward has ε inside the root",
    "dx 是用 √mean(x²) + ε 的另一种 RMS 归一化的梯度：前向传播的 ε 在根号内",
    "Is ε added to the mean of the squares or to its root?",
    "ε 是加在均方值上，还是加在它的平方根上？",
)
def gradient_of_eps_outside_root(dy, x, g, eps):
    root = np.sqrt(mean(x * x))
    rms, dxhat = root + eps, dy * g
    return {"dx": (dxhat - x / root * mean(dxhat * x / rms)) / rms}


@fault(
    "{it} divides the squares by C - 1, where forward takes their mean, over C",
    "{it} 的均方值除以了 C - 1，而前向传播除以 C",
    "Is a mean taken off the squares, so that one degree of freedom is lost?",
    "这里减去过均值、因而少了一个自由度吗？",
)
def divided_by_C_minus_1(dy, x, g, eps):
    return with_rms(np.sqrt(mean(x * x) * x.shape[-1] / (x.shape[-1] - 1) + eps), dy, x, g)


@fault(
    "{it} takes the rms over tokens and features together, where each token has its own",
    "{it} 的 rms 取自词元与特征两个轴，而每个词元应有自己的 rms",
    "Does another token of the sample change what RMS norm does to this one?",
    "同一样本中的另一个词元，会改变 RMS 归一化对这个词元的作用吗？",
)
def rms_over_tokens(dy, x, g, eps):
    over = lambda a: a.mean(axis=(1, 2), keepdims=True)  # noqa: E731
    rms, dxhat = np.sqrt(over(x * x) + eps), dy * g
    xhat = x / rms
    return {"dx": (dxhat - xhat * over(dxhat * xhat)) / rms, "dg": total(dy * xhat)}


@fault(
    "the mean in dx is taken over tokens and features together, where each token has its own",
    "dx 中的均值取自词元与特征两个轴，而每个词元应有自己的均值",
    "Over which axis did forward take the rms, and over which do you take the mean of dx̂ ∘ x̂?",
    "前向传播沿哪个轴求 rms？你对 dx̂ ∘ x̂ 求均值时又沿哪些轴？",
)
def mean_over_tokens(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - xhat * (dxhat * xhat).mean(axis=(1, 2), keepdims=True)) / rms}


@fault(
    "dg is summed with x in the place of x̂",
    "dg 求和时用了 x，而不是 x̂",
    "What does g multiply in the forward?",
    "前向传播中 g 乘的是什么？",
)
def gain_from_x(dy, x, g, eps):
    return {"dg": total(dy * x)}


@fault(
    "dg holds the factor g: it is summed with dx̂ in the place of dy",
    "dg 多乘了 g：求和时用了 dx̂，而不是 dy",
    "The output is linear in g: can its derivative with respect to g still contain g?",
    "输出对 g 是线性的：它对 g 的导数里还会含有 g 吗？",
)
def gain_in_its_own_gradient(dy, x, g, eps):
    xhat, _ = normalise(x, eps)
    return {"dg": total(dy * g * xhat)}


@fault(
    "dg is a mean over the rows, where it is a sum",
    "dg 对各行取了平均，而应当求和",
    "Every row uses the same g: do their contributions add up or average?",
    "每一行都用同一个 g：它们的贡献是相加还是平均？",
)
def averaged_over_rows(dy, x, g, eps):
    xhat, _ = normalise(x, eps)
    return {"dg": (dy * xhat).mean(axis=(0, 1))}


@fault(
    "dg holds the last sample alone: the others were overwritten, not added",
    "dg 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, g, eps):
    xhat, _ = normalise(x, eps)
    return {"dg": total((dy * xhat)[-1:])}
