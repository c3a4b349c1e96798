# %% [markdown]
# # LoRA in 40 lines
#
# **An adapter (适配器) is two thin matrices beside a frozen (冻结) one: at the start it changes nothing, it trains, and
# it can be merged (合并).** That is LoRA, low-rank adaptation (低秩适配). The forty lines need NumPy and nothing else:
# base, adapter, both gradients by hand, training, merging. Every `assert` is a claim that has just been tested.
#
# | letter | shape | here | what it is |
# |---|---|---|---|
# | $x$ | $(N, \text{in})$ | $500 \times 64$ | inputs, one example a row |
# | $W_0$ | $(\text{out}, \text{in})$ | $48 \times 64$ | the trained weight, frozen |
# | $A$ | $(r, \text{in})$ | $4 \times 64$ | learned, starts random |
# | $B$ | $(\text{out}, r)$ | $48 \times 4$ | learned, starts at 0 |
# | $s = \alpha / r$ | | $8 / 4 = 2$ | a fixed scale |
# | $y, t$ | $(N, \text{out})$ | $500 \times 48$ | outputs and targets |

# %% [markdown] tags=["notes"]
# 4 min. Read the claim aloud: four statements, each with its own `assert` below. Point at the shapes: examples are
# rows, a weight is (out, in), as in PyTorch.
#
# Ask: how many numbers have A and B together, and how many has W₀? (448 and 3,072.)
#
# Usual wrong answer: "LoRA decomposes the weight." Nothing is decomposed. The *change* is written as a product.

# %% [markdown]
# ## 1. A base, and a task it was not made for
#
# The **old task** is $t = x\,W_\text{old}^\top + \text{noise}$, and the base $W_0$ is its least-squares fit. The **new
# task** has the weight $W_\text{old} + \Delta$, where $\Delta$ (`change`) is a product of a $(48, 2)$ and a $(2, 64)$
# matrix: of rank 2. That a change of low rank (低秩) is enough is LoRA's assumption. Here we build it in, so that we
# know what should be found; whether a real task is like this is a question of measurement.

# %%
import numpy as np

rng = np.random.default_rng(0)
n_in, n_out = 64, 48


def examples(W, rows):
    x = rng.standard_normal((rows, n_in))
    return x, x @ W.T + 0.1 * rng.standard_normal((rows, n_out))


W_old = rng.standard_normal((n_out, n_in)) / 8
change = rng.standard_normal((n_out, 2)) @ np.diag([0.06, 0.03]) @ rng.standard_normal((2, n_in))
x_old, t_old = examples(W_old, 2000)
W0 = np.linalg.lstsq(x_old, t_old)[0].T
W0_before = W0.copy()
x, t = examples(W_old + change, 500)

# %% [markdown] tags=["notes"]
# 4 min. Say that the low rank is built into this task, so that the right answer is known. Notebook 06 asks whether a
# real change is of low rank.
#
# Ask: why does the loss not go to 0? (The noise: half of 48 · 0.01 is 0.24.)

# %% [markdown]
# ## 2. The adapter
#
# $$W_0 + \Delta W, \qquad \Delta W = s\,B A, \qquad s = \alpha / r$$
#
# A product of $(\text{out}, r)$ and $(r, \text{in})$ has rank at most $r$, and $r\,(\text{in} + \text{out})$ numbers
# instead of $\text{in} \cdot \text{out}$; $s$ is a fixed scale (缩放因子). One factor starts at zero, so that training
# starts exactly at the base. The other must not: with $A = 0$ and $B = 0$ both gradients of section 4 are zero, and
# nothing would ever move.
# (Hu et al. draw $A$ from a Gaussian; we draw it uniformly within $\pm 1/\sqrt{\text{in}}$, as PEFT does.)

# %%
r, alpha = 4, 8
s = alpha / r
A = rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)
B = np.zeros((n_out, r))
print(f"learned: r (in + out) = {A.size + B.size} numbers, frozen: in · out = {W0.size}")

# %% [markdown] tags=["notes"]
# 6 min. Write the shapes under s B A on the board. Then the two conditions on the start: B A = 0, and not both zero.
#
# Ask: could A be zero and B random instead? (Yes: then dB = 0 at the first step, and A moves first.)
#
# Usual wrong answer: "B = 0, so nothing can be learned at first." Section 4 says what moves.

# %% [markdown]
# ## 3. Forward
#
# $$h = x A^\top \;(N, r), \qquad y = x W_0^\top + s\, h B^\top \;(N, \text{out})$$
#
# This is equation 3 of Hu et al. (2021), $W_0 x + BAx$, with examples as rows and the scale written out. (They call the
# result $h$; here $h$ is the narrow thing in the middle.) $\Delta W$ is not formed: two thin products are cheaper.


# %%
def forward(x, A, B):
    h = x @ A.T
    return x @ W0.T + s * h @ B.T, h


y, h = forward(x, A, B)
assert np.array_equal(y, x @ W0.T)  # at step 0 the adapter changes nothing

# %% [markdown] tags=["notes"]
# 5 min. Two products, the first of them narrow. Let the class write the shape under each letter.
#
# Ask: why is this equality exact, to the last bit, and not only close? (h @ B.T is a sum of zeros: adding 0 rounds
# nothing.)
#
# Usual wrong answer: x (B A)ᵀ is the same thing. In numbers yes, but it forms a matrix as large as W₀ in every call.

# %% [markdown]
# ## 4. Backward
#
# Let $L = \frac{1}{2N} \sum_n \lVert y_n - t_n \rVert^2$, so the upstream gradient (上游梯度) is
# $dy = \partial L / \partial y = (y - t) / N$, of shape $(N, \text{out})$. For any product $u = v M^\top$ the gradients
# are $dM = du^\top v$ and $dv = du\,M$. Used on $y = (s h) B^\top$, and then on $h = x A^\top$:
#
# $$dB = s\, dy^\top h \;(\text{out}, r), \qquad dh = s\, dy\, B \;(N, r), \qquad
# dA = dh^\top x = s\, (dy\, B)^\top x \;(r, \text{in})$$
#
# $W_0$ is frozen: its gradient $dy^\top x$ $(\text{out}, \text{in})$, the large one, is never computed. And $dA$ has
# $B$ as a factor: while $B = 0$, $A$ stands still and only $B$ learns.


# %%
def gradients(dy, x, h, B):
    dB = s * dy.T @ h
    dA = s * (dy @ B).T @ x
    return dA, dB


dA, dB = gradients((y - t) / len(x), x, h, B)
assert not dA.any()  # dA = 0 while B = 0: only B moves

# %% [markdown] tags=["notes"]
# 8 min. The chain rule twice, with shapes. Let the class find the order of the factors from the shapes alone.
#
# Ask: which large product is missing? (dyᵀ x, the gradient of W₀.) And what would a layer below need? (dx = dy W₀ + dh
# A.)
#
# Usual wrong answer: "W₀ is frozen, so no gradient goes through it." None is computed *for* it; dx passes *through* it.

# %% [markdown]
# ## 5. Training
#
# Plain gradient descent on $A$ and $B$, on all 500 examples at each step. Nothing writes to $W_0$.


# %%
def train(A, B, steps=200, lr=0.02):
    losses = []
    for _ in range(steps):
        y, h = forward(x, A, B)
        losses.append(np.sum((y - t) ** 2) / (2 * len(x)))
        dA, dB = gradients((y - t) / len(x), x, h, B)
        A, B = A - lr * dA, B - lr * dB
    return A, B, losses


A, B, losses = train(A, B)
assert np.array_equal(W0, W0_before)  # frozen, bit for bit

# %% [markdown] tags=["notes"]
# 3 min. Plain gradient descent, no library. The assert compares the bits of W₀ before and after.

# %% [markdown]
# ## 6. Merging
#
# $x W_0^\top + s\,(x A^\top) B^\top = x\,(W_0 + s\,B A)^\top$: one matrix of the old shape, no extra work at inference.
# Equal up to rounding, because floating-point sums depend on their order.

# %%
W = W0 + s * B @ A
assert np.allclose(x @ W.T, forward(x, A, B)[0], rtol=0, atol=1e-12)

# %% [markdown] tags=["notes"]
# 3 min. Ask: what does the merged layer cost at inference? (What the base costs.) What can it no longer do? (Be
# switched off, or share its base with another adapter.)
#
# Usual wrong answer: "merging is exact." In algebra it is, in floating point up to rounding; in four bits it is a loss
# of its own (notebook 09).

# %% [markdown]
# Those were the forty lines.
#
# ## Your turn: the forward of a whole layer
#
# A layer in a model also has a bias $b$ $(\text{out},)$. Its $x$ may have any number of axes before the last one, or
# none; and $r = 0$ means that there is no adapter. Write it, without ever forming the $(\text{out}, \text{in})$ matrix
# $BA$:
#
# $$y = x W^\top + b + s\,(x A^\top) B^\top \;(\dots, \text{out}), \qquad s = \alpha / r$$


# %% tags=["exercise"] exercise="01"
def lora_forward(x, W, b, A, B, alpha):
    """Return y.

    >>> lora_forward(np.array([2.0]), np.array([[3.0]]), np.array([4.0]), np.array([[5.0]]), np.array([[6.0]]), 7.0)
    array([430.])
    """
    raise NotImplementedError


# %% [markdown] tags=["notes"]
# 10 min. Everyone writes; the check names the mistake and asks a question. Whoever is done early answers: what is `x.T`
# when x has three axes?
#
# Usual mistakes: no scale, α for α/r, a division by r = 0, `x @ (B @ A).T`.

# %%
from minilora.practice import check
from minilora.process import blas_threads

check("01", lora_forward)

# %% [markdown]
# ## What was learned
#
# How low can the loss go? Without a limit on the rank the best change is the least-squares fit $M$
# $(\text{out}, \text{in})$ of the gap $R = t - x W_0^\top$. A change of rank $r$ adds $x \Delta W^\top$, of rank $r$ at
# most, and none of these comes nearer to $R$ than $x M^\top$ with all but its $r$ largest singular values (奇异值) set
# to zero (Eckart and Young, 1936). So the loss has a floor, known without any training:
#
# $$L \ge \frac{1}{2N} \Big( \lVert R - x M^\top \rVert^2 + \sum_{i > r} \sigma_i^2(x M^\top) \Big)$$
#
# Three trainings, with the same $s$, the first two from five random starts each:
#
# - **$r = 4$**, more than the change needs. It learns the stronger of the two directions of the change first, then the
#   weaker: the curve bends in between.
# - **$r = 1$**, the control: it can learn one direction only, and should stop at its floor, not below.
# - **Both factors 0**, the other control. It has one start only, and stays there: $dB$ has $h = x A^\top = 0$ as a
#   factor and $dA$ has $B = 0$. Both are zero, so nothing changes, so both are zero at the next step too.


# %%
def start(rank, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (rank, n_in)) / np.sqrt(n_in), np.zeros((n_out, rank))


def floor(rank):
    gap = t - x @ W0.T
    best = x @ np.linalg.lstsq(x, gap)[0]
    left = np.linalg.svd(best, compute_uv=False)[rank:]
    return (np.sum((gap - best) ** 2) + np.sum(left**2)) / (2 * len(x))


y, h = forward(x, *start(r, 0))
dA, dB = gradients((y - t) / len(x), x, h, np.zeros((n_out, r)))
assert not dA.any()
assert dB.any()  # A random, B = 0: B moves, and from the second step on A does too

with blas_threads():  # one thread: these products are small, and two threads wait for each other
    rank_1, rank_4 = (np.array([train(*start(rank, seed))[2] for seed in range(5)]) for rank in (1, r))
    A_zero, B_zero, losses_zero = train(np.zeros((r, n_in)), np.zeros((n_out, r)))
assert not A_zero.any()
assert not B_zero.any()
assert len(set(losses_zero)) == 1  # 200 steps, and none of them changed a bit

noise = np.sum((x @ (W_old + change).T - t) ** 2) / (2 * len(x))
print(f"r = 1: five starts end at {rank_1[:, -1].min():.6f} to {rank_1[:, -1].max():.6f}, the floor is {floor(1):.6f}")
print(f"r = 4: five starts end at {rank_4[:, -1].min():.6f} to {rank_4[:, -1].max():.6f}, the floor is {floor(r):.6f}")
print(f"r = 2: the floor is {floor(2):.6f}; the true change has the loss {noise:.6f}, all of it noise")
assert np.allclose(rank_1[:, -1], floor(1), rtol=1e-6)
assert rank_1.min() > (1 - 1e-9) * floor(1)  # the control: at its floor, not below
assert rank_4.min() > floor(r)
assert rank_4[:, -1].max() < 1.05 * floor(r)
assert rank_4[:, -1].max() < floor(2)  # the two directions that are left over have fitted a little noise

# %% [markdown] tags=["notes"]
# 4 min. Before the cell runs, ask: where does the loss go with A = B = 0? Let them vote: slowly down, up, nowhere.
#
# Usual wrong answer: "noise in the data breaks the tie." The gradient is exactly zero, whatever the data are.

# %% [markdown]
# The forty lines' own run, with $r = 4$, can be compared with the change that was built in.

# %%
true, learned = (np.linalg.svd(M, compute_uv=False)[:8] for M in (change, s * B @ A))
assert np.linalg.norm(s * B @ A - change) < 0.05 * np.linalg.norm(change)
assert np.allclose(learned[:2], true[:2], rtol=0.02)
assert learned[2:].max() < 0.05

# %%
import matplotlib.pyplot as plt

plt.style.use("minilora.display.projector")
orange, pale, blue, grey = "#D9621D", "#EEB48F", "#1F5FA8", "#8A8A8A"

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6), width_ratios=(3, 2))
figure.suptitle(
    f"Rank 1 stops at {rank_1[:, -1].mean():.3f}, and its floor is {floor(1):.3f}; rank {r} goes on to the noise",
    weight="bold",
)
left.plot(losses_zero, color=grey, label="A = B = 0: never moves")
for runs, color, label in [(rank_1, pale, "r = 1"), (rank_4, orange, f"r = {r}")]:
    left.plot(np.median(runs, axis=0), color=color, label=label)
    left.fill_between(np.arange(runs.shape[1]), runs.min(axis=0), runs.max(axis=0), color=color, alpha=0.3, lw=0)
left.axhline(floor(1), color="black", ls=":", lw=1.5, label="floor of rank 1")
left.axhline(noise, color="black", ls="--", lw=1.5, label="noise alone")
left.set(xlabel="step", ylabel="training loss (log scale)", yscale="log")
left.set_title("five starts: median, min to max", weight="normal", size=14)
left.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
left.set(ylim=(0.17, 14), xlim=(0, 200))
left.minorticks_off()
left.legend(fontsize=12, loc="upper right", bbox_to_anchor=(1, 0.9))
index = np.arange(1, 9)
right.bar(index, true, 0.7, color="#D5D5D5", label="true change")
right.plot(index, learned, "o", color=orange, label=f"learned, r = {r}")
for i, sigma in zip(index, learned, strict=True):
    right.annotate(
        f"{sigma:.2f}" if i <= r else "0", (i, sigma), (0, 9), textcoords="offset points", ha="center", size=12
    )
right.set(xlabel="number i of the singular value", ylabel="singular value σᵢ", xticks=index, ylim=(0, 1.15 * true[0]))
right.set_title(f"two are found, the others ≤ {learned[2:].max():.2f}", weight="normal", size=14)
right.legend()
plt.show()

# %% [markdown] tags=["notes"]
# 5 min. Left: show the dotted line first. It was computed without any training, and the control ends on it.
#
# Right: the learner had four directions and used two; the two that are left over fit a little noise.
#
# Ask: what would r = 16 change? (Left: it falls some steps earlier, and ends a little below the dashed line, since it
# fits noise. Right: more small dots.)
#
# Usual wrong answer: "a larger rank always fits better." Above the rank of the change it fits noise.

# %% [markdown]
# ## Break it
#
# Two mistakes that people make in `gradients`. The first forgets $s$ in both tensors. The second takes $dA$ for zero,
# because it *is* zero at the first step. `diagnose` knows both by name; its own layer also has $W$ and dropout
# (随机失活), and ours is compared without them. Each is trained beside the right gradient, from the same three starts.


# %%
from functools import partial
from unittest.mock import patch

from minilora.verify import diagnose


def no_scale(dy, x, h, B, s):
    return (dy @ B).T @ x, dy.T @ h


def as_if_B_were_zero(dy, x, h, B, s):
    return np.zeros((B.shape[1], x.shape[1])), s * dy.T @ h


def whole_layer(wrong):
    """A gradient as `diagnose` calls it: of y = s x Aᵀ Bᵀ, with dx."""
    return lambda dy, x, A, B, s: (s * dy @ B @ A, *wrong(dy, x, x @ A.T, B, s))


def train_with(wrong):
    """The losses from three starts, with this function in the place of `gradients`."""
    with blas_threads(), patch.dict(globals(), gradients=partial(wrong, s=s)):
        return np.array([train(*start(r, seed))[2] for seed in range(3)])


broken = {wrong.__name__: train_with(wrong) for wrong in (no_scale, as_if_B_were_zero)}
fall = rank_4[:3, 0] - rank_4[:3, -1]
for wrong in (no_scale, as_if_B_were_zero):
    diagnosis = diagnose(whole_layer(wrong), "low_rank")
    assert wrong.__name__ in diagnosis.names()
    runs = broken[wrong.__name__]
    shares = (runs[:, 0] - runs[:, -1]) / fall
    print(f"{diagnosis}\n    the loss ends at {runs[:, -1].round(3)}, {shares.round(3)} of the right fall\n")

assert np.all(broken["no_scale"][:, -1] > rank_4[:3, -1])
assert np.all(broken["no_scale"][:, -1] < 1.05 * rank_4[:3, -1])
assert np.all(broken["as_if_B_were_zero"][:, -1] < broken["as_if_B_were_zero"][:, 0])
assert np.all(broken["as_if_B_were_zero"][:, -1] > 30 * rank_4[:3, -1])

# %% [markdown] tags=["notes"]
# 5 min. Ask first: which of the two will you notice in the loss? The missing scale halves both gradients here, which is
# half the learning rate: the same curve, later. With s = 1 it changes nothing at all. The zero dA trains B alone: 4
# random directions of 64 are all that it can use.
#
# Usual wrong answer: "the loss falls, so the gradient is right." Both losses fall, in three of three starts.

# %%
figure, axes = plt.subplots(figsize=(10, 4.4))
late = (broken["no_scale"][:, -1] / rank_4[:3, -1] - 1).max()
left_over = (broken["as_if_B_were_zero"][:, -1] / broken["as_if_B_were_zero"][:, 0]).min()
for runs, color, ls, label in [
    (broken["as_if_B_were_zero"], grey, "-", "dA taken for 0"),
    (broken["no_scale"], blue, "--", "s forgotten"),
    (rank_4[:3], orange, "-", "right"),
]:
    axes.plot(np.median(runs, axis=0), color=color, ls=ls, label=label)
    axes.fill_between(np.arange(runs.shape[1]), runs.min(axis=0), runs.max(axis=0), color=color, alpha=0.25, lw=0)
axes.set_title(
    f"Both wrong gradients lower the loss: one ends up to {late:.0%} too high,\n"
    f"the other leaves {left_over:.0%} of it or more"
)
axes.set(xlabel="step", ylabel="training loss (log scale)", yscale="log", ylim=(0.17, 14), xlim=(0, 200))
axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
axes.minorticks_off()
axes.legend(loc="center right", bbox_to_anchor=(1, 0.62))
plt.show()

# %% [markdown]
# A curve that falls is no test of a gradient. A difference quotient is one, if it is taken at a point where the mistake
# changes the gradient. The next cell measures both mistakes at trained $A$ and $B$. At $B = 0$, where training starts,
# $dA = 0$ is right, and the second mistake cannot be seen. Notebook 01 is about that.

# %% [markdown]
# ## The same with the library
#
# Are the two lines of section 4 right? First against the forward (前向传播) alone: $f = \sum dy \circ y$ is a quadratic
# along any straight line in $(A, B)$, so a central difference (中心差分) has no error but rounding. Then against
# `minilora`: the functions, and the layer. Here `dy` is random, because at the end of training the real one gives
# gradients close to zero.

# %%
import minilora
from minilora import ops

dy, VA, VB = (rng.standard_normal(shape) for shape in (y.shape, A.shape, B.shape))
y, h = forward(x, A, B)
dA, dB = gradients(dy, x, h, B)


def f(e):
    return np.sum(dy * forward(x, A + e * VA, B + e * VB)[0])


measured = f(0.5) - f(-0.5)
assert np.isclose(measured, np.sum(dA * VA) + np.sum(dB * VB), rtol=1e-9)
for wrong in (no_scale, as_if_B_were_zero):
    dA_wrong, dB_wrong = wrong(dy, x, h, B, s)
    claimed = np.sum(dA_wrong * VA) + np.sum(dB_wrong * VB)
    print(f"{wrong.__name__:<18} claims {claimed:8.1f}, measured {measured:8.1f}")
    assert abs(claimed / measured - 1) > 0.1

y_lora, cache = ops.lora_forward(x, A, B, s)
dx_lora, dh = ops.lora_backward(dy, A, B, s)
assert np.allclose(x @ W0.T + y_lora, y)
assert np.allclose(dx_lora, dy @ (s * B @ A))
assert np.allclose(ops.lora_A_gradients(dh, cache.x), dA)
assert np.allclose(ops.lora_B_gradients(dy, cache.h, s), dB)

layer = minilora.LoRALinear(minilora.Linear(W0), r=r, alpha=alpha, rng=rng)
assert np.array_equal(layer.forward(x)[0], x @ W0.T)  # a new adapter: B = 0
layer.lora_A.data, layer.lora_B.data = A, B
y_layer, cache = layer.forward(x)
grads = minilora.Gradients()
dx = layer.backward(dy, cache, grads)
assert np.allclose(y_layer, y)
assert np.allclose(dx, dy @ W)
assert np.allclose(grads[layer.lora_A], dA)
assert np.allclose(grads[layer.lora_B], dB)
assert layer.base.weight not in grads  # frozen: never computed
print("a central difference, the ops and LoRALinear agree with the forty lines")

# %% [markdown] tags=["notes"]
# 3 min. One difference quotient for all 448 numbers at once, in a random direction. Then three implementations agree.
#
# Ask: why is the step as large as 0.5? (f is quadratic along the line, so a central difference is exact for any step.)

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Start with $B$ random too. Which `assert` fails first, and why would that matter for a base that is good already?
# 2. Exchange the start: $A = 0$ and $B$ random. Which of the two gradients is zero at the first step? Does it train?
# 3. Let $r = 2$, then $r = 16$, each with $\alpha = 2r$. What do the additional directions fit?
#
# **Not shown here:** one task of one size, made so that rank 2 is enough, and one draw of its data; a layer below that
# needs $dx$, dropout, minibatches and Adam, held-out data, full fine-tuning beside it, and any model or data that we
# did not make ourselves.
