"""The embedding, alone and tied to the logits. The maths is in ops/embedding.py.

Tied, one table W does both, and its gradient is the sum over both paths:

    x = W[ids]      h = tanh(x H)      z = h Wᵀ               W (V, C)   H (C, C)   x, h (..., C)   z (..., V)

    dh = dz W       da = dh ∘ (1 - h²)                        a = x H, what tanh is taken of
    dx = da Hᵀ      dH = Σ_n x_nᵀ da_n
    dW = Σ_n dz_nᵀ h_n + Σ_n onehot(id_n)ᵀ dx_n               the output path, then the input path
"""

import numpy as np

from ..problem import Case, Problem, Words, relative_error

# batch, tokens, width, V of each case
SHAPES = [(3, 5, 4, 7), (4, 3, 6, 8), (2, 7, 5, 9), (5, 4, 3, 6), (6, 2, 7, 10), (7, 6, 8, 11)]


def draw_ids(rng, i):
    """ids and sizes. Row 0 is looked up three times or more, twice in one sample; the last row never is."""
    batch, tokens, width, V = SHAPES[i]
    ids = rng.integers(0, V - 1, (batch, tokens))
    ids[0, :2] = ids[-1, -1] = 0
    return ids, {"batch": batch, "tokens": tokens, "width": width, "V": V}


def draw(rng, i):
    ids, sizes = draw_ids(rng, i)
    W = rng.standard_normal((sizes["V"], sizes["width"]))
    return Case(rng.standard_normal((*ids.shape, sizes["width"])), {"W": W}, {"ids": ids}, sizes)


def add_rows(ids, dy, V):
    """Σ dy over the places of each id"""
    dW = np.zeros((V, dy.shape[-1]))
    np.add.at(dW, ids, dy)
    return dW


def counts(ids, V):
    """How often each row is looked up."""
    return np.bincount(ids.ravel(), minlength=V)[:, None]


def last_rows(ids, dy, V):
    """dy at the last place of each id"""
    dW = np.zeros((V, dy.shape[-1]))
    dW[ids.ravel()] = dy.reshape(-1, dy.shape[-1])
    return dW


def forward(W, ids):
    return W[ids]


def backward(dy, W, ids):
    return {"dW": add_rows(ids, dy, len(W))}


def column_sums(tensors, case):
    return relative_error(tensors["dW"].sum(axis=0), case.dy.sum(axis=(0, 1)))


def unused_rows(tensors, case):
    dW = tensors["dW"]
    unused = counts(case.constants["ids"], len(dW)) == 0
    return relative_error(dW, np.where(unused, 0, dW))


embedding = Problem(
    "embedding",
    forward,
    backward,
    draw,
    laws={
        Words(
            "dW summed over the vocabulary is dy summed over the positions, because each position uses one row",
            "dW 对词表求和等于 dy 对位置求和，因为每个位置恰好用到一行",
        ): column_sums,
        Words(
            "a row that is never looked up has the gradient 0",
            "从未被查到的行，其梯度为 0",
        ): unused_rows,
    },
    formula="y = W[ids]",
    rows=True,
)
fault = embedding.fault


@fault(
    "dW holds only the last place of a repeated id: its other places were overwritten, not added",
    "对于重复的 id，dW 只保留了最后一处：其余位置被覆盖，而不是累加",
    "What happens in NumPy when the same index stands several times in an indexed assignment or in-place addition?",
    "在 NumPy 中，按索引赋值或原地相加时，同一个索引出现多次会怎样？",
)
def last_of_repeats(dy, W, ids):
    return {"dW": last_rows(ids, dy, len(W))}


@fault(
    "dW holds only the first place of a repeated id: the later ones are left out",
    "对于重复的 id，dW 只保留了第一处：后面的位置被漏掉",
    "A word occurs three times in the text: how many places of the output move when its row moves?",
    "一个词在文本中出现三次：它那一行变化时，输出有几处随之变化？",
)
def first_of_repeats(dy, W, ids):
    return {"dW": last_rows(ids.ravel()[::-1], dy.reshape(-1, dy.shape[-1])[::-1], len(W))}


@fault(
    "dW adds a repeated id over the samples, but within one sample counts it once",
    "dW 在样本之间累加了重复的 id，但在同一个样本内只算了一次",
    "Your loop adds sample after sample: what if an id stands twice in one sample?",
    "你的循环逐个样本累加：如果同一个样本里某个 id 出现两次呢？",
)
def repeats_lost_within_a_sample(dy, W, ids):
    return {"dW": sum(last_rows(sample, d, len(W)) for sample, d in zip(ids, dy, strict=True))}


@fault(
    "each row of dW is a mean over the places of its id, where it is a sum",
    "dW 的每一行对该 id 的各处取了平均，而应当求和",
    "A row is used in three places: do their gradients add up or average?",
    "同一行用在三处：它们的梯度是相加还是平均？",
)
def averaged_over_repeats(dy, W, ids):
    return {"dW": add_rows(ids, dy, len(W)) / np.maximum(counts(ids, len(W)), 1)}


@fault(
    "each row of dW is multiplied by how often its id occurs, though the sum has counted that already",
    "dW 的每一行又乘以该 id 出现的次数，而求和时已经计入了这些次数",
    "How many times does each place add to dW: once, or once for each occurrence of its id?",
    "每个位置向 dW 贡献几次：一次，还是该 id 出现几次就贡献几次？",
)
def multiplied_by_counts(dy, W, ids):
    return {"dW": add_rows(ids, dy, len(W)) * counts(ids, len(W))}


@fault(
    "dW is divided by the number of positions: it is a mean, where it is a sum",
    "dW 除以了位置总数：取了平均，而应当求和",
    "Is there a mean in this op, or would it belong to the loss?",
    "这个算子里有求平均吗？还是说那属于损失函数？",
)
def averaged_over_positions(dy, W, ids):
    return {"dW": add_rows(ids, dy, len(W)) / ids.size}


@fault(
    "the rows of dW are shifted by one: ids are counted from 1, where they count from 0",
    "dW 的各行错开了一行：id 从 1 数起，而应当从 0 数起",
    "Which row does forward read for the id 0, and which row does its gradient go to?",
    "对 id 0，前向传播读取哪一行？它的梯度又加到了哪一行？",
)
def ids_shifted(dy, W, ids):
    return {"dW": add_rows(ids - 1, dy, len(W))}


@fault(
    "dW takes for each position the id of the next one: ids and dy are shifted by one token",
    "dW 在每个位置用了下一个位置的 id：ids 与 dy 错开了一个词元",
    "Are the ids here those that were looked up, or the targets that the model predicts?",
    "这里的 ids 是查表用的 id，还是模型要预测的目标？",
)
def ids_of_the_next_token(dy, W, ids):
    return {"dW": add_rows(np.roll(ids, -1, axis=1), dy, len(W))}


@fault(
    "dW pairs ids and dy in different orders: one is read sample by sample, the other token by token",
    "dW 中 ids 与 dy 的顺序不一致：一个逐样本读取，另一个逐词元读取",
    "When both are flattened, does position n of ids still belong to position n of dy?",
    "两者展平之后，ids 的第 n 个位置还对应 dy 的第 n 个位置吗？",
)
def positions_in_another_order(dy, W, ids):
    return {"dW": add_rows(ids.T.ravel(), dy.reshape(-1, dy.shape[-1]), len(W))}


@fault(
    "dW holds the last sample alone: the others were overwritten, not added",
    "dW 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_sample_only(dy, W, ids):
    return {"dW": add_rows(ids[-1], dy[-1], len(W))}


@fault(
    "row 0 of dW is zero, as though the id 0 were padding",
    "dW 的第 0 行为零，好像 id 0 是填充符",
    "Does forward treat the id 0 differently from the others?",
    "前向传播对 id 0 的处理与其他 id 有什么不同吗？",
)
def row_zero_as_padding(dy, W, ids):
    dW = add_rows(ids, dy, len(W))
    dW[0] = 0
    return {"dW": dW}


@fault(
    "every row of dW holds the sum over all positions, whatever their ids",
    "dW 的每一行都是所有位置之和，没有区分 id",
    "Does a position feel a change of a row that it did not look up?",
    "某个位置没有查到的那一行变化时，这个位置会受影响吗？",
)
def ids_ignored(dy, W, ids):
    return {"dW": np.tile(dy.sum(axis=(0, 1)), (len(W), 1))}


@fault(
    "dW still holds W itself: the sum starts from the table, where it starts from zero",
    "dW 中还含有 W 本身：累加时以 W 本身为初值，而应当以零为初值",
    "What must the gradient of a row be that was never looked up?",
    "从未被查到的一行，它的梯度应是多少？",
)
def started_from_W(dy, W, ids):
    return {"dW": W + add_rows(ids, dy, len(W))}


# tied to the logits


def draw_tied(rng, i):
    ids, sizes = draw_ids(rng, i)
    W = rng.standard_normal((sizes["V"], sizes["width"]))
    H = rng.standard_normal((sizes["width"], sizes["width"])) / np.sqrt(sizes["width"])
    return Case(rng.standard_normal((*ids.shape, sizes["V"])), {"W": W, "H": H}, {"ids": ids}, sizes)


def tied_forward(W, H, ids):
    return np.tanh(W[ids] @ H) @ W.T


def product(a, b):
    """Σ_n a_nᵀ b_n over every position"""
    return np.einsum("btm,btn->mn", a, b)


def tied_steps(dz, W, H, ids):
    """x, h and da"""
    x = W[ids]
    h = np.tanh(x @ H)
    return x, h, dz @ W * (1 - h * h)


def paths(dz, W, H, ids):
    """The two terms of dW: the output path and the input path."""
    _, h, da = tied_steps(dz, W, H, ids)
    return product(dz, h), add_rows(ids, da @ H.T, len(W))


def tied_backward(dz, W, H, ids):
    x, _, da = tied_steps(dz, W, H, ids)
    return {"dW": sum(paths(dz, W, H, ids)), "dH": product(x, da)}


def tied_terms(dz, W, H, ids):
    output_path, input_path = paths(dz, W, H, ids)
    return {"dW": {Words("the output path", "输出路径"): output_path, Words("the input path", "输入路径"): input_path}}


tied_embedding = Problem(
    "tied_embedding",
    tied_forward,
    tied_backward,
    draw_tied,
    tied_terms,
    formula="z = tanh(W[ids] H) Wᵀ",
    aliases=("tied",),
    rows=True,
)
fault = tied_embedding.fault


@fault(
    "dW lacks the input path: the gradient through the looked-up rows x",
    "dW 缺少输入路径：经过查表得到的 x 的那部分梯度",
    "In how many places does W stand in the forward?",
    "W 在前向传播中出现在几处？",
)
def input_path_missing(dz, W, H, ids):
    output_path, _ = paths(dz, W, H, ids)
    return {"dW": output_path}


@fault(
    "dW lacks the output path: the gradient from the logits h Wᵀ",
    "dW 缺少输出路径：来自 logits h Wᵀ 的那部分梯度",
    "A row of W that no id looks up still makes a logit: what is its gradient?",
    "没有被任何 id 查到的一行仍然会产生一个 logit：它的梯度是什么？",
)
def output_path_missing(dz, W, H, ids):
    _, input_path = paths(dz, W, H, ids)
    return {"dW": input_path}


@fault(
    "dW is counted twice: both paths are added for each of the two uses of W",
    "dW 被计了两次：W 的两处使用各自都加了两条路径之和",
    "The table is one parameter under two names: how often was its gradient accumulated?",
    "这张表是一个参数、两个名字：它的梯度被累加了几次？",
)
def counted_twice(dz, W, H, ids):
    return {"dW": 2 * sum(paths(dz, W, H, ids))}


@fault(
    "dW is the mean of the two paths, where it is their sum",
    "dW 是两条路径的平均，而应当是两者之和",
    "If W moves a little, do the changes along both paths add up or average?",
    "W 稍有变化时，沿两条路径的变化是相加还是平均？",
)
def paths_averaged(dz, W, H, ids):
    return {"dW": sum(paths(dz, W, H, ids)) / 2}


@fault(
    "the input path overwrites the rows of dW that were looked up, where it adds to them",
    "输入路径覆盖了 dW 中被查到的行，而应当累加",
    "What did those rows of dW hold before the gradient of the lookup arrived?",
    "查表的梯度到来之前，dW 的这些行里已经有什么？",
)
def output_path_overwritten(dz, W, H, ids):
    dW, _ = paths(dz, W, H, ids)
    _, _, da = tied_steps(dz, W, H, ids)
    dW[ids] = da @ H.T
    return {"dW": dW}


@fault(
    "the input path of dW holds only the last place of a repeated id: its other places are lost",
    "dW 的输入路径对重复的 id 只保留了最后一处：其余位置丢失了",
    "What happens in NumPy when the same index stands several times in an indexed in-place addition?",
    "在 NumPy 中，按索引原地相加时，同一个索引出现多次会怎样？",
)
def repeats_lost(dz, W, H, ids):
    output_path, _ = paths(dz, W, H, ids)
    _, _, da = tied_steps(dz, W, H, ids)
    return {"dW": output_path + last_rows(ids, da @ H.T, len(W))}


@fault(
    "the input path of dW is shifted by one row: ids are counted from 1, where they count from 0",
    "dW 的输入路径错开了一行：id 从 1 数起，而应当从 0 数起",
    "Which row does forward read for the id 0, and which row does its gradient go to?",
    "对 id 0，前向传播读取哪一行？它的梯度又加到了哪一行？",
)
def input_ids_shifted(dz, W, H, ids):
    output_path, input_path = paths(dz, W, H, ids)
    return {"dW": output_path + np.roll(input_path, -1, axis=0)}


@fault(
    "the input path of dW goes through H, where it goes through its transpose",
    "dW 的输入路径乘的是 H，而应当乘 H 的转置",
    "H is square, so the shapes do not warn you: which index of H belongs to x?",
    "H 是方阵，形状不会报错：H 的哪个下标属于 x？",
)
def H_not_transposed(dz, W, H, ids):
    output_path, _ = paths(dz, W, H, ids)
    _, _, da = tied_steps(dz, W, H, ids)
    return {"dW": output_path + add_rows(ids, da @ H, len(W))}


@fault(
    "the input path of dW skips H: it takes the gradient of x H for that of x",
    "dW 的输入路径跳过了 H：把 x H 的梯度当作 x 的梯度",
    "Through which matrix does x pass before the tanh?",
    "x 在进入 tanh 之前经过了哪个矩阵？",
)
def H_skipped(dz, W, H, ids):
    output_path, _ = paths(dz, W, H, ids)
    _, _, da = tied_steps(dz, W, H, ids)
    return {"dW": output_path + add_rows(ids, da, len(W))}


@fault(
    "the input path of dW skips the layer in between: it takes dh for the gradient of x",
    "dW 的输入路径跳过了中间那一层：把 dh 当作 x 的梯度",
    "What lies between the row that was looked up and the h that makes the logits?",
    "查表得到的那一行与产生 logits 的 h 之间隔着什么？",
)
def layer_skipped(dz, W, H, ids):
    output_path, _ = paths(dz, W, H, ids)
    return {"dW": output_path + add_rows(ids, dz @ W, len(W))}


@fault(
    "the output path of dW multiplies dz by x, where it is h that meets W in the logits",
    "dW 的输出路径把 dz 乘以 x，而在 logits 中与 W 相乘的是 h",
    "What does Wᵀ multiply in the forward?",
    "前向传播中 Wᵀ 乘的是什么？",
)
def output_path_from_x(dz, W, H, ids):
    _, input_path = paths(dz, W, H, ids)
    return {"dW": product(dz, W[ids]) + input_path}


def with_slope(slope, dz, W, H, ids):
    """dW and dH with another derivative of tanh."""
    x, h, _ = tied_steps(dz, W, H, ids)
    da = dz @ W * slope
    return {"dW": product(dz, h) + add_rows(ids, da @ H.T, len(W)), "dH": product(x, da)}


@fault(
    "the derivative of tanh, 1 - h², is missing in {it}",
    "{it} 缺少 tanh 的导数 1 - h²",
    "What stands between x H and h, and what is its derivative?",
    "x H 与 h 之间是什么函数？它的导数是什么？",
)
def tanh_slope_missing(dz, W, H, ids):
    return with_slope(1, dz, W, H, ids)


@fault(
    "{it} takes 1 - h for the derivative of tanh, where it is 1 - h²",
    "{it} 把 1 - h 当作 tanh 的导数，而应当是 1 - h²",
    "tanh is odd, so its slope is the same on both sides of 0: is yours?",
    "tanh 是奇函数，它在 0 两侧的斜率相同：你的也是吗？",
)
def tanh_not_squared(dz, W, H, ids):
    _, h, _ = tied_steps(dz, W, H, ids)
    return with_slope(1 - h, dz, W, H, ids)


@fault(
    "{it} takes h(1 - h) for the derivative of tanh: that is the one of the sigmoid",
    "{it} 把 h(1 - h) 当作 tanh 的导数：那是 sigmoid 的导数",
    "What is the slope of tanh at 0, and what is yours?",
    "tanh 在 0 处的斜率是多少？你的是多少？",
)
def slope_of_sigmoid(dz, W, H, ids):
    _, h, _ = tied_steps(dz, W, H, ids)
    return with_slope(h * (1 - h), dz, W, H, ids)


@fault(
    "{it} takes the derivative of tanh from x H, where 1 - h² needs h",
    "{it} 用 x H 计算 tanh 的导数，而 1 - h² 需要的是 h",
    "Can the slope of tanh be negative?",
    "tanh 的斜率可能为负吗？",
)
def slope_before_tanh(dz, W, H, ids):
    a = W[ids] @ H
    return with_slope(1 - a * a, dz, W, H, ids)


@fault(
    "dH is built from h, where it is the input x of that layer",
    "dH 是用 h 算的，而应当用该层的输入 x",
    "What does H multiply in the forward?",
    "前向传播中 H 乘的是什么？",
)
def dH_from_h(dz, W, H, ids):
    _, h, da = tied_steps(dz, W, H, ids)
    return {"dH": product(h, da)}


@fault(
    "{it} is a mean over the positions, where it is a sum",
    "{it} 对各位置取了平均，而应当求和",
    "Every position uses the same W and H: do their contributions add up or average?",
    "每个位置都用同样的 W 和 H：它们的贡献是相加还是平均？",
)
def positions_averaged(dz, W, H, ids):
    return {name: d / ids.size for name, d in tied_backward(dz, W, H, ids).items()}


@fault(
    "{it} holds the last sample alone: the others were overwritten, not added",
    "{it} 只保留了最后一个样本：其余的被覆盖，而不是累加",
    "What does your loop over the samples do with what the sample before has left?",
    "循环处理各个样本时，前一个样本的结果是被累加还是被覆盖？",
)
def last_of_the_samples(dz, W, H, ids):
    return tied_backward(dz[-1:], W, H, ids[-1:])
