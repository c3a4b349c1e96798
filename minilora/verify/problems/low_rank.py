"""The LoRA layer, y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ with W frozen and s = α/r. The maths is in ops/lora.py."""

import numpy as np

from ..problem import Case, Problem, Words, relative_error
from .dropout import draw_mask
from .linear import outer_total, rows

# batch, tokens, in, out, r, alpha, p of each case: one is square
SHAPES = [
    (5, 3, 8, 6, 2, 7, 0.2),
    (4, 6, 7, 9, 3, 16, 0.1),
    (3, 2, 10, 9, 8, 14, 0.3),
    (2, 4, 6, 8, 5, 3, 0.4),
    (7, 2, 9, 9, 6, 11, 0.15),
    (6, 5, 11, 10, 7, 4, 0.25),
]


def draw(rng, i):
    batch, tokens, width_in, width_out, r, alpha, p = SHAPES[i]
    x = rng.standard_normal((batch, tokens, width_in))
    inputs = {"x": x, "A": rng.standard_normal((r, width_in)), "B": rng.standard_normal((width_out, r))}
    W = rng.standard_normal((width_out, width_in))
    constants = {"W": W, "keep": draw_mask(rng, x.shape, p), "alpha": float(alpha), "r": r, "p": p}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out, "1-p": 1 - p}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, A, B, W, keep, alpha, r, p):
    return x @ W.T + alpha / r * (x * keep) @ A.T @ B.T


def backward(dy, x, A, B, W, keep, alpha, r, p):
    s = alpha / r
    h = (x * keep) @ A.T
    dh = s * dy @ B
    dx = dy @ W + dh @ A * keep
    dA = outer_total(dh, x * keep)
    dB = s * outer_total(dy, h)
    return {"dx": dx, "dA": dA, "dB": dB}


def gradients(dy, x, A, B, W, keep, s):
    """With any mask and any scale."""
    return backward(dy, x, A, B, W, keep, alpha=s, r=1, p=None)


def terms(dy, x, A, B, W, keep, alpha, r, p):
    return {
        "dx": {
            Words("the base path", "基础路径"): dy @ W,
            Words("the low-rank path", "低秩路径"): alpha / r * dy @ B @ A * keep,
        }
    }


def masked(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": (dy @ W, alpha / r * dy @ B @ A / (1 - p))}


def complete(x, A, B, W=None, keep=None, alpha=None, r=None, p=None, s=None):
    """W is 0, there is no dropout, r is that of A, and α = r, or s r, where they are not given."""
    r = len(A) if r is None else r
    if alpha is None:
        alpha = r if s is None else s * r
    keep = np.ones(x.shape) if keep is None else keep
    W = np.zeros((len(B), x.shape[-1])) if W is None else W
    return {"W": W, "keep": keep, "alpha": alpha, "r": r, "p": 1 - 1 / keep.max() if p is None else p}


def without_dropout(case):
    return case._replace(constants=case.constants | {"keep": np.ones(case.inputs["x"].shape), "p": 0.0})


def without_W(case):
    return case._replace(constants=case.constants | {"W": 0 * case.constants["W"]})


def with_scale_1(case):
    return case._replace(constants=case.constants | {"alpha": float(case.constants["r"])})


def only(tensors, *names):
    return {name: tensors[name] for name in names}


def exchange(tensors, case):
    A, B = case.inputs["A"], case.inputs["B"]
    return relative_error(B.T @ tensors["dB"], tensors["dA"] @ A.T)


def at_dropped(tensors, case):
    base, dropped = case.dy @ case.constants["W"], case.constants["keep"] == 0
    return relative_error(tensors["dx"] * dropped, base * dropped)


low_rank = Problem(
    "low_rank",
    forward,
    backward,
    draw,
    terms,
    laws={
        Words(
            "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output",
            "Bᵀ dB = dA Aᵀ，因为把一个可逆矩阵从 B 移到 A 不改变输出",
        ): exchange,
        Words(
            "where x was dropped, dx is dy W alone, because only the base path sees such an x",
            "在 x 被丢弃的位置，dx 只有 dy W，因为被丢弃的 x 只经过基础路径",
        ): at_dropped,
    },
    formula="y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ, s = α/r; keep is 0 where x is dropped, else 1/(1-p)",
    aliases=("lora",),
    complete=complete,
    masked=masked,
    also="also without W (y = s x Aᵀ Bᵀ), keep and p, or r (that of A), and with s for alpha/r",
    rows=True,
    simpler={
        Words("without dropout (keep = 1, p = 0)", "没有 dropout（keep = 1，p = 0）"): without_dropout,
        Words("without the frozen W (W = 0)", "没有冻结的 W（W = 0）"): without_W,
        Words("with the scale α/r = 1", "缩放因子 α/r = 1 "): with_scale_1,
    },
)
fault = low_rank.fault


# the scale


@fault(
    "dA lacks the scale s = α/r",
    "dA 缺少缩放因子 s = α/r",
    "If α is doubled, the low-rank path contributes twice as much to y: what does dA do?",
    "若 α 加倍，低秩路径对 y 的贡献也加倍：dA 会怎样？",
)
def no_scale_in_A(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, keep, 1), "dA")


@fault(
    "dB lacks the scale s = α/r",
    "dB 缺少缩放因子 s = α/r",
    "What exactly does B multiply in the forward, and where does the scale stand?",
    "前向传播中 B 乘的究竟是什么？缩放因子又在哪里？",
)
def no_scale_in_B(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, keep, 1), "dB")


@fault(
    "the low-rank path of dx lacks the scale s = α/r",
    "dx 的低秩路径缺少缩放因子 s = α/r",
    "At α = 0 the adapter is switched off: is it switched off in your dx too?",
    "α = 0 时适配器相当于关闭：在你的 dx 中它也关闭了吗？",
)
def no_scale_in_x(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, keep, 1), "dx")


@fault(
    "the scale s = α/r is applied twice, in {it}",
    "缩放因子 s = α/r 乘了两次（在 {it} 中）",
    "Which of the quantities that you multiply contains the scale already?",
    "你相乘的几个量中，哪一个已经含有缩放因子？",
)
def scale_twice(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep, (alpha / r) ** 2)


@fault(
    "the scale is α, not divided by the rank r, in {it}",
    "缩放因子只有 α，没有除以秩 r（在 {it} 中）",
    "Which two numbers make up the scale in forward?",
    "前向传播的缩放因子由哪两个数构成？",
)
def not_divided_by_r(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep, alpha)


@fault(
    "the scale is α/√r, that of rank-stabilised LoRA, in {it}; forward has α/r",
    "缩放因子是 rsLoRA 的 α/√r（在 {it} 中），而前向传播用的是 α/r",
    "Which of the two scales did forward use: that of LoRA, or that of rsLoRA?",
    "前向传播用的是哪一种缩放：LoRA 的，还是 rsLoRA 的？",
)
def divided_by_root_r(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep, alpha / np.sqrt(r))


@fault(
    "the scale is upside down, r/α, in {it}",
    "缩放因子写反了，成了 r/α（在 {it} 中）",
    "If a factor makes y larger, does it make the gradient larger or smaller?",
    "一个使 y 变大的因子，会使梯度变大还是变小？",
)
def scale_inverted(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep, r / alpha)


@fault(
    "dx has the scale s on the base path too, where it belongs to the low-rank path alone",
    "dx 的基础路径也乘了缩放因子 s，而它只属于低秩路径",
    "Does α change what the frozen layer does?",
    "α 会改变冻结层的作用吗？",
)
def scale_on_base_path(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": alpha / r * (dy @ W + dy @ B @ A * keep)}


# the two paths of dx


@fault(
    "dx lacks the base path, through the frozen W",
    "dx 缺少经过冻结权重 W 的基础路径",
    "W gets no gradient: does that keep the gradient from passing through it to x?",
    "W 没有梯度：这会阻止梯度经过它传到 x 吗？",
)
def no_base_path(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": alpha / r * dy @ B @ A * keep}


@fault(
    "dx lacks the low-rank path, through B and A",
    "dx 缺少经过 B 和 A 的低秩路径",
    "By how many paths does x reach y?",
    "x 通过几条路径到达 y？",
)
def no_low_rank_path(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": dy @ W}


@fault(
    "dx counts the base path twice",
    "dx 把基础路径计算了两次",
    "Both paths write to dx: which of them was in the array before the sum?",
    "两条路径都写入 dx：求和之前，数组里已经有了哪一条？",
)
def base_path_twice(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": 2 * dy @ W + alpha / r * dy @ B @ A * keep}


@fault(
    "dx counts the low-rank path twice",
    "dx 把低秩路径计算了两次",
    "If W already contained s B A, what would the second path still have to add?",
    "如果 W 中已经合并了 s B A，第二条路径还需要加什么？",
)
def low_rank_path_twice(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": dy @ W + 2 * alpha / r * dy @ B @ A * keep}


# the dropout mask


@fault(
    "dA is summed with x in the place of the x that dropout left",
    "dA 求和时用了 x，而不是经过 dropout 的 x",
    "Which x did A see in the forward?",
    "前向传播中 A 看到的是哪个 x？",
)
def no_mask_in_A(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, 1, alpha / r), "dA")


@fault(
    "dB is computed from an h = x Aᵀ without dropout",
    "dB 所用的 h = x Aᵀ 没有经过 dropout",
    "Is the h that you multiply with the one that B saw in the forward?",
    "你所乘的 h，是前向传播中 B 看到的那个吗？",
)
def no_mask_in_B(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, 1, alpha / r), "dB")


@fault(
    "the low-rank path of dx lacks the dropout mask",
    "dx 的低秩路径缺少 dropout 掩码",
    "How much can an x that was dropped change the output of the low-rank path?",
    "一个被丢弃的 x 能使低秩路径的输出变化多少？",
)
def no_mask_in_x(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, 1, alpha / r), "dx")


@fault(
    "dx has the dropout mask on the base path too, where only the low-rank path has dropout",
    "dx 的基础路径也乘了 dropout 掩码，而只有低秩路径带 dropout",
    "Does the frozen layer see x before or after dropout?",
    "冻结层看到的是 dropout 之前还是之后的 x？",
)
def mask_on_base_path(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": (dy @ W + alpha / r * dy @ B @ A) * keep}


@fault(
    "the dropout mask lacks its factor 1/(1-p), in {it}",
    "dropout 掩码缺少因子 1/(1-p)（在 {it} 中）",
    "What else does dropout do to the entries that survive, so that their mean stays the same?",
    "为了保持期望不变，dropout 对保留下来的元素还做了什么？",
)
def mask_not_rescaled(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep * (1 - p), alpha / r)


@fault(
    "the dropout mask is applied twice, in {it}",
    "dropout 掩码乘了两次（在 {it} 中）",
    "Was the x that you masked still without its mask?",
    "你乘掩码时，那个 x 是否已经乘过掩码？",
)
def mask_twice(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, keep * keep, alpha / r)


@fault(
    "the dropout mask is used the wrong way round, in {it}",
    "dropout 掩码用反了（在 {it} 中）",
    "Does a 0 in the mask mean kept or dropped?",
    "掩码中的 0 表示保留还是丢弃？",
)
def mask_inverted(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(dy, x, A, B, W, 1 / (1 - p) - keep, alpha / r)


# the sum over the rows


@fault(
    "{it} is a mean over the rows, where it is a sum",
    "{it} 对各行取了平均，而应当求和",
    "Every row uses the same A and B: do their contributions add up or average? Who has divided already, if anyone?",
    "每一行都用同一个 A 和 B：它们的贡献是相加还是平均？如果需要除，是谁已经除过了？",
)
def averaged_over_rows(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy, x, A, B, W, keep, alpha / r / rows(x)), "dA", "dB")


@fault(
    "{it} holds the last sample alone: the others were overwritten, not added",
    "{it} 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, x, A, B, W, keep, alpha, r, p):
    return only(gradients(dy[-1:], x[-1:], A, B, W, keep[-1:], alpha / r), "dA", "dB")


@fault(
    "{it} is a product of two sums over the rows, where it is a sum of the products of each row",
    "{it} 是先对各行求和、再相乘，而应当先逐行相乘、再求和",
    "Can the dy of one row meet the x of another row on its way to A or B?",
    "某一行的 dy 会在通往 A 或 B 的路上遇到另一行的 x 吗？",
)
def product_of_sums(dy, x, A, B, W, keep, alpha, r, p):
    dy, x = (a.sum(axis=(0, 1), keepdims=True) for a in (dy, x * keep))
    return only(gradients(dy, x, A, B, W, 1, alpha / r), "dA", "dB")


# the wrong factor


@fault(
    "dA takes dy back through the frozen W and A, where it goes back through B",
    "dA 把 dy 经冻结的 W 和 A 反向传播，而应当经过 B",
    "Which matrix lies between the output of A and y?",
    "在 A 的输出与 y 之间的是哪个矩阵？",
)
def back_through_W(dy, x, A, B, W, keep, alpha, r, p):
    return {"dA": alpha / r * outer_total(dy @ W @ A.T, x * keep)}


@fault(
    "dA is computed from h, the output of A, in the place of its gradient dh",
    "dA 用的是 A 的输出 h，而不是它的梯度 dh",
    "Where does the loss enter your dA?",
    "损失是从哪里进入你的 dA 的？",
)
def h_for_dh(dy, x, A, B, W, keep, alpha, r, p):
    return {"dA": alpha / r * outer_total((x * keep) @ A.T, x * keep)}


@fault(
    "dB is computed from dh, the gradient of the input of B, in the place of that input h",
    "dB 用的是 B 的输入的梯度 dh，而不是输入 h 本身",
    "If dy is doubled, by what does dB grow, and by what does yours?",
    "若 dy 加倍，dB 应变为几倍？你的变为几倍？",
)
def dh_for_h(dy, x, A, B, W, keep, alpha, r, p):
    return {"dB": alpha / r * outer_total(dy, dy @ B)}


@fault(
    "dA is zero, which is so only as long as B is zero",
    "dA 为零，而这只在 B 为零时成立",
    "At the start of training dA is indeed zero: which matrix makes it so, and what happens to that matrix?",
    "训练开始时 dA 确实为零：是哪个矩阵使它为零？这个矩阵之后会怎样？",
)
def as_if_B_were_zero(dy, x, A, B, W, keep, alpha, r, p):
    return {"dA": 0 * A}


# the whole


@fault(
    "{it} has the wrong sign",
    "{it} 的符号反了",
    "Is it the gradient that carries the minus of gradient descent, or the update?",
    "梯度下降中的负号属于梯度本身，还是属于参数更新？",
)
def sign_flipped(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(-dy, x, A, B, W, keep, alpha / r)


@fault(
    "{it} is counted twice",
    "{it} 被计算了两次",
    "What was in the array before you added to it?",
    "在累加之前，数组里原来是什么？",
)
def counted_twice(dy, x, A, B, W, keep, alpha, r, p):
    return gradients(2 * dy, x, A, B, W, keep, alpha / r)
