# %% [markdown]
# # Learns less, forgets less?
#
# LoRA is said to learn less than **full fine-tuning** (全量微调), and to forget less of what the model knew (Biderman
# et al., 2024). This notebook tests one claim: **with one learning rate (学习率) each, the rate at which it learns
# the most, LoRA of rank 1 forgets less. On the whole curve of rates it does not: at equal learning LoRA forgets
# as much or more.**
#
# | letter | shape | what it is |
# |---|---|---|
# | new, old | | bits per byte of unseen Python source (the new task) and English (the old one); lower is better |
# | $\eta$ | | the peak learning rate of AdamW: warm-up, then a cosine to 0 |
# | $W_0$, $\Delta W$, $W = W_0 + \Delta W$ | $(out, in)$ | a matrix before, its change, and after |
# | $A$, $B$, $s = \alpha / r$ | $(r, in)$, $(out, r)$ | an adapter: $\Delta W = s B A$; $\alpha = 16$ |
# | $x_i$, $y_j$ | $(out,)$ | left singular vectors of $W_0$ and of $W$, that of the largest singular value first |
# | $\lambda$ | | a factor by which a part of $\Delta W$ or of $W$ is scaled after training |
#
# The model is the built-in one, 0.94 million parameters, trained on English bytes. It learns Python source for 60 steps
# of 16 × 64 bytes. The runs were recorded by `python notebooks/record.py rates intruders`: five seeds for each method
# and rate, three for some of section 5. Two of the runs are run again here.

# %% [markdown] tags=["notes"]
# 5 min. Ask first: "LoRA freezes W₀. Can it forget at all?" The usual wrong answer is no, since the old weights are
# still there. They are, but the model computes with W₀ + ΔW. Write on the board: learns less? forgets less? and collect
# hands for each. Come back to the hands after section 4. Say that lower is better for both losses.

# %%
import matplotlib.pyplot as plt
import numpy as np
import record
from adapting import adapt, losses

import minilora
from minilora.adapters import spectrum
from minilora.practice import check

plt.style.use("minilora.display.projector")
runs = [run for run in record.read("rates") if not run.get("rslora")]  # α/√r is the subject of notebook 05
FULL = [5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 4e-3, 8e-3]
LORA = [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
RATES = {0: FULL, 1: LORA, 4: LORA, 16: LORA, 64: LORA}  # of a rank; 0 is full fine-tuning
NAMES = {rank: f"LoRA, r = {rank}" if rank else "full" for rank in RATES}


def recorded(rank, lr):
    """The new and the old loss of the five seeds: two arrays (5,)."""
    return record.pick(runs, "new", rank=rank, lr=lr), record.pick(runs, "old", rank=rank, lr=lr)


base = minilora.load_pretrained("builtin")
before = record.read("base")[0]
print(f"base: new {before['new']:.3f}, old {before['old']:.3f} bits per byte")

# %% [markdown]
# ## 1. Frozen, and yet it forgets
#
# $W_0$ is **frozen** (冻结), but the model computes with $W_0 + \Delta W$:
#
# $$y = x W_0^\top + s\,(x A^\top) B^\top \;(N, out)$$
#
# The old text passes through the same $B$ and $A$. What frozen does mean: without the adapter (适配器) the base is
# there again, bit for bit. That is a way to undo the learning and the **forgetting** (遗忘) together; it says
# nothing about the tuned model. Here is LoRA of rank 8, run again, with its adapters on and then taken off.

# %%
tuned = adapt(1.6e-2, seed=0, rank=8)
after = losses(tuned)
paths = [path for path, module in tuned.named_modules() if isinstance(module, minilora.LoRALinear)]
deltas = {path: tuned[path].delta() for path in paths}
untrained = losses(base)
for text, loss in after.items():
    print(f"LoRA, r = 8: {text} {untrained[text]:.3f} -> {loss:.3f}")
assert after["new"] < untrained["new"] - (0.6 if record.same_text() else 0.3)  # it has learned
assert after["old"] > untrained["old"] + 0.1  # and forgotten, with every old weight frozen

for path in paths:
    tuned[path] = tuned[path].base  # adapter off
ids = np.frombuffer(b"It was a dark and stormy night", np.uint8)[None]
assert np.array_equal(tuned.forward(ids)[0], base.forward(ids)[0])  # the base, bit for bit

# %% [markdown]
# ### What the rate has to do with it
#
# Let $t$ multiply a finished update: $W_0 + t\,\Delta W$, with $t = 0$ the base and $t = 1$ the tuned model. To second
# order in $t$, with a gradient $G$ $(out, in)$ of the loss at the base and a curvature $h$ along $\Delta W$,
#
# $$L(t) \approx L(0) + t \sum G \circ \Delta W + \tfrac{1}{2} t^2 h$$
#
# where $h \propto \lVert \Delta W \rVert^2$ in a fixed direction. For the old text $G$ is small, since the base was
# trained on such text: soon the term in $t^2$ wins. For the new text $G$ is large and the first-order term wins at
# first. So a small update learns for free, and each further piece of the same length costs more of the old.
#
# What sets the size? Adam divides a gradient by its own size: a step moves each trained entry by about $\eta$, whatever
# the loss, and after $T$ steps it has moved by at most about $\eta T$. (With LoRA these are the entries of $A$ and
# $B$.) **Along one method's curve the rate sets the size of $\Delta W$, and the size how much is learned and
# forgotten.** To compare two methods at one rate each is to compare one point of either curve. (Between two methods the
# size says little: directions count too. Section 5 has the numbers.)
#
# Is the old $G$ small? A quarter, a half and all of the update of LoRA of rank 8, from the record:

# %%
found = record.read("intruders")
halves, wholes = (record.pick(found, key, rank=8, lr=1.6e-2) for key in ("whole, old", "old"))  # (5, 3) and (5,)
quarters = record.pick(record.read("quarter"), "old", rank=8)
for quarter, half, whole in np.stack([quarters, halves[:, 2], wholes], axis=1) - before["old"]:
    print(f"old loss minus the base's at t = 0.25: {quarter:+.3f}, 0.5: {half:+.3f}, 1: {whole:+.3f}")
    assert -0.08 < quarter < -0.03  # a quarter of the update even helps the old text,
    assert whole - half > 0.15  # the second half is what forgets

# %% [markdown]
# Small, but not 0: a quarter of the update *lowers* the old loss by about 0.06 bit (the base is not at a minimum for
# English). The second half does the forgetting.

# %% [markdown] tags=["notes"]
# 8 min. Do the expansion on the board; ask which of the two terms is small for the old text and why (the base is near a
# minimum of that loss). Then ask what the picture of old against new must look like if t goes from 0 to 1, before the
# cell is run: flat at first (here even a little down), then steep. The usual wrong answer: "forgetting is proportional
# to what is learned". A good question from the class: is Adam's bound attained? No, signs change from step to step; it
# is a bound on the size, and proportional to η.

# %% [markdown]
# ## 2. At one rate each
#
# This is how the two are usually compared: each method at the rate at which it learns the most, by the mean over five
# seeds.

# %%
best = {rank: min(rates, key=lambda lr: recorded(rank, lr)[0].mean()) for rank, rates in RATES.items()}
full_new, full_old = recorded(0, best[0])
print(f"{'':<14}{'rate':>7}{'new':>8}{'old':>8}   old, full - LoRA, seed by seed")
for rank, lr in best.items():
    new, old = recorded(rank, lr)
    kept = "".join(f"{gap:+8.3f}" for gap in full_old - old) if rank else ""
    print(f"{NAMES[rank]:<14}{lr:>7g}{new.mean():>8.3f}{old.mean():>8.3f}{kept}")
    assert rank == 0 or (new > full_new).all()  # learns less: every rank, every seed
seed_0 = [loss[0] for rank in (0, 1) for loss in recorded(rank, best[rank])]
assert np.allclose(seed_0, [2.572, 2.310, 2.736, 2.218], atol=5e-4)  # the numbers of the exercise below

assert 2 <= best[1] / best[0] <= 8  # LoRA's own rate is the higher one, by 4 to 8
assert (full_old - recorded(1, best[1])[1] > 0.04).all()  # r = 1 forgets less, in five of five seeds,
assert 0.08 < np.mean(full_old - recorded(1, best[1])[1]) < 0.12  # by 0.10 bit
assert (np.diff([recorded(rank, lr)[0].mean() for rank, lr in best.items() if rank]) < 0).all()  # larger r learns more
for rank in (4, 16, 64):
    gap = full_old - recorded(rank, best[rank])[1]
    assert 0.01 < gap.mean() < 0.04  # small,
    assert gap.min() < 0 < gap.max()  # and not of one sign

# %% [markdown]
# *Learns less*: yes, at every rank and seed, and less so the larger $r$. *Forgets less*: at $r = 1$, yes, in all five
# seeds, by 0.10 bit in the mean. At $r = 4$, 16 and 64 the difference is 0.02 to 0.03 bit in the mean and the seeds do
# not agree on its sign: **a tie**. Here and below a sign is claimed only where all five seeds agree, which by chance
# alone happens twice in $2^5 = 32$ cases.
#
# But the models compared have learned different amounts. A model that learns nothing forgets nothing.

# %% [markdown] tags=["notes"]
# 5 min. Ask for the verdict, by show of hands, from this table alone. Then: "What would the table say of a LoRA that
# was trained for one step?" It forgets nothing. The usual wrong answer to a tie: "the mean is positive, so LoRA forgets
# less". Five seeds, two signs.

# %% [markdown]
# ## 3. At equal learning
#
# Each rate gives a point (new, old). A method is the curve of its points, not one of them. Two ways to compare curves:
#
# - **The frontier.** For a level of learning, take all runs of a method that have learned at least so much, and of them
#   the one that has forgotten the least. Only runs that were made count.
# - **Interpolation.** Below its best rate a method learns more and forgets more with every larger rate. Between two
#   neighbouring rates we take the curve to be straight and read off the old loss of full fine-tuning *of the same seed*
#   at exactly the new loss that a LoRA run has reached. The curve is bent so that such a line lies above it, which
#   favours LoRA.
#
# And there is a second thing to count. An **intruder dimension** (入侵维度) is a singular vector $y_j$ of $W$, among
# the first $k$, that resembles no singular vector of $W_0$ (Shuttleworth et al., 2024):
#
# $$\max_i |\cos(x_i, y_j)| = \max_i |x_i^\top y_j| < \varepsilon, \qquad k = 10, \; \varepsilon = 0.5$$
#
# They report that LoRA has such directions and full fine-tuning has not, and that scaling them down brings back the old
# task. The number depends on $k$, on $\varepsilon$, and on $s$: remember the $s$ in $\Delta W = s B A$.

# %% [markdown]
# ### Exercise 28: intruders and the frontier
#
# Three functions; the predictions first, before you compute anything.
#
# `predictions`: let $W_0 = \operatorname{diag}(16, 15, \dots, 1)$, let $e_1, e_2, \dots$ be the axes, and $u, p, q$
# orthogonal unit vectors with entries $\pm 1/4$, those of $u$ all $1/4$. How many intruders are among $y_1 \dots y_4$
# ($k = 4$) at $\varepsilon = 0.5$, where nothing else is said? Five integers:
#
# | key | $\Delta W$ |
# |---|---|
# | `along` | $100\, e_1 e_1^\top$ |
# | `moved` | $30\, e_4 e_4^\top$ |
# | `new` | a LoRA with $B = 4u$, $A = u^\top$, $\alpha = 30$, $r = 1$ |
# | `strict` | the same, at $\varepsilon = 0.2$ |
# | `two` | $100\, u u^\top + 90\, p p^\top + 80\, q q^\top$, with $k = 2$ |
#
# and the string `keeps_more`: full fine-tuning and LoRA of rank 1 were run at several rates each. At its best rate full
# fine-tuning ended at new 2.572, old 2.310, LoRA at new 2.736, old 2.218 (seed 0). Among all runs of both with a new
# loss of at most 2.736, does `"full"` or `"lora"` have the least old loss?
#
# `intruders`: how many of the first $k$ left singular vectors of $W_0 + \Delta W$ are intruders.
#
# `frontier`: `runs` $(n, 4)$ has a run in each row: method (0, 1, ..., $m - 1$), rate, new, old. Return a table
# $(m, n)$. Column $j$ is a level, the $j$-th smallest of all new losses; row $i$ a method. The entry is the least old
# loss among the runs of method $i$ whose new loss is at most the level, and ∞ where there is none.


# %% tags=["exercise"] exercise="28"
def predictions():
    """Return along, moved, new, strict, two and keeps_more in a dict.

    >>> sorted(predictions())
    ['along', 'keeps_more', 'moved', 'new', 'strict', 'two']
    """
    raise NotImplementedError


def intruders(W0, dW, k, eps):
    """Return how many of the first k left singular vectors of W0 + dW are like none of W0's.

    >>> intruders(np.diag([3.0, 2.0]), np.diag([0.0, 4.0]), 2, 0.5)
    0
    """
    raise NotImplementedError


def frontier(runs):
    """Return table: the least old loss of each method at each level of learning.

    >>> frontier(np.array([[0, 0.1, 3, 1], [0, 0.2, 2, 5], [1, 0.4, 2.5, 4]]))
    array([[ 5.,  5.,  1.],
           [inf,  4.,  4.]])
    """
    raise NotImplementedError


# %%
check("28", predictions, intruders, frontier)

# %% [markdown] tags=["notes"]
# 20 min, exercise included. Let the class write the predictions down before anybody runs anything; take a vote on
# `moved` and on `keeps_more`. Usual wrong answers: `moved` = 4 (compared with the vector of the same index), `new` = 0
# (s left out), `keeps_more` = "lora" (one point of each curve). For `frontier` mark one level on the board with a
# vertical line: the runs left of it count.

# %% [markdown]
# ## 4. The curves, and the intruders
#
# Left: every rate up to the best, five seeds; error bars are the standard error of the mean, in both directions. Down
# and to the left is better. The control for *size* is a random $\Delta W$ with the same norm in each matrix as that of
# LoRA, $r = 8$: its old loss is the dashed line; its new loss, 3.56, is far to the right of the picture and above the
# base's 3.44. It has learned nothing.
#
# Right: the same plane. LoRA of rank 8 after training, with the intruders among the leading ten singular values
# (奇异值) of each $W$ scaled by $\lambda$; the control is the same $\lambda$ on all of $\Delta W$, whatever is an
# intruder and what is not.


# %%
BEST = {0: 2e-3, 8: 1.6e-2, 32: 1.6e-2}  # the rates at which parts of ΔW were scaled
SCALES = [1.0, 0.9, 0.75, 0.5]  # λ


def of_best(number, rank=8):
    return record.pick(found, number, rank=rank, lr=BEST[rank])


def scaled(what, rank=8):
    """New and old loss, (5, 4) each: of five seeds at each λ, with "whole" ΔW or the "intruders" scaled by it."""
    return [np.c_[of_best(text, rank), of_best(f"{what}, {text}", rank)] for text in ("new", "old")]


def full_at(new, seed):
    """The old loss of full fine-tuning where it has learned as much: its curve of this seed, straight between rates.

    A LoRA that has learned less than full at its smallest rate, 5e-4, is compared with that run.
    """
    points = sorted([loss[seed] for loss in recorded(0, lr)] for lr in FULL if lr <= best[0])
    x, y = np.transpose(points)
    assert x[0] <= new  # no run of full fine-tuning has learned more: nothing to compare
    return np.interp(new, x, y)


def excess(new, old):
    """(5,): by how many bits a method has forgotten more than full fine-tuning that has learned as much."""
    return np.array([old[seed] - full_at(new[seed], seed) for seed in range(5)])


# %%
COLORS = {0: "#1F5FA8", 1: "#E8A07A", 4: "#D9621D", 16: "#009E73", 64: "#CC79A7"}


def error(values):
    """The standard error of the mean of five seeds."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


figure, (left, right) = plt.subplots(1, 2, figsize=(16, 7.5), sharey=True)
figure.suptitle(
    "At equal learning LoRA forgets no less than full fine-tuning;\nat rate 0.008, r = 1 costs "
    f"{excess(*recorded(1, 8e-3)).mean():.2f} bit or more, r = 64 ties ({excess(*recorded(64, 8e-3)).mean():+.3f})",
    fontsize=18, weight="bold",
)  # fmt: skip
for rank, rates in RATES.items():
    points = [recorded(rank, lr) for lr in rates if lr <= best[rank]]
    new, old = np.transpose(points, (1, 2, 0))  # (5, number of rates) each
    marker = "o" if rank else "s"
    left.errorbar(new.mean(0), old.mean(0), error(old), error(new), fmt=f"{marker}-", color=COLORS[rank],
                  label=NAMES[rank])  # fmt: skip
    left.plot(new.mean(0)[-1], old.mean(0)[-1], marker, ms=18, mfc="none", mec=COLORS[rank], mew=2)
noise = of_best("normal, old").mean()
left.axhline(noise, color="#8A8A8A", ls="--")
left.text(2.57, noise - 0.016, "control: random", color="#666666", fontsize=14)
left.axhline(before["old"], color="#8A8A8A", ls=":")
left.text(2.57, before["old"] + 0.005, "the base", color="#666666", fontsize=14)
left.set(
    title="Every rate is a point; rings: the best rate of each",
    xlabel="new: bits per byte, unseen Python   (learned more: ←)",
    ylabel="old: bits per byte, unseen English   (forgot less: ↓)",
    ylim=(2.01, 2.4),
)
left.legend(loc="upper right")

points = np.array([recorded(0, lr) for lr in FULL if lr <= best[0]]).mean(axis=2)
right.plot(*points.T, "s-", color=COLORS[0], lw=1.5)
right.axhline(before["old"], color="#8A8A8A", ls=":")
right.text(2.597, 2.32, "full, every rate", color=COLORS[0])
for what, color, (x, y), label in [
    ("intruders", "#D9621D", (2.71, 2.25), "LoRA, r = 8:\nits intruders × λ"),
    ("whole", "#666666", (2.76, 2.09), "control: all of its ΔW × λ"),
]:
    new, old = scaled(what)
    right.errorbar(new.mean(0), old.mean(0), error(old), error(new), fmt="o-", color=color)
    right.text(x, y, label, color=color, va="top", weight="bold")
    for scale, *at in zip(SCALES, new.mean(0), old.mean(0), strict=True):
        if scale == 1 and what == "intruders":
            continue  # the same point as that of the control
        right.annotate(
            f"λ = {scale:g}",
            at,
            (8, 6 if scale > 0.5 else 12) if what == "whole" else {0.9: (8, 5), 0.75: (8, 16), 0.5: (6, -16)}[scale],
            textcoords="offset points",
            color=color,
            fontsize=14,
        )
count, count_full = of_best("left").mean(), of_best("left", 0).mean()
right.set(
    title=f"{count:.1f} of 10 are intruders at r = 8, {count_full:.0f} in full;\n"
    "scaling them is worse than scaling all of ΔW",
    xlabel=left.get_xlabel(),
)
plt.show()

# %% [markdown] tags=["notes"]
# 12 min. Let the class read the axes aloud first: which corner is best? Then cover all but the rings and ask for the
# verdict ("LoRA forgets less"); uncover the curves and ask again. The usual wrong reading: "the ring of r = 1 lies
# below the blue one, so LoRA is the better trade". Ask for the blue point that lies left of and below the ring of r =
# 1.

# %% [markdown]
# ### The table at equal learning
#
# For each run of LoRA, its old loss minus that of full fine-tuning that has learned as much, seed by seed. Where LoRA
# has learned less than full fine-tuning at its smallest rate, $5 \cdot 10^{-4}$, it is compared with that run, which
# has learned more. At a still smaller rate full fine-tuning would have forgotten less, so the number is a lower bound,
# marked ≥.

# %%
verdicts = {}
print(f"{'':<14}{'rate':>7}   old, LoRA - full at equal learning, seed by seed{'mean':>12}")
for rank in (1, 4, 16, 64):
    for lr in (4e-3, 8e-3, 1.6e-2):
        new, old = recorded(rank, lr)
        more = excess(new, old)
        bound = new > recorded(0, 5e-4)[0]
        verdicts[rank, lr] = "more" if (more > 0).all() else "less" if (more < 0).all() else "tie"
        cells = "".join(f"{'≥' if b else ' '}{m:+.3f}  " for m, b in zip(more, bound, strict=True))
        print(f"{NAMES[rank]:<14}{lr:>7g}   {cells}{more.mean():>+11.3f}   {verdicts[rank, lr]}")

assert "less" not in verdicts.values()  # LoRA forgets less at no rank and no rate,
assert all(verdicts[rank, lr] == "more" for rank in (1, 4) for lr in (4e-3, 8e-3, 1.6e-2))
assert all(verdicts[rank, lr] == "more" for rank in (16, 64) for lr in (4e-3, 1.6e-2))  # and more nearly everywhere
assert verdicts[16, 8e-3] == verdicts[64, 8e-3] == "tie"
means = np.mean([recorded(0, lr) for lr in FULL if lr <= best[0]], axis=2)
slopes = np.diff(means[:, 1]) / np.diff(means[:, 0])
assert (np.diff(means, axis=0) * [-1, 1] > 0).all()  # with every larger rate full learns more and forgets more;
assert (np.diff(slopes) < 0).all()  # full's curve is convex: the straight lines lie above it
small_new, small_old = recorded(0, 5e-4)  # no interpolation: full fine-tuning at a quarter of its best rate
assert (small_new <= recorded(1, best[1])[0]).all()  # has learned at least as much as r = 1 at its best,
assert (small_old < recorded(1, best[1])[1] - 0.06).all()  # and forgotten less
for rank in (1, 4, 16, 64):
    assert (excess(*recorded(rank, best[rank])) > 0.02).all()
    assert 0.045 < excess(*recorded(rank, best[rank])).mean() < 0.14
assert all(0.015 < excess(*recorded(rank, 4e-3)).mean() < 0.03 for rank in (16, 64))

full_small = adapt(5e-4, seed=0)  # one of those runs again
again = losses(full_small)
assert record.within_spread(again["new"], small_new)
assert record.within_spread(again["old"], small_old)

# %% [markdown]
# **LoRA forgets less in no row.** At $r = 1$ and 4 it forgets more, in every row and every seed: full fine-tuning
# at a quarter of its best rate learns at least as much as $r = 1$ at its best, and keeps 0.09 bit more. At $r = 16$ and
# 64 LoRA forgets about 0.02 bit more at a quarter of its best rate, and at half of it the two **tie** (0.016 and 0.004
# bit; the seeds disagree). At the best rates themselves LoRA of every rank forgets 0.05 to 0.13 bit more than full
# fine-tuning that has learned as much.
#
# Which matters more, the rate or the method? From $4 \cdot 10^{-3}$ to $1.6 \cdot 10^{-2}$ the old loss of $r = 64$
# rises by 0.125 bit; from full fine-tuning at equal learning it differs by 0.05 at most. There it is the rate. At
# $r = 1$ it is the method: 0.06 bit along its own curve from $2 \cdot 10^{-3}$ to $8 \cdot 10^{-3}$, but 0.09 from full
# fine-tuning.

# %%
along = recorded(64, 1.6e-2)[1] - recorded(64, 4e-3)[1]
between = max(excess(*recorded(64, lr)).mean() for lr in (4e-3, 8e-3, 1.6e-2))
print(f"r = 64: {along.mean():.3f} bit along its own curve, {between:.3f} at most from full fine-tuning's")
assert (along > 0.07).all()
assert along.mean() > 2 * between
one = recorded(1, 8e-3)[1] - recorded(1, 2e-3)[1]
assert 0.04 < one.mean() < 0.08
assert one.mean() < excess(*recorded(1, 8e-3)).mean() < 0.1

# %% [markdown]
# ## 5. Intruders: how many, and are they to blame?
#
# Intruders among the first ten left and the first ten right singular vectors, $\varepsilon = 0.5$, mean of the 35
# matrices. Beside each method's best rate stand two random $\Delta W$: *normal*, entries from a normal distribution and
# the same norm; *turned*, the same singular values in random directions.

# %%
print(f"{'':<22}{'rate':>7}{'left':>7}{'right':>7}{'‖ΔW‖':>7}{'new':>8}{'old':>8}")
for rank in (0, 8, 32):
    for lr in sorted({run["lr"] for run in found if run["rank"] == rank}):
        row = [record.pick(found, name, rank=rank, lr=lr).mean() for name in ("left", "right", "norm", "new", "old")]
        name = f"LoRA, r = {rank}" if rank else "full"
        print(f"{name:<22}{lr:>7g}{row[0]:>7.2f}{row[1]:>7.2f}{row[2]:>7.2f}{row[3]:>8.3f}{row[4]:>8.3f}")
    for kind in ("normal", "turned"):
        left, right = of_best(f"{kind}, found", rank).mean(axis=0)
        new, old = (of_best(f"{kind}, {text}", rank).mean() for text in ("new", "old"))
        norm = of_best("norm", rank).mean()
        print(f"   random, {kind:<11}{'':>7}{left:>7.2f}{right:>7.2f}{norm:>7.2f}{new:>8.3f}{old:>8.3f}")

before_svd = {path: spectrum.svd(base[path].weight.data) for path in paths}
live = np.mean(
    [
        len(spectrum.intruders(before_svd[path], spectrum.svd(base[path].weight.data + deltas[path]))[0])
        for path in paths
    ]
)
assert record.within_spread(live, of_best("left"))
assert record.within_spread(after["new"], of_best("new"))

assert not of_best("left", 0).any()  # full fine-tuning at its best rate has none,
assert (of_best("left") > 1.3).all()  # LoRA of rank 8 has more than one of ten,
assert (of_best("left") > of_best("left", 32)).all()  # and rank 32 fewer than rank 8
assert (of_best("left", 32) > 0.3).all()
counts = [record.pick(found, "left", rank=8, lr=lr)[:3] for lr in (8e-3, 1.6e-2, 3.2e-2)]
assert (np.diff(counts, axis=0) > 0).all()  # they come with the rate: three seeds
assert not of_best("normal, found").any()  # a random update of the same norm has none,
assert (of_best("turned, found") > 0.5 * of_best("left")[:, None]).all()  # one with the same σ has most of them
assert (of_best("normal, new") > before["new"]).all()  # they have learned nothing,
assert (of_best("turned, new") > before["new"]).all()
assert abs(of_best("normal, new").mean() - 3.56) < 0.005
assert (of_best("normal, old") < of_best("old")).all()  # what was learned costs more than noise of its size
assert (of_best("norm", 0) < 0.4 * of_best("norm")).all()  # full fine-tuning's ΔW is far smaller
hot = {name: record.pick(found, name, rank=0, lr=8e-3) for name in ("left", "norm", "old")}
assert np.allclose(hot["norm"], of_best("norm")[:3], rtol=0.05)  # unless its rate is four times the best,
assert (abs(hot["left"] - 1) < 0.4).all()  # where it has intruders too
assert (hot["old"] > 2.7).all()

# %% [markdown]
# Shuttleworth et al. are confirmed in one thing: at the best rates LoRA of rank 8 has intruders, 1.7 of 10, and full
# fine-tuning has none. Their number grows with the rate, like the forgetting. But a random update of the same *singular
# values* has most of that number, though it has learned nothing: a few large singular values in new directions are
# enough. A *normal* $\Delta W$ of the same norm, spread over all directions, has no intruder.
#
# The same table says what size does not explain: full fine-tuning's $\Delta W$ has a third of the norm of LoRA's and
# forgets as much. At a rate of $8 \cdot 10^{-3}$ it has the same norm, one intruder of 10, and has forgotten far more.
#
# **Are they to blame?** If so, scaling them down should bring back the old task and cost little of the new one. In $W =
# \sum_j \sigma_j y_j z_j^\top$, with right singular vectors $z_j$ $(in,)$, $\sigma_j$ is multiplied by $\lambda$ if
# $y_j$ or $z_j$ is an intruder, $j \le 10$. Two controls: all of $\Delta W$ times $\lambda$, and as many *others* of
# the first ten terms, the largest.

# %%
changes = {}
print(f"LoRA, r = 8, change in bits: mean of five seeds\n{'':<18}" + "".join(f"{f'λ = {x:g}':>24}" for x in SCALES[1:]))
for what in ("intruders", "whole", "others"):
    new, old = scaled(what)
    changes[what] = [(loss - loss[:, :1])[:, 1:] for loss in (new, old)]  # (5, 3) each, against λ = 1
    pairs = zip(*(change.mean(axis=0) for change in changes[what]), strict=True)
    print(f"{what:<18}" + "".join(f"{f'new {n:+.3f}, old {o:+.3f}':>24}" for n, o in pairs))

(new_i, old_i), (new_w, old_w), (_, old_o) = changes["intruders"], changes["whole"], changes["others"]
assert (old_i[:, 0] < 0).all()  # at λ = 0.9 the old task comes back, a little, in every seed,
assert (new_i[:, 0] > 0).all()  # at a price
assert (old_i[:, 2] > 0).all()  # at λ = 0.5 there is no gain left
assert (old_w < old_i).all()  # all of ΔW scaled gives more at every λ, in every seed,
assert (new_w[:, :2] < new_i[:, :2]).all()  # and costs less at 0.9 and 0.75
assert old_w[:, 0].mean() < 2.5 * old_i[:, 0].mean()
assert (abs(new_w[:, 0]) < 0.01).all()
assert (old_o > 0).all()  # other terms resemble W₀'s own: scaling them only harms
assert abs(of_best("left").mean() - 1.7) < 0.05

# %% [markdown]
# Scaling the intruders by 0.9 does bring back a little of the old task. So the effect is there. But it does not single
# them out: to multiply *all* of $\Delta W$ by 0.9 gives three times as much and costs almost nothing on the new task,
# and at $\lambda = 0.5$ scaling the intruders has made the old task worse. A likely reason: each of their terms holds a
# part of $W_0$ too.
#
# The expansion of section 1 says why $\lambda = 0.9$ on all of $\Delta W$ is nearly free: at $t = 1$ the new loss is
# near its minimum along $\Delta W$, so its slope is about 0, while the old loss is at its steepest.
#
# ### Scaling afterwards is a better knob than the rate
#
# To go back a part of the way from the tuned model to the base is known from larger models (Wortsman et al., 2022). Is
# LoRA ahead if it may do so? The last control lets full fine-tuning do the same.

# %%
full_path, lora_path = scaled("whole", 0), scaled("whole", 8)
free = excess(full_path[0][:, 2], full_path[1][:, 2])  # full, λ = 0.75, against full at a smaller rate
ahead = excess(lora_path[0][:, 2], lora_path[1][:, 2])  # LoRA, λ = 0.75, against full at a smaller rate


def full_scaled_at(new, seed):
    """The old loss of full fine-tuning, scaled by some λ so that it has learned as much."""
    x, y = full_path[0][seed], full_path[1][seed]
    assert x[0] <= new <= x[-1]
    return np.interp(new, x, y)


def behind(rank):
    """(5,): LoRA at λ = 0.75, by how much more it has forgotten than full fine-tuning, scaled."""
    new, old = (path[:, 2] for path in scaled("whole", rank))
    return np.array([old[seed] - full_scaled_at(new[seed], seed) for seed in range(5)])


for name, values in {
    "full, λ = 0.75, against full at a smaller rate": free,
    "LoRA, r = 8, λ = 0.75, against full at a smaller rate": ahead,
    "LoRA, r = 8, λ = 0.75, against full, scaled": behind(8),
    "LoRA, r = 32, λ = 0.75, against full, scaled": behind(32),
}.items():
    print(f"{name:<56}{values.mean():+.3f}   " + "".join(f"{value:+.3f}  " for value in values))
assert (free < -0.03).all()  # scaling beats the rate,
assert (ahead < 0).all()  # by so much that LoRA, scaled, lies below full fine-tuning's curve of rates,
assert (excess(*(path[:, 2] for path in scaled("whole", 32))) < 0).all()
assert (behind(8) > 0.01).all()  # but not below full fine-tuning that is scaled as well
assert abs(behind(32).mean()) < 0.02  # r = 32: a tie
assert behind(32).min() < 0 < behind(32).max()

# %% [markdown]
# Each method, scaled by 0.75, lies below full fine-tuning's curve of rates. Compare LoRA after scaling with full
# fine-tuning without it, and LoRA wins; let both be scaled, and at $r = 8$ full fine-tuning has forgotten less again,
# in five of five seeds; at $r = 32$ they tie. A verdict on forgetting is a verdict on how well each side was tuned.

# %% [markdown] tags=["notes"]
# 7 min. Ask what control a paper on intruders needs (a random update with the same singular values; all of ΔW scaled).
# Usual wrong answer: "LoRA has intruders and LoRA forgets, so intruders make it forget." Both grow with the rate. If
# there is time, let the class predict the effect of λ = 0.9 on both losses from the expansion.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Count the intruders of $W_0$ plus the saved `deltas` at $\varepsilon = 0.3$ and 0.7, and at $k = 5$ and 30. Which
#    of the four numbers would you put in an abstract, and what would you have to say beside it?
# 2. `adapt(1.6e-2, seed=0, rank=8, steps=T)` for $T = 15$, 30, 60, 120. Does the point move along the curve of the
#    rates?
# 3. Mix a quarter of English into the batches of full fine-tuning. How far below all of these curves does it end?
#
# **Not shown here:** other models, tasks and sizes: this is one model of 0.94 million parameters on bytes, 60 steps,
# one new task and one old one; five seeds, three for some rates of section 5. Biderman et al. train billions of
# parameters on code and mathematics for far longer, where $\Delta W$ has to be large. Weight decay, dropout, early
# stopping and $\alpha$ as a knob of its own are left out, and so are intruders that pile up over several tasks. That at
# equal learning LoRA forgets no less *here* does not say that it never does.

# %% [markdown] tags=["notes"]
# 3 min. Back to the hands of the first minute: who has changed sides, and which of the tables did it?
