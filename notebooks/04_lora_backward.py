# %% [markdown]
# # LoRA's backward, and what freezing means
#
# **The claim:** to freeze a weight saves its gradient $dW$, Adam's moments of it, and one matrix product of three. It
# saves neither $dx$, the gradient that passes through the frozen (冻结) weight, nor the activations (激活值).
#
# First the backward (反向传播) of a LoRA layer is derived in full. Then every byte and every product of a training step
# is counted in a live model. Last, $dx$ is left out at the frozen weights, as if freezing allowed that, and we look at
# what happens.
#
# | letter | shape | what it is |
# |---|---|---|
# | $x, dx$ | $(N, \text{in})$ | input of the layer, one token a row, and its gradient |
# | $W_0$ | $(\text{out}, \text{in})$ | the frozen weight |
# | $A, dA$ | $(r, \text{in})$ | learned |
# | $B, dB$ | $(\text{out}, r)$ | learned |
# | $s = \alpha / r$ | | a fixed factor |
# | $m$ | $(N, \text{in})$ | mask of dropout: 0 where $x$ is dropped, $1/(1-p)$ elsewhere; `keep` in the code |
# | $h, dh$ | $(N, r)$ | what lies between $A$ and $B$ |
# | $y, dy$ | $(N, \text{out})$ | output, and the upstream gradient $\partial L / \partial y$ |

# %% [markdown] tags=["notes"]
# 4 min. Ask before anything is shown: "$W_0$ is frozen. What of a training step do we no longer pay for?" Collect the
# answers on the board: memory, time, activations, the backward. Usual wrong answer: "there is no backward through
# frozen layers". Say that at the end of the hour each word on the board will have a number.

# %% [markdown]
# ## 1. One rule
#
# Everything here is made of one kind of product, $u = v M^\top$, with $v$ $(N, a)$, $M$ $(b, a)$ and $u$ $(N, b)$:
#
# $$u_{nj} = \sum_i v_{ni} M_{ji}$$
#
# Let $L$ be the loss, and $du = \partial L / \partial u$ $(N, b)$ known. By the chain rule (链式法则), summed over all
# entries of $u$ that an entry of $M$ or of $v$ reaches,
#
# $$\frac{\partial L}{\partial M_{ji}} = \sum_n du_{nj}\, v_{ni} \qquad\qquad
# \frac{\partial L}{\partial v_{ni}} = \sum_j du_{nj}\, M_{ji}$$
#
# $$\boxed{\; dM = du^\top v \;(b, a) \qquad\qquad dv = du\, M \;(N, a) \;}$$
#
# **$dM$ reads $v$ and not $M$. $dv$ reads $M$ and not $v$.** The whole of this notebook follows from that sentence.
# (Rumelhart, Hinton, Williams, 1986.) Two small rules besides:
#
# - $v = x \circ m$, with a mask $m$ that does not depend on $x$: $\; dx = dv \circ m$.
# - If $x$ is used in two places, its gradient is the sum of what comes back from both.
#
# First the boxed rule is tested against central differences (中心差分).

# %%
import numpy as np

import minilora
from minilora import ops

rng = np.random.default_rng(0)


def product(v, M):
    return v @ M.T


def product_gradients(du, v, M):
    return du @ M, du.T @ v


shapes = {"v": (6, 3), "M": (4, 3)}
report = minilora.check_gradient(
    product, product_gradients, {name: rng.standard_normal(shape) for name, shape in shapes.items()}
)
print(report)
assert report.ok

# %% [markdown] tags=["notes"]
# 7 min. Do the index line on the board, once, slowly; afterwards nobody needs indices again. Ask: "which of the two
# gradients needs the input?" and let them say the sentence in bold. Usual wrong answer: "both need both". Shapes are
# the quick check: $du^\top v$ is the only way to get $(b, a)$ from the two.

# %% [markdown]
# ## 2. Your turn
#
# The forward (前向传播) of a linear layer with LoRA (Hu et al., 2021, equation 3), and dropout (随机失活) on the
# adapter (适配器) alone, as in PEFT:
#
# $$y = x W_0^\top + s\, (x \circ m)\, A^\top B^\top \qquad\qquad s = \alpha / r$$
#
# In the cell below $x$, $dx$ and $m$ are (batch, tokens, in) and $dy$ is (batch, tokens, out): the $N$ rows on two
# axes. $W_0$ is `W`, and gets no gradient of its own; $m$ is `keep`, already scaled, so that `p` is not needed. Return
# $dx$, $dA$ and $dB$. Give a name to what lies between $A$ and $B$, and go back one product at a time.


# %% tags=["exercise"] exercise="04"
def lora_backward(dy, x, keep, W, A, B, alpha, p):
    """Return dx, dA, dB.

    >>> one = np.ones((1, 1, 1))
    >>> dx, dA, dB = lora_backward(one, 2 * one, 1.25 * one, 3 * one[0], 5 * one[0], 7 * one[0], 4.0, 0.2)
    >>> float(dx[0, 0, 0]), float(dA[0, 0]), float(dB[0, 0])
    (178.0, 70.0, 50.0)
    """
    raise NotImplementedError


# %% [markdown] tags=["notes"]
# 20 min, alone or in pairs, then the check. It names the mistake, tensor by tensor, and asks a question back; leave the
# answer to it. Usual mistakes, in this order: $dx$ without the path through $W_0$ ("it is frozen"); the mask missing in
# $dx$; $h$ made from the $x$ without dropout, so that $dB$ is wrong; $\alpha$ for $\alpha / r$. Who is done early:
# which law do $dA$ and $dB$ obey together, and which mistakes can it not see?

# %%
from minilora.practice import check

check("04", lora_backward)

# %% [markdown]
# ## 3. The derivation
#
# The forward in five steps, and beside each what the rule of section 1 makes of it, to be read from the bottom up:
#
# $$\begin{aligned}
# &\tilde x = x \circ m \;(N, \text{in}) &\qquad& d\tilde x \circ m \text{ goes to } dx \\
# &h = \tilde x A^\top \;(N, r) && dA = dh^\top \tilde x \;(r, \text{in}), \quad d\tilde x = dh\, A \;(N, \text{in}) \\
# &y_1 = (s h)\, B^\top \;(N, \text{out}) && dB = s\, dy^\top h \;(\text{out}, r), \quad dh = s\, dy\, B \;(N, r) \\
# &y_0 = x W_0^\top \;(N, \text{out}) && dy\, W_0 \;(N, \text{in}) \text{ goes to } dx, \quad
# dW_0 = dy^\top x \;(\text{out}, \text{in}) \text{ is not computed} \\
# &y = y_0 + y_1 \;(N, \text{out}) && dy_0 = dy_1 = dy \;(N, \text{out})
# \end{aligned}$$
#
# (The fixed factor: with $v = s h$ the rule gives $dB = dy^\top v$ and $dv = dy\, B$, and then $dh = s\, dv$.) $x$ was
# used twice, so the two that go to $dx$ are added:
#
# $$\boxed{\; dx = dy\, W_0 + (s\, dy\, B\, A) \circ m \;} \qquad dA = s\, (dy\, B)^\top (x \circ m) \qquad
# dB = s\, dy^\top \big( (x \circ m)\, A^\top \big)$$
#
# What can be read off:
#
# - **The scale (缩放因子) $s$** is in $dA$, in $dB$ and in the second term of $dx$, each time once; the term through
#   $W_0$ has none.
# - **The mask** is in $dA$, in $dB$ (through $h$) and in the second term of $dx$, and it is the scaled mask. Where $x$
#   was dropped, $dx = dy\, W_0$ exactly.
# - **A law.** With $G = dy^\top (x \circ m)$ $(\text{out}, \text{in})$, $dB = s\, G A^\top$ and $dA = s\, B^\top G$.
#   So $B^\top dB = dA\, A^\top$ $(r, r)$, always: $(B R, R^{-1} A)$ is the same function for every invertible $R$ (a
#   gauge symmetry), and this is the derivative along that direction. A factor that both lack, such as $s$, it cannot
#   see; nor can it see $dx$.
#
# The library has each step as a function. Put together, they pass the same test as any gradient; the law and the
# sentence on dropped entries hold.


# %%
def forward(x, A, B, W, keep, alpha, r, p):
    return x @ W.T + alpha / r * (x * keep) @ A.T @ B.T


def backward(dy, x, A, B, W, keep, alpha, r, p):
    _, cache = ops.lora_forward(x * keep, A, B, alpha / r)
    dx_low, dh = ops.lora_backward(dy, A, B, alpha / r)
    dx = ops.linear_backward(dy, W) + ops.dropout_backward(dx_low, keep)
    return dx, ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, alpha / r)


p, alpha, r = 0.4, 5.0, 2
shapes = {"x": (3, 5, 7), "A": (r, 7), "B": (4, r), "W": (4, 7), "dy": (3, 5, 4)}
x, A, B, W, dy = (rng.standard_normal(shape) for shape in shapes.values())
constants = {"W": W, "keep": (rng.random(x.shape) >= p) / (1 - p), "alpha": alpha, "r": r, "p": p}
report = minilora.check_gradient(forward, backward, {"x": x, "A": A, "B": B}, constants=constants)
print(report)
assert report.ok

dx, dA, dB = backward(dy, x, A, B, **constants)
dropped = constants["keep"] == 0
assert np.allclose(B.T @ dB, dA @ A.T, rtol=1e-12)  # the law
assert np.allclose(dx[dropped], (dy @ W)[dropped], rtol=1e-12)  # a dropped x has only the path through W₀
assert minilora.diagnose(backward, "low_rank").ok

# %% [markdown] tags=["notes"]
# 9 min. Write the right column from the bottom up. Ask where $\alpha / r$ stands and to which power; usual
# wrong answers: twice in $dB$, or also on the path through $W_0$. Then: "why do we write $dy\, W_0$
# at all, if $W_0$ does not learn?" Because something *below* learns, and that is the only way to it.

# %% [markdown]
# ## 4. What freezing means
#
# A linear layer takes part in a step with three products of $2 N \,\text{in} \cdot \text{out}$ FLOPs each:
#
# | product | it reads | full fine-tuning | $W_0$ frozen, LoRA beside it |
# |---|---|---|---|
# | $y = x W_0^\top$ | $x$, $W_0$ | yes | yes |
# | $dx = dy\, W_0$ | $W_0$, **not** $x$ | yes | **yes** |
# | $dW = dy^\top x$ | $x$, **not** $W_0$ | yes, for $dW$ and Adam's two moments | never |
# | $h, y_1, dB, dh, dA, d\tilde x$ | $A$, $B$, $h$ and **$x$** | | $6\, N r\, (\text{in} + \text{out})$ FLOPs |
#
# So, for full fine-tuning (全量微调) and LoRA on a square matrix, $\text{in} = \text{out} = d$, per token:
#
# $$\frac{\text{LoRA}}{\text{full}} = \frac{4 d^2 + 12\, r d}{6 d^2} = \frac23 + \frac{2r}{d}$$
#
# Two thirds are the floor, however small the rank: of three products one is saved. As to memory, $x$ is needed for
# $dW$, and it is needed for $dA$ as well. A frozen layer *without* an adapter keeps nothing; with one it keeps $x$
# again, and $h$.

# %%
from minilora import accounting
from minilora.accounting.live import CountedArray

d, N, r = 256, 100, 8


def one_layer(layer):
    """FLOPs of its products, counted while they are executed, and bytes that its forward keeps."""
    x, dy = (rng.standard_normal((N, d)).view(CountedArray) for _ in range(2))
    held = {}

    def step():
        held["cache"] = layer.forward(x)[1]
        layer.backward(dy, held["cache"], minilora.Gradients())

    return accounting.executed_flops(layer, step)["products"], accounting.nbytes(held["cache"])


trained, frozen = (minilora.Linear(rng.standard_normal((d, d))) for _ in range(2))
frozen.freeze()
layers = {"trained": trained, "frozen": frozen, "LoRA, r = 8": minilora.LoRALinear(frozen, r=r, rng=0)}
found = {name: one_layer(layer) for name, layer in layers.items()}
for name, (flops, kept) in found.items():
    print(f"{name:<12} {flops / (2 * N * d * d):.4f} products of 2Nd² FLOPs    {kept:>8,} bytes kept")

assert found["trained"][0] == 6 * N * d**2
assert found["frozen"] == (4 * N * d**2, 0)
assert found["LoRA, r = 8"][0] == N * (4 * d**2 + 12 * r * d)
assert found["LoRA, r = 8"][1] == found["trained"][1] + N * r * 8  # x as before, and h: float64, 8 bytes a number
assert round(2 / 3 + 2 * 8 / 4096, 3) == 0.671  # a square layer as wide as those of a 7B model, at r = 8

# %% [markdown] tags=["notes"]
# 6 min. Let the class fill in the third column of the table before you show it. The question that separates: "LoRA
# trains 0.1% of the parameters; is a step a thousand times cheaper?" Two thirds. Then the memory: "which of $dW$ and
# $dx$ needed $x$?" Usual wrong answer: "frozen, so its input need not be kept, so the batch can grow".

# %% [markdown]
# ## 5. The whole step, counted
#
# Now all layers of a model, and the rest of the step: attention (注意力), norms, the loss. First the built-in model, of
# width 128, on 16 sequences of 128 tokens: everything is **measured**. The bytes are those of the cache (what the
# forward keeps for the backward), of the gradients and of Adam's moments; the products are counted as they are
# executed. The third way cuts $dx$ at $W_0$: a backward that returns the term through $A$ and $B$ alone.

# %%
from contextlib import nullcontext
from unittest.mock import patch

from minilora.training import loss_and_gradients


def backward_cut(layer, dy, cache, grads):
    """LoRALinear's backward, but dx lacks dy W₀."""
    A, B, s = layer.lora_A, layer.lora_B, layer.scaling
    if cache.base.needs_dx:
        dx, dh = ops.lora_backward(dy, A.data, B.data, s)
    else:  # nothing below learns
        dx, dh = None, ops.lora_h_backward(dy, B.data, s)
    grads.add(A, ops.lora_A_gradients(dh, cache.x))
    grads.add(B, ops.lora_B_gradients(dy, cache.h, s))
    return dx


def cut_at_W0(cut=True):
    return patch.object(minilora.LoRALinear, "backward", backward_cut) if cut else nullcontext()


def load(adapted):
    model = minilora.load_pretrained("builtin")
    if adapted:
        minilora.attach_lora(model, "all-linear", r=8, alpha=16, rng=0)
    return model


def measure(way):
    """Bytes that are held during one step, and FLOPs that it executes."""
    model, held = load(way != "full"), {}
    with cut_at_W0(way == "LoRA, dx cut"):
        flops = accounting.executed_flops(model, lambda: held.update(step=loss_and_gradients(model, batch)))
    _, cache = model.forward(batch.ids)
    return accounting.memory(model, cache, held["step"][1], minilora.AdamW(model.trainable_parameters())) | flops


ids = rng.integers(0, 256, (16, 128))
batch = minilora.data.Batch(ids, ids)  # what the labels are makes no difference to the costs
ways = ["full", "LoRA", "LoRA, dx cut"]
measured = {way: measure(way) for way in ways}
for what in ("weights", "cache", "gradients", "optimizer"):
    print(f"{what:<10}", *(f"{way}: {bytes_[what] / 2**20:6.2f} MiB   " for way, bytes_ in measured.items()))
print("products  ", *(f"{way}: {flops['products'] / 1e9:6.2f} GFLOPs" for way, flops in measured.items()))

full, lora, cut = measured.values()
assert round(full["cache"] / 2**20, 1) == 102.6
assert round(lora["cache"] / 2**20, 1) == 103.8  # the numbers in the README
assert lora["cache"] > full["cache"]
assert cut["cache"] == lora["cache"]
saved = sum(lora[what] for what in ("gradients", "optimizer")) / sum(full[what] for what in ("gradients", "optimizer"))
assert 0.098 < saved < 0.099
assert 0.78 < lora["products"] / full["products"] < 0.80
assert 0.52 < cut["products"] / full["products"] < 0.54

# %% [markdown]
# The same can be counted without running anything, array by array and product by product. The count must equal what was
# measured above, to the byte and to the FLOP, for all three ways. Then it can be trusted for a model too large to run
# here: Llama 2 7B on 2048 tokens, with everything in 16 bits, Adam's moments included.


# %%
def counted(name, way, **step):
    """Bytes and FLOPs of a step by what they are there for."""
    method, targets = ("full", None) if way == "full" else ("lora", "all-linear")
    account = accounting.count(name, method, targets=targets, r=8, **step)
    kept, memory = {"x": 0, "h": 0, "rest": 0}, account.memory()
    for array in accounting.ledger(account.model, account.batch, account.tokens, account.dtype, loss=False):
        kept[array.what if array.what in kept else "rest"] += array.nbytes
    bytes_ = {
        "weights": memory["weights"],
        "kept: inputs x": kept["x"],
        "kept: the rest": kept["rest"],
        "kept: h": kept["h"],
        "gradients": memory["gradients"],
        "Adam's moments": memory["optimizer"],
    }
    products = dict.fromkeys(["y = x W₀ᵀ", "attention", "dx = dy W₀", "dW = dyᵀ x", "A and B"], 0)
    for product in account.costs.forward + account.costs.backward:
        if product.kind == "linear":
            kind = {"y": "y = x W₀ᵀ", "dx": "dx = dy W₀", "dW": "dW = dyᵀ x"}[product.formula.split()[0]]
            if not (way == "LoRA, dx cut" and kind == "dx = dy W₀" and account.model[product.layer].is_adapter):
                products[kind] += product.flops
        elif product.kind != "sums":
            products["A and B" if product.kind == "adapter" else "attention"] += product.flops
    return bytes_, products


small = {way: counted("builtin", way, batch=16, tokens=128) for way in ways}
large = {way: counted("llama-2-7b", way, tokens=2048, dtype="bfloat16") for way in ways}
for way, (bytes_, products) in small.items():
    assert sum(products.values()) == measured[way]["products"]
    assert sum(n for what, n in bytes_.items() if what.startswith("kept")) == measured[way]["cache"]
    assert bytes_["gradients"] == measured[way]["gradients"]
    assert bytes_["Adam's moments"] == measured[way]["optimizer"]

# %%
import matplotlib.pyplot as plt

plt.style.use("minilora.display.projector")
ORANGE, BLUE, GREY = "#D9621D", "#1F5FA8", "#8A8A8A"
COLORS = {
    **{"weights": "#5C5C5C", "kept: inputs x": GREY, "kept: the rest": "#C4C4C4", "kept: h": ORANGE},
    **{"gradients": BLUE, "Adam's moments": "#8DB4E2"},
    **{"y = x W₀ᵀ": "#5C5C5C", "attention": "#C4C4C4", "dx = dy W₀": GREY, "dW = dyᵀ x": BLUE, "A and B": ORANGE},
}


def share(of, which, way):
    """Of full fine-tuning's bytes (which = 0) or FLOPs (1)."""
    return sum(of[way][which].values()) / sum(of["full"][which].values())


figure, axes = plt.subplots(2, 2, figsize=(13.5, 7.6))
models = {"built-in model, measured": small, "Llama 2 7B, counted": large}
units = [[(2**20, "MiB"), (1e9, "GFLOPs")], [(2**30, "GiB"), (1e12, "TFLOPs")]]
for row, (name, of) in enumerate(models.items()):
    for which, ax in enumerate(axes[row]):
        (unit, label), left = units[row][which], np.zeros(3)
        for part in of["full"][which]:
            size = np.array([of[way][which][part] for way in ways]) / unit
            bars = ax.barh(ways, size, left=left, color=COLORS[part], label=part, height=0.7)
            left += size
        ax.bar_label(bars, [f" {share(of, which, way):.0%}" for way in ways], fontsize=14)
        ax.invert_yaxis()
        ax.set(xlabel=label, xlim=(0, 1.17 * left.max()))
        ax.set_title(f"{name}: {('bytes', 'products')[which]} of a step", fontsize=14, weight="normal")
for which in (0, 1):
    axes[0][which].legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncols=3, fontsize=12.5, columnspacing=1)
kept = sum(n for what, n in large["LoRA"][0].items() if what.startswith("kept")) / sum(
    n for what, n in large["full"][0].items() if what.startswith("kept")
)
figure.suptitle(
    f"Freezing removes dW and its bytes. The cache stays ({lora['cache'] / full['cache']:.0%}, at 7B {kept:.0%}), "
    "and so does dx",
    fontsize=17,
    weight="bold",
)
plt.show()

assert small["LoRA"][1]["dW = dyᵀ x"] == large["LoRA"][1]["dW = dyᵀ x"] == 0
assert large["LoRA"][1]["dx = dy W₀"] > 0.99 * large["full"][1]["dx = dy W₀"]
assert 0.99 < kept < 1
assert large["LoRA"][0]["gradients"] < 0.007 * large["full"][0]["gradients"]
assert 0.67 < share(large, 1, "LoRA") < 0.69
assert all(0.25 < share(of, 1, "LoRA") - share(of, 1, "LoRA, dx cut") < 1 / 3 for of in models.values())
assert share(large, 0, "LoRA, dx cut") == share(large, 0, "LoRA")
assert 0.35 < share(large, 0, "LoRA") < 0.37
assert 0.93 < share(small, 0, "LoRA") < 0.94  # in a small model on a large batch, nearly all is activations

# %% [markdown]
# **Blue is what freezing takes away:** $dW$ on the right, gradients and moments on the left. **Grey is what it
# leaves**, and orange is what LoRA adds. The saving in bytes is large where weights are large against the batch (7B:
# 36% is left), and small where they are not (the built-in model: 93%). In products it is never more than a third.
#
# The third bar looks like an offer. Who needs $dx$, if nothing in this layer learns from it? Without it another quarter
# to a third of the products would be saved, though not a byte.

# %% [markdown] tags=["notes"]
# 6 min. Give them time with the figure; ask for the largest bar that did not move. Then: "your GPU is full. Does LoRA
# let you double the batch?" Usual wrong answer: yes, since 99% of the parameters are frozen. The cache grows with the
# batch as before; what LoRA frees is a constant, once. End on the third bar and let them argue whether it is allowed.

# %% [markdown]
# ## 6. Break it: cut $dx$ at $W_0$
#
# The fault has a name:

# %%
from minilora.verify.problems import problems

low_rank = problems()["low_rank"]


def without_base_path(*arguments, **constants):
    return low_rank.backward(*arguments, **constants) | low_rank.faults["no_base_path"].wrong(*arguments, **constants)


diagnosis = minilora.diagnose(without_base_path, "low_rank")
print(diagnosis)
assert diagnosis.names() == ["no_base_path"]

# %% [markdown]
# $dA$ and $dB$ of the *same* layer are right. What is handed down is wrong, and so are the gradients of the layers
# below. How wrong? Take the cosine between the cut $dA$ and the right one, all seven adapters of a block together. But
# a gradient of one batch is noisy in any case, so there is a control: the cosine between the *right* $dA$ of one set of
# batches and that of another. Noise averages out when more batches are added. A gradient that is wrong stays wrong.
# Both are measured after ten right steps. `python notebooks/record.py cosines` has recorded three seeds; two points of
# the first are computed again here.

# %%
import record
from adapting import source

from minilora.data import random_windows


def adapted(cut, lr, seed, steps):
    """Steps from the same start on the same batches, with or without the cut."""
    model = minilora.load_pretrained("builtin")
    minilora.attach_lora(model, "all-linear", r=8, alpha=16, rng=seed)
    batches = random_windows(source().train, batch=8, length=64, seed=seed)
    schedule = minilora.cosine_schedule(steps, warmup=max(1, steps // 12))
    with cut_at_W0(cut):
        minilora.fit(model, batches, steps, lr=lr, schedule=schedule, seed=seed, description=None)
    return model


def dA_of(model, block, cut, batches):
    """The sum over some batches of dA of every adapter in a block, in one row."""
    A = [parameter for path, parameter in model[block].named_parameters().items() if path.endswith("lora_A")]
    with cut_at_W0(cut):
        grads = [loss_and_gradients(model, batch)[1] for batch in batches]
    return np.concatenate([sum(g[parameter] for g in grads).ravel() for parameter in A])


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


model = adapted(cut=False, lr=8e-3, seed=0, steps=10)
of_step = random_windows(source().train, batch=8, length=64, seed=1000)
eight = [of_step(step) for step in range(0, 16, 2)]
cut_cosine = cosine(dA_of(model, "block_0", False, eight), dA_of(model, "block_0", True, eight))
one, other = (dA_of(model, "block_0", False, [of_step(step)]) for step in (0, 1))
print(f"block 0: the cut, eight batches {cut_cosine:.2f}; right, one batch and another {cosine(one, other):.2f}")

recorded = {what: np.array([run[what] for run in record.read("cosines")]) for what in ("noise", "cut")}
averaged = 2 ** np.arange(recorded["cut"].shape[1])  # batches; the arrays are (seeds, numbers of batches, blocks)
assert record.within_spread(cut_cosine, recorded["cut"][:, 3, 0])
assert record.within_spread(cosine(one, other), recorded["noise"][:, 0, 0])

# %% [markdown]
# At the very first step it is worse still. While $B = 0$, the cut leaves nothing of $dx$ inside a block, and five of
# the seven adapters in each block get no gradient at all. Only `o_proj` and `down_proj`, which write to the residual
# (残差) stream, are reached by it: the skip connection is why the cosine is not zero. One adapter in the model is
# untouched, the topmost: no cut lies between it and the loss.

# %%
start = load(adapted=True)
with cut_at_W0():
    grads = loss_and_gradients(start, of_step(0))[1]
B_of = {path: parameter for path, parameter in start.trainable_parameters().items() if path.endswith("lora_B")}
reached = {path.split(".")[-2] for path, parameter in B_of.items() if grads[parameter].any()}
print("adapters with a gradient at the first step:", *sorted(reached))
assert reached == {"o_proj", "down_proj"}

top = model["block_4.mlp.down_proj"].lora_A
with cut_at_W0():
    cut_top = loss_and_gradients(model, of_step(0))[1][top]
assert np.array_equal(cut_top, loss_and_gradients(model, of_step(0))[1][top])

# %% [markdown]
# And the training? Recorded by `python notebooks/record.py cut`: three seeds, 40 steps, from the same start on the same
# batches. Each way has several learning rates (学习率), since at one shared rate it would be the rates that we compare.

# %%
runs = record.read("cut")
rates = {cut: sorted({run["lr"] for run in runs if run["cut"] == cut and run["lr"]}) for cut in (False, True)}
base = record.pick(runs, "new", lr=0.0)[0]
new = {(cut, lr): record.pick(runs, "new", cut=cut, lr=lr) for cut in rates for lr in rates[cut]}
best = {cut: min(rates[cut], key=lambda lr: new[cut, lr].mean()) for cut in rates}
print(f"bits per byte of Python source that it has not seen; the base {base:.3f}")
for cut in rates:
    for lr in rates[cut]:
        low, high = new[cut, lr].min(), new[cut, lr].max()
        print(f"{'cut' if cut else 'right':<6} rate {lr:<8g} {new[cut, lr].mean():.3f}  ({low:.3f} to {high:.3f})",
              "  <- best" * (lr == best[cut]))  # fmt: skip


def curve(cut, lr):
    """(seeds, windows): the mean training loss of every five steps."""
    return record.pick(runs, "curve", cut=cut, lr=lr).reshape(3, 8, 5).mean(axis=2)


gain = {cut: base - new[cut, best[cut]] for cut in rates}
part = gain[True].mean() / gain[False].mean()
figure, (left, right_ax) = plt.subplots(1, 2, figsize=(13.5, 5.6))
for what, color, words in (("noise", GREY, "right, on other batches (control)"), ("cut", ORANGE, "cut at W₀")):
    cosines = recorded[what][:, :, 0]
    mean = cosines.mean(axis=0)
    left.errorbar(averaged, mean, [mean - cosines.min(axis=0), cosines.max(axis=0) - mean],
                  fmt="o-", color=color, label=words)  # fmt: skip
left.set(xscale="log", xlabel="batches averaged (512 tokens each)", ylabel="cosine to the right dA, block 0")
left.set_ylim(0, 1)
left.set_xticks(averaged, averaged)
left.minorticks_off()
left.set_title("Noise averages out, the cut does not", fontsize=14, weight="normal")
left.legend(loc="upper left")
at = np.arange(3, 41, 5)
right_ax.axhline(0, color=GREY, ls=":")
right_ax.text(40, 0.03, "the base", color=GREY, ha="right")
for cut, lr, color, style, words, *where in (
    (True, best[False], ORANGE, "--", f"cut, at the right one's rate, {best[False]:g}", 2, 1.45),
    (True, best[True], ORANGE, "-", f"cut, at its best rate, {best[True]:g}", 19, -0.26),
    (False, best[False], BLUE, "-", f"right, at its best rate, {best[False]:g}", 2, -0.68),
):
    below = curve(cut, lr) - curve(False, 0.0)
    right_ax.plot(at, below.mean(axis=0), style, color=color)
    right_ax.fill_between(at, below.min(axis=0), below.max(axis=0), color=color, alpha=0.15, lw=0)
    right_ax.text(*where, words, color=color)
right_ax.set(xlabel="step", ylabel="training loss, minus the base's\non the same batches, bits per byte")
right_ax.set_ylim(-0.8, 1.6)
right_ax.set_title("Training: mean and range of three seeds", fontsize=14, weight="normal")
figure.suptitle(
    f"With dx cut at W₀ the loss still falls: it gains {part:.0%} of what the right gradient gains",
    fontsize=17,
    weight="bold",
)
plt.show()

assert gain[True].min() > 0  # it falls, with every seed
assert 0.14 < part < 0.22
assert best[False] == 4 * best[True]
assert new[True, best[False]].min() > base  # at the right one's rate it climbs
assert new[False, best[False]].max() < 2.85 < 3.25 < new[True, best[True]].min() < base
assert recorded["noise"][:, -1, 0].min() > 0.8
assert abs(recorded["noise"][:, 0, 0].mean() - recorded["cut"][:, 0, 0].mean()) < 0.05  # alike on one batch
assert recorded["cut"][:, :, 0].max() < 0.4
assert recorded["cut"][:, -1, 0].max() < 0.5

# %% [markdown]
# **Left.** On a single batch the two cosines are alike: whoever compares gradients there takes the cut for noise. With
# 64 batches the right gradients of different text agree, and the cut one stays below 0.4. More data does not help; that
# is what *biased* means.
#
# **Right.** A loss that falls is no evidence for a gradient. At its best rate the cut falls with every seed, and gains
# less than a quarter of what the right gradient gains from the same start. That best rate is a quarter of the right
# one's. At the right one's rate the loss falls for a few steps and then climbs above the base. A wrong gradient is not
# a slow one: longer steps make it worse.

# %% [markdown] tags=["notes"]
# 6 min. Ask for predictions before the figure: will the loss of the cut fall? Half the class says no, and that is the
# usual wrong answer; the other error is "then it is only noise", which the left side answers. Say what it looks like in
# real code: a `detach()` or a `no_grad()` around the frozen layer. No shape is wrong, nothing is raised, the loss
# falls.

# %% [markdown]
# ## 7. Where $dx$ may be left out, and what does save activations
#
# $dx$ exists for the layers below. Below the lowest layer that learns there is nobody to read it, and there it *is*
# left out (`needs_dx` in the library). So a smaller bill needs adapters in fewer blocks, the uppermost. Two other ways:
# freeze $A$ as it was drawn (LoRA-FA, Zhang et al., 2023), so that no $dA$ asks for $x$; or keep each block's input
# alone and run the block again when its backward comes (Chen et al., 2016: checkpointing (重计算)). None of the three
# comes with freezing.

# %%
last_block = [f"block_4.{path}" for path in ("attention.q_proj", "attention.k_proj", "attention.v_proj",
              "attention.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]  # fmt: skip
top_only = minilora.load_pretrained("builtin")
minilora.attach_lora(top_only, last_block, r=8, alpha=16, rng=0)
step = {"batch": 16, "tokens": 128}
options = {
    "full fine-tuning": accounting.count("builtin", "full", **step).model,
    "LoRA": load(adapted=True),
    "LoRA in the last block of five": top_only,
    "LoRA-FA: A frozen": accounting.count("builtin", "lora-fa", targets="all-linear", **step).model,
    "LoRA, blocks run again": accounting.count("builtin", "lora", targets="all-linear", recompute=True, **step).model,
}
costs = {}
for name, model in options.items():
    kept = sum(array.nbytes for array in accounting.ledger(model, loss=False, **step))
    costs[name] = kept / full["cache"], sum(f.products for f in accounting.flops(model, **step)) / full["products"]
    print(f"{name:<32} keeps {costs[name][0]:4.0%}, multiplies {costs[name][1]:4.0%} of full fine-tuning")

assert 0.20 < costs["LoRA in the last block of five"][0] < 0.22
assert 0.42 < costs["LoRA in the last block of five"][1] < 0.43

assert 1 < costs["LoRA"][0] < 1.02
assert 0.72 < costs["LoRA-FA: A frozen"][0] < 0.74
assert 0.25 < costs["LoRA, blocks run again"][0] < 0.27
assert 1.13 < costs["LoRA, blocks run again"][1] < 1.15

# %% [markdown]
# Adapters in one block of five keep a fifth, but it is a smaller adapter. Running the blocks again keeps a quarter and
# computes more than full fine-tuning does.

# %% [markdown] tags=["notes"]
# 2 min. Back to the words on the board from the first minute: a number beside each. If there is time: why may
# checkpointing with a frozen base leave every gradient empty in a framework that records only what needs a gradient?
# Because the input of the first block needs none, so that the block is not recorded.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Adapt `q_proj` and `v_proj` alone, as the LoRA paper does. Which layers stop keeping their $x$, and is the cache of
#    section 5 then smaller or larger than that of full fine-tuning?
# 2. At what rank does a step cost as much as one of full fine-tuning, for $d = 256$? Let `one_layer` of section 4 say
#    whether you are right.
# 3. Let the cut act in `block_4` alone. What does the cosine of `block_0` become, and that of `block_4`?
#
# **Not shown here:** seconds. FLOPs are not time. Nor a GPU, four-bit weights, or other variants. The cut was trained
# on one model of 0.94 million parameters over bytes, for 40 steps of 512 tokens, with three seeds, at rates a factor of
# two apart; how much of the gain it keeps will differ elsewhere; that its gradient is wrong will not. Llama 2 7B was
# counted and not run.
