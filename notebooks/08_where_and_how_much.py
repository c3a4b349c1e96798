# %% [markdown]
# # Where, and how much
#
# Which layers should get an adapter (适配器), and how large should it be? The two questions are usually answered with
# one number, the rank, and at one learning rate (学习率). Here is the claim of this notebook:
#
# > In the built-in model, at an equal number of parameters, adapters in the MLP beat adapters in attention (注意力),
# > and adapters in all layers beat those in q and v. What one adapter can hold is limited by its number of parameters,
# > and not by its rank alone.
#
# It needs 100 training runs, which are recorded (`python notebooks/record.py placement`), and a proof of three lines.
#
# | letter | shape | what it is |
# |---|---|---|
# | $W$ | $(\text{out}, \text{in})$ | the frozen weight of a layer |
# | $A$, $B$ | $(r, \text{in})$, $(\text{out}, r)$ | the adapter of rank $r$ |
# | $\Delta W = s B A$ | $(\text{out}, \text{in})$ | the update, $s = \alpha / r$ |
# | $X$, $Y$ | $(N, \text{in})$, $(N, \text{out})$ | $N$ inputs, and the outputs that are wanted for them |
# | $R = Y - X W^\top$ | $(N, \text{out})$ | what the adapter has to add |
# | $\sigma_1 \ge \sigma_2 \ge \dots$ | | the singular values of $R$ |

# %% [markdown] tags=["notes"]
# 5 min. Ask for a show of hands: "You may adapt q and v, or the MLP, with the same number of parameters. Which?" Many
# tutorials and defaults say q and v (this library's too), after Hu et al. (2021): they kept the parameters equal, but
# compared the matrices of attention only. Note the vote.

# %% [markdown]
# ## 1. Equal what?
#
# A direction, that is a row of $A$ with a column of $B$, costs $\text{in} + \text{out}$ numbers, whatever the layer is.
# So an adapter has $r\,(\text{in} + \text{out})$ of them: at one rank a larger matrix gets more, and so does a longer
# list of matrices. Whoever compares "q, v" with "all layers" at one rank compares a small adapter with a large one.
#
# The built-in model has five blocks of width 128, with 4 heads for queries and 2 for keys and values, all of width 32,
# and an MLP of hidden width 344. Counted in the model itself:

# %%
import matplotlib.pyplot as plt
import numpy as np
import record
from adapting import run
from grids.placement import PLACES

import minilora
from minilora.process import blas_threads

model = minilora.load_pretrained("builtin")
linears = {path: layer for path, layer in model.named_modules() if isinstance(layer, minilora.Linear)}
block = {path.rpartition(".")[2]: layer.weight.data.shape for path, layer in linears.items() if "block_0" in path}
print("one direction costs in + out:", *(f"{name} {sum(shape)}" for name, shape in block.items()), sep="\n    ")

sizes = {}
for place, (targets, r) in PLACES.items():
    adapted = minilora.load_pretrained("builtin")
    minilora.attach_lora(adapted, targets, r=r, alpha=2 * r, rng=0)
    sizes[place] = minilora.count_parameters(adapted)["trainable"]
    names = block if targets == "all-linear" else targets
    assert sizes[place] == 5 * r * sum(sum(block[name]) for name in names)  # the formula, and the live model
    print(f"{place:<14} r = {r:>2} {sizes[place]:>8,} parameters")

# %% [markdown]
# The first four placements have 53,760 to 57,800 parameters, so their ranks are 24, 12, 8 and 5, and $\alpha = 2r$
# makes $s = 2$ for all. The fifth is the usual comparison: q and v at the rank that all layers have, with a fifth of
# the parameters.

# %%
equal = [place for place in PLACES if place != "q, v at r = 5"]
assert len(record.read("placement")) == 100
assert min(sizes[place] for place in equal) == 53_760
assert max(sizes[place] for place in equal) == 57_800
assert sizes["q, v at r = 5"] == 11_200

# %% [markdown] tags=["notes"]
# 10 min. Let the class count: width 128, 4 query heads, 2 key heads of width 32, hidden width 344, five blocks. "At
# which rank do q and v alone have as many parameters as all seven matrices at r = 5?" The usual wrong answer is 5 * 7 /
# 2 = 17.5, which takes all matrices for equally large; a second is to forget that k and v are only 64 wide. Right is 5
# * 2312 / 448 = 25.8, and 24 is used.

# %% [markdown]
# ## 2. Where: at the same size, each at its own rate
#
# The built-in model learns Python source in 60 steps of AdamW, 16 windows of 64 bytes each, with warm-up and a cosine.
# Every placement is trained at four rates and with five seeds, which draw $A$ and the batches. A placement's loss is
# that at the *one* rate whose mean over the seeds is best. The grey points are two more controls: q and v at equal
# rank, and the curve of all layers over the ranks 1, 4, 16, 64, from another record (`rates`, with $\alpha = 16$).

# %%
runs, other = record.read("placement"), record.read("rates")
SEEDS = range(5)
RATES = sorted({run["lr"] for run in runs})


def curve(place):
    """Bits per byte of unseen Python source, (rate, seed)."""
    targets, rank = PLACES[place]
    return np.array([record.pick(runs, "new", targets=targets, rank=rank, lr=lr) for lr in RATES])


curves = {place: curve(place) for place in PLACES}
chosen = {place: losses.mean(axis=1).argmin() for place, losses in curves.items()}
own = {place: losses[chosen[place]] for place, losses in curves.items()}

print(f"{'':<15}{'parameters':>11}" + "".join(f"{lr:>9g}" for lr in RATES) + "   own rate:  mean    least     most")
for place, losses in curves.items():
    print(f"{place:<15}{sizes[place]:>11,}" + "".join(f"{mean:9.3f}" for mean in losses.mean(axis=1)), end="")
    print(f"{RATES[chosen[place]]:>11g}{own[place].mean():9.3f}{own[place].min():9.3f}{own[place].max():9.3f}")


def compare(one, another):
    """The difference in bits, seed by seed, and its mean and standard error."""
    difference = own[one] - own[another]
    return difference, difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))


print("\neach at its own rate, paired by seed (mean ± standard error, in bits per byte):")
for one, another in [("MLP", "q, k, v, o"), ("MLP", "q, v"), ("all", "q, v"), ("q, k, v, o", "q, v"), ("all", "MLP")]:
    difference, mean, error = compare(one, another)
    print(
        f"{one:>10} - {another:<10} {mean:+.3f} ± {error:.3f}, below 0 in {np.sum(difference < 0)} of {len(difference)}"
    )

# %%
plt.style.use("minilora.display.projector")
looks = {"q, v": ("#cc79a7", "o"), "q, k, v, o": ("#56b4e9", "s"), "MLP": ("#009e73", "^"), "all": ("#d9621d", "D")}
looks["q, v at r = 5"] = "#8a8a8a", "v"
figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 6.4), width_ratios=[1.1, 1])


def bars(losses):
    """From the mean down to the least and up to the most of the seeds."""
    return np.abs(np.array([losses.min(axis=-1), losses.max(axis=-1)]) - losses.mean(axis=-1))


for place, losses in curves.items():
    color, marker = looks[place]
    r = PLACES[place][1]
    label = f"{place}, r = {r}" if place in equal else f"q, v, r = {r}, the control: equal rank"
    left.errorbar(RATES, losses.mean(axis=1), bars(losses), color=color, marker=marker, label=label)
    mean = own[place].mean()
    left.plot(RATES[chosen[place]], mean, "o", ms=18, mfc="none", mec=color, mew=2)
    right.errorbar(sizes[place], mean, bars(own[place])[:, None], color=color, marker=marker, ms=11)
    up = {"MLP": 14, "all": -14}.get(place, 0)  # these two nearly cover each other
    at = {"xytext": (14, up), "textcoords": "offset points", "va": "center"}
    right.annotate(f"{place.partition(' at')[0]}, r = {r}", (sizes[place], mean), color=color, weight="bold", **at)
left.axvline(max(RATES), color="#666666", ls=":", lw=1.5, zorder=0)
left.text(max(RATES) * 0.97, 2.615, "one shared rate", color="#444444", ha="right", style="italic", fontsize=12)
left.set_ylim(2.6, 3.14)
ticks = [f"{1000 * rate:g}" for rate in RATES]
left.set(title="loss against rate; a ring: its own best", xlabel="learning rate × 1000 (log scale)", xscale="log")
left.set_ylabel("bits per byte, unseen Python\nmean, least and most of 5 seeds")
left.set_xticks(RATES, ticks)
left.minorticks_off()
left.legend(fontsize=12)

ranks = [1, 4, 16, 64]
by_rank = np.array(
    [[record.pick(other, "new", rank=r, rslora=False, lr=lr) for lr in (4e-3, 8e-3, 1.6e-2, 3.2e-2)] for r in ranks]
)
whole = np.array([losses[losses.mean(axis=1).argmin()] for losses in by_rank])
numbers = [sizes["all"] // 5 * r for r in ranks]
right.errorbar(numbers, whole.mean(axis=1), bars(whole), color="#8a8a8a", marker=".", ls=":", lw=2, zorder=0)
for r, number, mean in zip(ranks, numbers, whole.mean(axis=1), strict=True):
    at = {"xytext": (-8, -18), "textcoords": "offset points", "ha": "right"}
    right.annotate(f"all, r = {r}", (number, mean), color="#666666", fontsize=12, **at)
right.set(title="loss against size, each at its own best rate", xscale="log", xlim=(5e3, 1.1e6))
right.set_xlabel("trained parameters (log scale)")
attention_MLP, qv_all = compare("q, k, v, o", "MLP")[1], compare("q, v", "all")[1]
figure.suptitle(
    f"At about 55,000 parameters the MLP beats all of attention by {attention_MLP:.2f} bit,\n"
    f"and all layers beat q, v by {qv_all:.2f} bit: each at its own rate, in 5 of 5 seeds",
    weight="bold", fontsize=17,
)  # fmt: skip
plt.show()

# %% [markdown]
# **Where** matters at equal size. The MLP is ahead of attention by 0.09 bit, and of q, v by 0.17, in every seed; so are
# all layers, by about as much. Between the MLP and all layers there is a tie: their difference is smaller than its
# error. Another way to read the right panel: all layers at rank 1 do as well as q, k, v, o at rank 12, with a fifth of
# their parameters.
#
# **The usual comparison** sets all layers beside q, v at one rank, and sees 0.22 bit. A quarter of that is size: q, v
# win 0.05 bit when they get as many parameters as all layers have. The rest is place. (The grey triangle is at the
# highest rate that was tried. Its curve is flat there; at a still higher rate it might be a little lower.)

# %%
pairs_of_places = [
    ("MLP", "q, k, v, o"),
    ("MLP", "q, v"),
    ("all", "q, k, v, o"),
    ("all", "q, v"),
    ("q, k, v, o", "q, v"),
]
for one, another in pairs_of_places:
    difference, mean, error = compare(one, another)
    assert np.all(difference < 0)  # the sign of every seed
    assert mean + 3 * error < 0
assert 0.07 < -compare("MLP", "q, k, v, o")[1] < 0.11
assert 0.15 < -compare("MLP", "q, v")[1] < 0.18
assert 0.14 < -compare("all", "q, v")[1] < 0.18
tie, mean, error = compare("all", "MLP")
assert abs(mean) < error < 0.02
assert tie.min() < 0 < tie.max()
assert abs(whole[0].mean() - own["q, k, v, o"].mean()) < 0.01  # rank 1 in all layers, rank 12 in attention
assert 4.5 < sizes["q, k, v, o"] / numbers[0] < 5
at_equal_rank, size = -compare("all", "q, v at r = 5")[1], -compare("q, v", "q, v at r = 5")[1]
assert 0.2 < at_equal_rank < 0.24
assert 0.2 < size / at_equal_rank < 0.3
assert np.all(compare("q, v", "q, v at r = 5")[0] < 0)

# %% [markdown]
# ### One shared rate
#
# Tables in papers often have one rate for all rows. These are the orders, best first, that such tables would print:

# %%
for i, lr in enumerate(RATES):
    means = {place: losses[i].mean() for place, losses in curves.items()}
    order = sorted(means, key=means.get)
    print(f"at {lr:<6g}", "  <  ".join(f"{place} {means[place]:.3f}" for place in order))

# %% [markdown]
# The order turns over, in five of five seeds. At 0.004 all layers beat the MLP; at 0.032 the MLP beats all layers; each
# at its own rate they tie. And at 0.032 q and v at rank **5** beat q and v at rank **24**, by 0.17 bit: a table at this
# rate says that a larger adapter is worse. Notebook 05 says why: what the first step of Adam takes off the loss is
# proportional to $\eta\, s\, r$. With $\alpha = 2r$ all have $s = 2$, so at one rate $\eta$ a higher rank takes larger
# steps.

# %%
at_4, at_32 = RATES.index(4e-3), RATES.index(3.2e-2)
assert np.all(curves["all"][at_4] < curves["MLP"][at_4])
assert np.all(curves["MLP"][at_32] < curves["all"][at_32])
assert np.all(curves["q, v at r = 5"][at_32] < curves["q, v"][at_32])
assert 0.15 < (curves["q, v"] - curves["q, v at r = 5"])[at_32].mean() < 0.2

# %% [markdown]
# One point of the record, run again now. It must fall among the five seeds:

# %%
targets, rank = PLACES["MLP"]
again = run(targets=targets, rank=rank, alpha=2 * rank, lr=RATES[chosen["MLP"]], seed=0)["new"]
print(f"MLP, r = {rank}: {again:.3f} now, {own['MLP'].min():.3f} to {own['MLP'].max():.3f} in the record")
assert record.within_spread(again, own["MLP"])

# %% [markdown] tags=["notes"]
# 15 min. First the left panel, only the dotted line at the right: "Which placement would you choose, and is a higher
# rank better?" Then the rings. Then the right panel, and the vote of the beginning. Ask for the grey triangle: "With q
# and v at the rank of all layers, what would you have concluded, and how much of it is size, how much is place?" The
# usual wrong answer takes the whole gap for an effect of the place; a quarter of it is size. Say that "the MLP is where
# knowledge is" does not follow: nobody asked what was learned.

# %% [markdown]
# ## 3. How much: rank r stores r pairs
#
# Give one layer $N$ random inputs $X$ and $N$ random outputs $Y$. The adapter has to fill what is missing:
#
# $$X\,(W + \Delta W)^\top = Y \quad\Longleftrightarrow\quad X\,\Delta W^\top = R, \qquad
# R = Y - X W^\top \;(N, \text{out})$$
#
# **Rank $r$ stores $r$ pairs** (for $r \le \text{in}$). The rows of $X$ are independent, so $X X^+ = I$ with the
# pseudoinverse $X^+$ $(\text{in}, N)$. Let $A = (X^+)^\top$ $(N, \text{in})$ and $B = R^\top / s$ $(\text{out}, N)$:
# then $r = N$, and $X \Delta W^\top = X X^+ R = R$.
#
# **It does not store $r + 1$** (for $r < \text{out}$). $X \Delta W^\top = s\, (X A^\top) B^\top$ has rank $r$ at most,
# and a random $R$ with $r + 1$ rows has rank $r + 1$. How much must be left over? As long as $N \le \text{in}$,
# $X \Delta W^\top$ can be *any* matrix of rank $r$, so by Eckart and Young (1936) the least is
#
# $$\min_{A, B} \lVert X \Delta W^\top - R \rVert^2 = \sum_{i > r} \sigma_i^2$$
#
# That predicts where training ends, before anything is trained. Here a `LoRALinear` is trained by Adam, at four ranks
# and every $N$ up to 12:

# %%
n_in, n_out = 48, 40


def pairs(N, seed):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)
    return W, rng.standard_normal((N, n_in)), rng.standard_normal((N, n_out))


def predicted(W, X, Y, r):
    """The least share of ‖R‖ that rank r leaves: nothing is trained."""
    sigma = np.linalg.svd(Y - X @ W.T, compute_uv=False)
    return np.sqrt(np.sum(sigma[r:] ** 2) / np.sum(sigma**2))


def trained(W, X, Y, r, seed, steps=500):
    """The share of ‖R‖ that an adapter of rank r leaves after training."""
    layer = minilora.LoRALinear(minilora.Linear(W), r=r, alpha=2 * r, rng=seed)
    optimizer = minilora.AdamW(layer.trainable_parameters(), lr=0.05)
    schedule = minilora.cosine_schedule(steps)
    for step in range(steps):
        y, cache = layer.forward(X)
        grads = minilora.Gradients()
        layer.backward(y - Y, cache, grads)
        optimizer.step(grads, schedule(step))
    return np.linalg.norm(layer.forward(X)[0] - Y) / np.linalg.norm(Y - X @ W.T)


store_ranks, Ns = [1, 2, 4, 8], np.arange(1, 13)
floor, reached = {}, {}
with blas_threads():
    for r in store_ranks:
        cases = [(pairs(N, seed), seed) for N in Ns for seed in range(3)]
        floor[r] = np.array([predicted(*case, r) for case, _ in cases]).reshape(len(Ns), 3)
        reached[r] = np.array([trained(*case, r, seed) for case, seed in cases]).reshape(len(Ns), 3)

W, X, Y = pairs(8, seed=0)  # the proof, in numbers
layer = minilora.LoRALinear(minilora.Linear(W), r=8, alpha=16, rng=0)
layer.lora_A.data, layer.lora_B.data = np.linalg.pinv(X).T, (Y - X @ W.T).T / layer.scaling
assert np.allclose(layer.forward(X)[0], Y, rtol=0, atol=1e-12)
for r in store_ranks:
    stored, beyond = Ns <= r, Ns > r
    assert reached[r][stored].max() < 1e-8  # 0, as far as 500 steps of Adam go
    assert np.allclose(reached[r][beyond], floor[r][beyond], rtol=1e-2)  # training finds the least there is
    at_r, beyond_r = reached[r][r - 1].max(), reached[r][r].min()
    print(f"rank {r}: {r} pairs leave {at_r:.0e} of ‖R‖, {r + 1} leave {beyond_r:.0%} or more")

# %%
figure, ax = plt.subplots(figsize=(11, 6))
for i, r in enumerate(store_ranks):
    color, marker = [("#f2b48c", "o"), ("#e8833f", "s"), ("#b84a12", "^"), ("#6b2606", "D")][i]
    shift = 0.12 * (i - 1.5)  # so that the points at 0 do not cover each other
    mean = reached[r].mean(axis=1)
    ax.plot(Ns + shift, floor[r].mean(axis=1), color=color)
    ax.errorbar(Ns + shift, mean, bars(reached[r]), color=color, marker=marker, ls="", label=f"rank {r}, trained")
ax.plot([], [], color="#333333", label="predicted: $\\sqrt{\\sum_{i>r} \\sigma_i^2}$ / ‖R‖")
ax.set(
    xlabel="N, random pairs to store",
    ylabel="share of ‖R‖ that is left\nmean, least and most of 3 seeds",
    ylim=(-0.03, 1.28),
)
ax.set_xticks(Ns)
least = min(reached[r][r].min() for r in store_ranks)
ax.set_title(
    f"Rank r stores r random pairs exactly; of r + 1 it leaves {least:.0%} or more (r up to {store_ranks[-1]})"
)
ax.legend(fontsize=12, loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# No training can do better, and Adam does not do worse. The output of a pair is a *vector* of $\text{out}$ numbers, so
# in one layer rank $r$ stores $r \cdot \text{out}$ numbers. Could it store more, if they are asked for in another way,
# say one entry of the output for each input? Change $B$ by a small $P$ and $A$ by a small $Q$. To first order
# $\Delta W / s$ changes by
#
# $$P A + B Q \;(\text{out}, \text{in}), \qquad P \;(\text{out}, r), \quad Q \;(r, \text{in})$$
#
# These are $r\,(\text{in} + \text{out})$ numbers, but $P = B M$, $Q = -M A$ changes nothing, for any $M$ $(r, r)$. So
# $\Delta W$ has $r\,(\text{in} + \text{out} - r)$ independent directions, and a set of more random numbers than that
# cannot be met. The bound counts parameters, less what is lost when $A$ and $B$ are multiplied: a small rank in a large
# matrix may hold as much as a large rank in a small one. That is why section 2 compares at equal parameters. And it is
# only a bound: what an adapter learns of a text depends on its place, as section 2 shows.

# %%
rng = np.random.default_rng(0)
for columns, rows, r in [(12, 8, 1), (12, 8, 3), (9, 16, 4), (10, 10, 10)]:  # in, out, rank
    A, B = rng.standard_normal((r, columns)), rng.standard_normal((rows, r))
    moves = np.hstack([np.kron(np.eye(rows), A.T), np.kron(B, np.eye(columns))])  # (P, Q) to P A + B Q, row by row
    free = np.linalg.matrix_rank(moves)
    print(f"in = {columns:>2}, out = {rows:>2}, r = {r:>2}: {A.size + B.size:>3} parameters,", end=" ")
    print(f"{free:>3} independent directions, {r * rows:>3} numbers in r pairs")
    assert free == r * (columns + rows - r)
    assert r * rows <= free <= A.size + B.size

# %% [markdown] tags=["notes"]
# 15 min. Derive both halves on the board; each takes three lines. Ask before the figure: "An adapter of rank 4 has 4 *
# (48 + 40) = 352 parameters. How many random pairs of 40 numbers does it store?" The usual answers are 352 / 40 = 8
# pairs, and "a few, approximately". It is 4, exactly. Then: "Where did the other half of the parameters go?" They
# choose at which inputs the outputs appear. Say that a language model is not one linear layer, and its text is not
# random.

# %% [markdown]
# ## 4. One budget for all layers: exercise 25
#
# If size is counted in parameters, a budget is one number for the whole model, and the rank of each layer follows.
# Suppose the update $\Delta W$ of every layer is known, from full fine-tuning (全量微调) or from a large adapter. Its
# first $k$ singular directions are the nearest matrix of rank $k$, and keep $\sigma_1^2 + \dots + \sigma_k^2$ of
# $\lVert \Delta W \rVert^2$. Each of them costs $\text{in} + \text{out}$ numbers, in one layer more than in another.
#
# `spectra[l]` holds the singular values (奇异值) of layer `l`, largest first; `costs[l]` is the price of one direction
# of it. Return whole numbers `ranks` with $\sum_l \text{ranks}_l \cdot \text{costs}_l \le$ `budget`. Choose greedily:
# look at the next direction of each layer, and of those that the rest of the budget can pay for take the one that keeps
# most of the sum of all $\lVert \Delta W \rVert^2$ **for each number that it costs**; of equal ones that of the earlier
# layer. Go on until none can be paid for. A direction that keeps nothing is never taken, and a layer may end with rank
# 0.
#
# Before you write it, do the example of the docstring with pencil and paper: spectra $(4, 1)$ and $(3, 2)$, costs 8 and
# 2, budget 12.


# %% tags=["exercise"] exercise="25"
def allocate(spectra, costs, budget):
    """Return ranks.

    >>> [int(rank) for rank in allocate([np.array([4.0, 1.0]), np.array([3.0, 2.0])], [8, 2], 12)]
    [1, 2]
    """
    raise NotImplementedError


# %%
from minilora.practice import check

check("25", allocate)

# %% [markdown] tags=["notes"]
# 15 min, of which 10 to write. The usual mistakes, which the check names: one rank for all layers; directions compared
# by sigma, without what they cost or without the square; stopping at the first direction that does not fit. Ask at the
# end: "Is the greedy choice the best one?" Not always: it is a knapsack. And: "Is what keeps most of the update what
# lowers the loss most?" Not in general; notebook 06 has a case in which energy and loss disagree.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Adapt the MLP and v,
#    `run(targets=["gate_proj", "up_proj", "down_proj", "v_proj"], rank=7, alpha=14, lr=1.6e-2, seed=0)`, at about the
#    same size. Where among the four placements does it fall? Which number of seeds do you need to say so?
# 2. In section 3, let what the adapter has to add lie on one line for all pairs, `Y = X @ W.T + a[:, None] * b` with
#    random `a` and `b`. How many pairs does rank 1 store now?
# 3. Let $N$ grow beyond `n_in`, with $r = $ `n_out`. Which of the two halves of the proof fails, and at which $N$ does
#    the error begin?
#
# **Not shown here:** other tasks, longer training, more data than an adapter can hold, mixtures of experts. One model
# of 0.94 M parameters on bytes, 60 steps, four rates by factors of 2; the best rate is chosen on the text on which the
# losses are reported, for every placement alike. Random pairs are the hardest case: text has structure, and need not be
# stored pair by pair. Nothing here says how many bits a parameter holds.
