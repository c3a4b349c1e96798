"""Layer norm. The maths is in ops/layer_norm.py."""

import numpy as np

from ..problem import Case, Problem, Words

# batch, tokens, width of each case
SHAPES = [(5, 3, 6), (4, 5, 7), (3, 4, 9), (6, 2, 5), (2, 7, 8), (7, 6, 4)]


def draw(rng, i):
    batch, tokens, width = SHAPES[i]
    x = 1 + 2 * rng.standard_normal((batch, tokens, width))
    inputs = {"x": x, "g": rng.standard_normal(width), "b": rng.standard_normal(width)}
    sizes = {"batch": batch, "tokens": tokens, "width": width}
    return Case(rng.standard_normal(x.shape), inputs, {"eps": 1e-2 * (1 + i)}, sizes)


def mean(a):
    return a.mean(axis=-1, keepdims=True)


def total(a):
    """Over every row."""
    return a.sum(axis=(0, 1))


def standardise(x, eps):
    """x̂ and σ"""
    centred = x - mean(x)
    sigma = np.sqrt(mean(centred * centred) + eps)
    return centred / sigma, sigma


def forward(x, g, b, eps):
    xhat, _ = standardise(x, eps)
    return xhat * g + b


def backward(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma
    dg = total(dy * xhat)
    db = total(dy)
    return {"dx": dx, "dg": dg, "db": db}


def terms(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    return {
        "dx": {
            Words("the direct term dx̂/σ", "直接项 dx̂/σ"): dxhat / sigma,
            Words("the mean term", "均值项"): -mean(dxhat) / sigma + 0 * x,
            Words("the variance term", "方差项"): -xhat * mean(dxhat * xhat) / sigma,
        }
    }


def row_sums(tensors, case):
    dx = tensors["dx"]
    return float(np.abs(dx.sum(axis=-1)).max() / np.abs(dx).max())


def without_gain(case):
    return case._replace(inputs=case.inputs | {"g": np.ones_like(case.inputs["g"])})


layer_norm = Problem(
    "layer_norm",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "each row of dx sums to 0, because shifting x changes no output",
            "dx 的每一行之和为 0，因为平移 x 不改变输出",
        ): row_sums
    },
    formula="y = x̂ ∘ g + b, x̂ = (x - μ)/σ, σ = √(mean((x - μ)²) + ε), over the features of each row",
    aliases=("ln",),
    rows=True,
    simpler={
        Words("with almost no ε (1e-12)", "ε 几乎为 0（1e-12）"): lambda case: case._replace(constants={"eps": 1e-12}),
        Words("with the gain g = 1", "增益 g = 1 "): without_gain,
    },
)
fault = layer_norm.fault


def with_sigma(sigma, dy, x, g):
    """dx and dg with another σ"""
    xhat, dxhat = (x - mean(x)) / sigma, dy * g
    return {"dx": (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma, "dg": total(dy * xhat)}


def over_axes(axes, dy, x, g, eps):
    """dx and dg with the statistics of other axes"""
    over = lambda a: a.mean(axis=axes, keepdims=True)  # noqa: E731
    centred, dxhat = x - over(x), dy * g
    sigma = np.sqrt(over(centred * centred) + eps)
    xhat = centred / sigma
    return {"dx": (dxhat - over(dxhat) - xhat * over(dxhat * xhat)) / sigma, "dg": total(dy * xhat)}


@fault(
    "dx lacks the mean term, the path of the gradient through the mean μ",
    "dx 缺少均值项，即经过均值 μ 的那条梯度路径",
    "If every x of a row grows by the same amount, how much does the output change, and what must dx then sum to?",
    "如果一行中的每个 x 都增加同样的量，输出会变化多少？dx 的和因此应是多少？",
)
def no_mean_term(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - xhat * mean(dxhat * xhat)) / sigma}


@fault(
    "dx lacks the variance term, the path of the gradient through σ",
    "dx 缺少方差项，即经过 σ 的那条梯度路径",
    "σ is computed from x as well: which term of dx comes from its change?",
    "σ 也由 x 算出：它的变化给 dx 带来哪一项？",
)
def no_variance_term(dy, x, g, b, eps):
    _, sigma = standardise(x, eps)
    dxhat = dy * g
    return {"dx": (dxhat - mean(dxhat)) / sigma}


@fault(
    "dx treats μ and σ as constants: the mean term and the variance term are both missing",
    "dx 把 μ 和 σ 当作常数：均值项和方差项都缺失",
    "By how many paths does one x reach the outputs of its row?",
    "一个 x 通过几条路径影响它所在行的输出？",
)
def statistics_as_constants(dy, x, g, b, eps):
    _, sigma = standardise(x, eps)
    return {"dx": dy * g / sigma}


@fault(
    "dx lacks the factor 1/σ",
    "dx 缺少因子 1/σ",
    "If x is scaled by 10, the output stays the same: what then happens to dx?",
    "若 x 放大 10 倍而输出不变，dx 会怎样变化？",
)
def not_divided_by_sigma(dy, x, g, b, eps):
    xhat, _ = standardise(x, eps)
    dxhat = dy * g
    return {"dx": dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)}


@fault(
    "dx is computed from dy without the gain g",
    "dx 用的是 dy，没有乘以增益 g",
    "Which quantity does x̂ meet first on its way to y, and what does that do to dy on the way back?",
    "x̂ 到 y 的路上先遇到哪个量？反向传播时它对 dy 做什么？",
)
def gain_forgotten(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    return {"dx": (dy - mean(dy) - xhat * mean(dy * xhat)) / sigma}


@fault(
    "{it} uses the unbiased variance, divided by C - 1, where forward divides by C",
    "{it} 使用了除以 C - 1 的无偏方差，而前向传播除以 C",
    "Is σ in the backward the same number as σ in the forward?",
    "反向传播中的 σ 与前向传播中的 σ 是同一个数吗？",
)
def unbiased_variance(dy, x, g, b, eps):
    return with_sigma(np.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + eps), dy, x, g)


@fault(
    "dx is the gradient of another layer norm, with the unbiased variance: forward divides it by C, not C - 1",
    "dx 是用无偏方差的另一种层归一化的梯度：前向传播的方差除以 C，而不是 C - 1",
    "What are the defaults of the variance in NumPy and in PyTorch, and which of them did forward use?",
    "NumPy 与 PyTorch 的方差默认除以什么？前向传播用的是哪一种？",
)
def gradient_of_unbiased_variance(dy, x, g, b, eps):
    sigma, width = np.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + eps), x.shape[-1]
    xhat, dxhat = (x - mean(x)) / sigma, dy * g
    return {"dx": (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat) * width / (width - 1)) / sigma}


@fault(
    "dx takes its means over the rows of the batch, where the statistics belong to each row by itself",
    "dx 的均值取自批次中的各行，而统计量属于各自的那一行",
    "Whose mean and variance does layer norm use: a feature's over the batch, or a row's over its features?",
    "层归一化用的是谁的均值和方差：特征在批次上的，还是每一行在其特征上的？",
)
def means_over_the_batch(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    over_rows = lambda a: a.mean(axis=(0, 1))  # noqa: E731
    return {"dx": (dxhat - over_rows(dxhat) - xhat * over_rows(dxhat * xhat)) / sigma}


@fault(
    "{it} leaves ε out of σ, where forward has it",
    "{it} 中的 σ 漏掉了 ε，而前向传播中有它",
    "Which σ did forward divide by?",
    "前向传播除以的是哪个 σ？",
)
def eps_forgotten(dy, x, g, b, eps):
    return with_sigma(x.std(axis=-1, keepdims=True), dy, x, g)


@fault(
    "{it} adds ε outside the root, √var + ε, where forward adds it inside, √(var + ε)",
    "{it} 把 ε 加在根号外，即 √var + ε，而前向传播加在根号内，即 √(var + ε)",
    "Is ε added to the variance or to the standard deviation?",
    "ε 是加在方差上，还是加在标准差上？",
)
def eps_outside_root(dy, x, g, b, eps):
    return with_sigma(x.std(axis=-1, keepdims=True) + eps, dy, x, g)


@fault(
    "dx is the gradient of another layer norm, with σ = √var + ε: forward has √(var + ε)",
    "dx 是 σ = √var + ε 的另一种层归一化的梯度：前向传播用的是 √(var + ε)",
    "Is ε added to the variance or to the standard deviation?",
    "ε 是加在方差上，还是加在标准差上？",
)
def gradient_of_eps_outside_root(dy, x, g, b, eps):
    deviation = x.std(axis=-1, keepdims=True)
    sigma, dxhat, centred = deviation + eps, dy * g, x - mean(x)
    return {"dx": (dxhat - mean(dxhat) - centred / deviation * mean(dxhat * centred / sigma)) / sigma}


@fault(
    "{it} takes the statistics over tokens and features together, where each token has its own",
    "{it} 的统计量取自词元与特征两个轴，而每个词元应有自己的统计量",
    "Does another token of the sample change what layer norm does to this one?",
    "同一样本中的另一个词元，会改变层归一化对这个词元的作用吗？",
)
def statistics_over_tokens(dy, x, g, b, eps):
    return over_axes((1, 2), dy, x, g, eps)


@fault(
    "{it} takes the statistics of each feature over the batch, as batch norm does",
    "{it} 的统计量是每个特征在整个批次上的，那是批归一化的做法",
    "Which axis does forward normalise: the features of one row, or one feature of all rows?",
    "前向传播对哪个轴归一化：一行的各个特征，还是一个特征的所有行？",
)
def statistics_over_the_batch(dy, x, g, b, eps):
    return over_axes((0, 1), dy, x, g, eps)


@fault(
    "the means in dx are taken over tokens and features together, where each token has its own",
    "dx 中的均值取自词元与特征两个轴，而每个词元应有自己的均值",
    "Over which axis did forward take μ, and over which do you take the mean of dx̂?",
    "前向传播沿哪个轴求 μ？你对 dx̂ 求均值时又沿哪些轴？",
)
def means_over_tokens(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    over = lambda a: a.mean(axis=(1, 2), keepdims=True)  # noqa: E731
    return {"dx": (dxhat - over(dxhat) - xhat * over(dxhat * xhat)) / sigma}


@fault(
    "the variance term of dx uses x - μ in the place of x̂",
    "dx 的方差项用了 x - μ，而不是 x̂",
    "Is ∂σ/∂x equal to (x - μ)/C or to x̂/C?",
    "∂σ/∂x 等于 (x - μ)/C 还是 x̂/C？",
)
def centred_for_normalised(dy, x, g, b, eps):
    _, sigma = standardise(x, eps)
    centred, dxhat = x - mean(x), dy * g
    return {"dx": (dxhat - mean(dxhat) - centred * mean(dxhat * centred)) / sigma}


@fault(
    "the mean and variance terms of dx are sums over the features, where they are means",
    "dx 的均值项和方差项用了对特征求和，而应当取平均",
    "Each x enters the mean with the weight 1/C: where has that gone?",
    "每个 x 以权重 1/C 进入均值：这个权重去哪里了？",
)
def sums_for_means(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    width, dxhat = x.shape[-1], dy * g
    return {"dx": (dxhat - width * mean(dxhat) - width * xhat * mean(dxhat * xhat)) / sigma}


@fault(
    "dg is summed with x in the place of x̂",
    "dg 求和时用了 x，而不是 x̂",
    "What does g multiply in the forward?",
    "前向传播中 g 乘的是什么？",
)
def gain_from_x(dy, x, g, b, eps):
    return {"dg": total(dy * x)}


@fault(
    "{it} is a mean over the rows, where it is a sum",
    "{it} 对各行取了平均，而应当求和",
    "Every row uses the same g and b: do their contributions add up or average?",
    "每一行都用同一个 g 和 b：它们的贡献是相加还是平均？",
)
def averaged_over_rows(dy, x, g, b, eps):
    xhat, _ = standardise(x, eps)
    rows = x.shape[0] * x.shape[1]
    return {"dg": total(dy * xhat) / rows, "db": total(dy) / rows}


@fault(
    "dg holds the last sample alone: the others were overwritten, not added",
    "dg 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, g, b, eps):
    xhat, _ = standardise(x, eps)
    return {"dg": total((dy * xhat)[-1:])}
