# %% [markdown]
# # What the singular values say
#
# LoRA bets that the update of a layer, $\Delta W = W - W_0$, can be of **low rank** (低秩): an adapter (适配器) allows
# no other. The **singular values** (奇异值) of an update show whether it is. The claim of this lecture has two halves:
# **the $\Delta W$ of full fine-tuning (全量微调) is not of low rank; and yet, cut to rank 8, it keeps nearly nine
# tenths of what was learned, almost as much as LoRA that was trained at rank 8.** So LoRA works here not because
# updates are of low rank, but because the loss does not need most of an update.
#
# | letter | shape | what it is |
# |---|---|---|
# | $W_0$, $\Delta W$ | $(out, in)$ | a matrix before fine-tuning, and its change |
# | $A$, $B$, $s = \alpha / r$ | $(r, in)$, $(out, r)$ | an adapter: $\Delta W = s B A$ |
# | $U$, $\Sigma$, $V$ | $(out, n)$, $(n, n)$, $(in, n)$ | $\Delta W = U \Sigma V^\top$, $n = \min(out, in)$ |
# | $\sigma_1 \ge \sigma_2 \ge \dots$ | $(n,)$ | the singular values |
# | $u_i$, $v_i$ | $(out,)$, $(in,)$ | columns of $U$ and $V$: directions of the output and of the input |
# | $\lVert \cdot \rVert$ | | the Frobenius norm throughout: $\lVert \Delta W \rVert^2 = \sum_i \sigma_i^2$ |
#
# The model is the built-in one: five blocks of width 128, trained on English bytes. It learns Python source for 60
# steps of 16 × 64 bytes, by four methods with five seeds each:
#
# | method | what learns | peak rate |
# |---|---|---|
# | full | everything | $2 \cdot 10^{-3}$ |
# | matrices | the 35 matrices of the blocks; the embedding and the norms are **frozen** (冻结) | $2 \cdot 10^{-3}$ |
# | LoRA, $r = 8$ and $r = 32$ | $A$ and $B$ beside the same 35 matrices, $\alpha = 16$ | $1.6 \cdot 10^{-2}$ |
#
# The rates are those at which full fine-tuning, and LoRA of ranks 4, 16 and 64, learn the most in notebook 05's grid.
# The numbers were recorded by `python notebooks/record.py spectra`; two of the runs are run again here.

# %% [markdown] tags=["notes"]
# 8 min. Ask: "You fine-tune a model in full and take the singular values of the change of one matrix, 128 by 128. How
# many of the 128 are needed for 90 % of its square norm?" Collect guesses on the board; most say between 4 and 10,
# because they have heard that LoRA works. Then the two halves of the claim. Say why "matrices" is there: LoRA changes
# the 35 matrices and nothing else, so that is what it must be compared with.

# %%
import matplotlib.pyplot as plt
import numpy as np
import record
from adapting import adapt, losses, source

import minilora
from minilora.adapters import spectrum
from minilora.data import random_windows
from minilora.practice import check
from minilora.training import loss_and_gradients

plt.style.use("minilora.display.projector")
METHODS = ["full", "matrices", "LoRA, r = 8", "LoRA, r = 32"]
COLORS = dict(zip(METHODS, ("#1F5FA8", "#56B4E9", "#D9621D", "#E8A07A"), strict=True))
everything = record.read("spectra")
runs = [run for run in everything if "against" not in run]  # one model each; the others compare two


def recorded(number, method):
    """Of the five seeds: (5,), or (5, n) where the number is a list."""
    return record.pick(runs, number, method=method)


base = minilora.load_pretrained("builtin")
before = record.read("base")[0]["new"]
full, lora = adapt(2e-3, seed=0), adapt(1.6e-2, seed=0, rank=8)
paths = [path for path, module in lora.named_modules() if isinstance(module, minilora.LoRALinear)]
live = {"full": losses(full)["new"], "LoRA, r = 8": losses(lora)["new"]}
print(f"base {before:.3f} bits per byte of unseen Python source")
for method in METHODS:
    new = recorded("new", method)
    print(f"{method:<13} {new.mean():.3f}, from {new.min():.3f} to {new.max():.3f}")
assert len(paths) == 35
assert all(record.within_spread(loss, recorded("new", method)) for method, loss in live.items())

# %% [markdown]
# ## 1. The decomposition of a product, without the product
#
# $\Delta W$ of an adapter is $(out, in)$, but it passes through $r$ numbers. A QR decomposition writes a tall matrix as
# one with orthonormal columns times a small triangular one:
#
# $$B = Q_B R_B, \quad A^\top = Q_A R_A, \qquad Q_B \;(out, r), \quad Q_A \;(in, r), \quad R_B, R_A \;(r, r)$$
#
# $$\Delta W = s B A = Q_B \; \underbrace{s \, R_B R_A^\top}_{(r, r)} \; Q_A^\top$$
#
# If $U' \Sigma V'^\top$ is the decomposition of the small core, then $(Q_B U')\, \Sigma\, (Q_A V')^\top$ is one of
# $\Delta W$: the columns of $Q_B U'$ and of $Q_A V'$ are orthonormal, and singular values are unique. Cost: about
# $(in + out)\, r^2$ operations instead of $in \cdot out \cdot \min(in, out)$.
#
# Two facts for the exercise. **Cutting**: by the theorem of Eckart and Young (1936) no matrix of rank $k$ is
# nearer to $M$ than the first $k$ terms $\sum_{i \le k} \sigma_i u_i v_i^\top$. **Counting**: the **effective
# rank** (有效秩) of Roy and Vetterli (2007) is $\exp(-\sum_i p_i \ln p_i)$ with the shares
# $p_i = \sigma_i / \sum_j \sigma_j$: it is $n$ for $n$ equal values.

# %% [markdown]
# ### Exercise 19: rank
#
# `singular_values(A, B, alpha)`: those of $\Delta W$, largest first, $\min(r, out, in)$ of them. `truncate(A, B, k)`:
# factors `A2` $(k, in)$ and `B2` $(out, k)$ whose product is as near to $B A$ as a matrix of rank $k$ can be, for
# $1 \le k \le \min(r, out, in)$; $\alpha$ plays no part. Neither function may form an $(out, in)$ matrix.
# `effective_rank(sigma)`: as above; a singular value of 0 adds nothing, and of all zeros it is 0.


# %% tags=["exercise"] exercise="19"
def singular_values(A, B, alpha):
    """Return sigma of ΔW.

    >>> singular_values(np.array([[3.0, 4.0]]), np.array([[2.0], [0.0]]), 6.0).round(9)
    array([60.])
    """
    raise NotImplementedError


def truncate(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = truncate(np.diag([3.0, 2.0]), np.diag([5.0, 1.0]), 1)
    >>> A2.shape, B2.shape, np.allclose(B2 @ A2, np.diag([15.0, 0.0]))
    ((1, 2), (2, 1), True)
    """
    raise NotImplementedError


def effective_rank(sigma):
    """Return exp of the entropy of sigma's shares.

    >>> round(float(effective_rank(np.array([7.0, 7.0, 0.0]))), 9)
    2.0
    """
    raise NotImplementedError


# %%
check("19", singular_values, truncate, effective_rank)

# %% [markdown] tags=["notes"]
# 25 min, exercise included (5 to derive, 20 to write). Usual wrong answers, all named by the check: s forgotten; the
# (out, in) product formed and decomposed; rows of A dropped instead of directions. For the last ask: if A and B are
# replaced by M A and B M⁻¹, what happens to B A, and what to your answer?

# %%
adapter = lora[paths[0]]
small = spectrum.lora_svd(adapter.lora_A.data, adapter.lora_B.data, adapter.scaling)
dense = spectrum.svd(adapter.delta())
print("core ", *(f"{s:.4f}" for s in small.sigma), "\ndense", *(f"{s:.4f}" for s in dense.sigma[:9]), "...")
assert np.allclose(small.sigma, dense.sigma[:8], rtol=0, atol=1e-5 * dense.sigma[0])
assert dense.sigma[8] < 1e-5 * dense.sigma[0]  # rank 8 and not more, to float32's digits

# %% [markdown]
# ## 2. Is the update of low rank?
#
# A $\Delta W = s B A$ has rank $r$ at most: to decompose it and to find $r$ shows nothing. What has to be measured is
# full fine-tuning. Four numbers are in use, and they say different things:
#
# - **numerical rank**: how many $\sigma_i$ are more than rounding. Nearly always all of them; it says nothing here.
# - **effective rank**, as in the exercise.
# - **stable rank**, $\sum \sigma_i^2 / \sigma_1^2$: how many values as large as $\sigma_1$ would give the same
#   $\lVert \Delta W \rVert^2$.
# - the least $r$ for 90 % of the **energy** $\sum_{i \le r} \sigma_i^2 / \sum_i \sigma_i^2$, the share of
#   $\lVert \Delta W \rVert^2$ that the best cut keeps.
#
# The control is a matrix of the same shape with entries from a normal distribution: what no structure looks like.

# %%
rng = np.random.default_rng(0)
noise = [spectrum.singular_values(rng.standard_normal(base[path].weight.data.shape)) for path in paths]
measures = {
    "effective": np.mean([spectrum.effective_rank(sigma) for sigma in noise]),
    "stable": np.mean([spectrum.stable_rank(sigma) for sigma in noise]),
    "for 90%": np.mean([spectrum.rank_for(sigma, 0.9) for sigma in noise]),
}
print(f"{'mean over the 35 matrices':<28}{'effective':>10}{'stable':>10}{'for 90%':>10}")
for method in METHODS:
    print(f"{method:<28}", *(f"{recorded(measure, method).mean():9.1f}" for measure in measures))
print(f"{'normal entries':<28}", *(f"{value:9.1f}" for value in measures.values()))

for method in ("full", "matrices"):
    assert (recorded("effective", method) > 60).all()  # of at most 64 in 10 of the matrices, 128 in 25
    assert (recorded("for 90%", method) > 25).all()
assert 66 < recorded("effective", "full").mean() < 68
assert 28 < recorded("for 90%", "full").mean() < 30
assert (recorded("effective", "LoRA, r = 8") < 7.2).all()  # of at most 8: built in
assert 95 < measures["effective"] < 102
assert 68 < measures["for 90%"] < 73
assert (recorded("effective", "full") < 0.8 * measures["effective"]).all()  # and yet not noise
assert (recorded("stable", "full") < 0.5 * measures["stable"]).all()

# %% [markdown]
# The first half of the claim: an effective rank of 67, where LoRA's is 7 because it cannot be more than 8. 90 % of the
# energy takes 29 directions. It is not noise either, for which the two numbers are 98 and 70; a few directions are
# much larger than the rest.

# %% [markdown]
# ### Where the long tail comes from
#
# Adam divides each entry of the gradient by its own size. Its first step is the *sign* of the gradient, times the rate:
# a large and a tiny entry move by the same amount. What that does to the spectrum can be seen before any training.
# The gradient of the first batch, and its signs:

# %%
for seed in range(3):
    _, grads = loss_and_gradients(base, random_windows(source().train, batch=16, length=64, seed=seed)(0))
    of_matrices = [grads[base[path].weight] for path in paths]
    plain, signs = (
        np.mean([spectrum.effective_rank(spectrum.singular_values(f(dW))) for dW in of_matrices])
        for f in (np.asarray, np.sign)
    )
    print(f"effective rank of dW: {plain:.0f}; of its signs: {signs:.0f}")
    assert signs > 1.7 * plain

# %% [markdown]
# The effective rank of the gradient is half that of its signs. So a part of the flat tail may come from the optimizer
# and not from the task, and the loss may not need it. This is the first step only; to know more one would have to train
# without Adam.

# %% [markdown] tags=["notes"]
# 12 min. Point out the trap: many pages decompose a ΔW = BA, find rank r and conclude that fine-tuning is of low rank.
# Let the class say what is wrong. Then ask which of the four measures they would quote in a paper, and let them find a
# spectrum for which two of them disagree by a factor of ten (one large value and a long flat tail: stable 1, effective
# large).

# %% [markdown]
# ## 3. LoRA afterwards: cutting what full fine-tuning has learned
#
# For each $r$, every $\Delta W$ is replaced by its first $r$ terms; no step of training is taken. The error is known:
# $\lVert \Delta W - \Delta W_r \rVert^2 = \sum_{i > r} \sigma_i^2$. Whether the *loss* minds is another question. To
# second order, with $\delta = \Delta W_r - \Delta W$, and the gradient $G$ $(out, in)$ and the curvature $H$
# $(out \cdot in, out \cdot in)$ of the loss at $W$,
#
# $$L(W + \delta) - L(W) \approx \sum G \circ \delta + \tfrac{1}{2} \langle \delta, H \delta \rangle$$
#
# The energy weighs all directions of $\delta$ alike. The loss weighs them by $H$, which is not a multiple of the
# identity.
#
# "matrices" is the method to cut: there $\Delta W$ is all that was learned, as with LoRA. The control keeps as many
# terms $\sigma_i u_i v_i^\top$, but draws them at random: same rank, same kind of terms.


# %%
def update(path):
    """The decomposition of ΔW of a matrix in full fine-tuning, run live."""
    return spectrum.svd(full[path].weight.data - base[path].weight.data)


cut_live = minilora.load_pretrained("builtin")
for name, parameter in cut_live.named_parameters().items():
    parameter.data = full.named_parameters()[name].data  # the embedding and the norms keep what they have learned
for path in paths:
    decomposed = update(path)
    B, A = spectrum.truncate(decomposed, 8)
    W0, W = base[path].weight.data, full[path].weight.data
    cut_live[path].weight.data = W0 + B @ A
    bound = spectrum.truncation_error(decomposed.sigma, 8)[0]
    assert np.isclose(np.linalg.norm(W - W0 - B @ A), bound, rtol=1e-3)  # Eckart and Young's bound is attained

RANKS = [0, 1, 2, 4, 8, 16, 32, 64]
i8 = RANKS.index(8)
assert record.within_spread(losses(cut_live)["new"], recorded("cut", "full")[:, i8])

# %%
cut, drawn = recorded("cut", "matrices"), recorded("drawn", "matrices")
new = {method: recorded("new", method) for method in METHODS}
energy = recorded("energy", "matrices")
gain = (before - cut) / (before - new["matrices"][:, None])  # of what "matrices" has learned, the share that is kept

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6))
figure.suptitle(
    f"Tuned matrices cut to rank 8 keep {energy[:, 7].mean():.0%} of ‖ΔW‖² "
    f"and {gain[:, i8].mean():.0%} of what was learned",
    fontsize=20, weight="bold",
)  # fmt: skip
for method in METHODS:
    kept = recorded("energy", method).mean(axis=0)
    left.plot(
        range(1, len(kept) + 1), 100 * kept, color=COLORS[method], lw=6 if method == "full" else 2.5, label=method
    )
kept = 100 * spectrum.mean_energy(noise)
left.plot(range(1, len(kept) + 1), kept, color="#8A8A8A", ls="--", label="control: normal entries")
left.axvline(8, color="#8A8A8A", lw=1)
left.set(title="Energy of the best cut to rank r", xlabel="r", ylabel="share of ‖ΔW‖² (%)", xlim=(0, 64), ylim=(0, 103))
left.legend(loc="lower right")


def spread(values):
    """Error bars from the least to the largest seed."""
    return [values.mean(axis=0) - values.min(axis=0), values.max(axis=0) - values.mean(axis=0)]


x = RANKS[1:]
for values, style, color, label in [
    (drawn[:, 1:], "o--", "#8A8A8A", "control: r terms at random"),
    (cut[:, 1:], "o-", COLORS["matrices"], "matrices, cut to rank r"),
]:
    right.errorbar(x, values.mean(0), spread(values), fmt=style, color=color, label=label)
at = {8: "LoRA, r = 8", 32: "LoRA, r = 32"}
points = np.array([new[method] for method in at.values()]).T
right.errorbar(list(at), points.mean(0), spread(points), fmt="s", ms=11, color=COLORS["LoRA, r = 8"], zorder=3,
               label="LoRA, trained at rank r")  # fmt: skip
right.axhline(new["matrices"].mean(), color=COLORS["matrices"], ls=":", label="matrices, not cut")
right.set(title="Loss after the cut, 5 seeds, min to max", xlabel="r (log scale)", ylabel="bits per byte, Python")
right.set_xscale("log", base=2)
right.set_xticks(x, x)
right.set_ylim(2.55, 3.85)
right.legend(loc="upper right")
plt.show()

# %%
print("bits per byte of unseen Python source: mean of five seeds, least to largest; share of what matrices learned")
for name, values in {
    "base": np.full(5, before),
    "matrices": new["matrices"],
    "matrices, cut to 8": cut[:, i8],
    "matrices, cut to 16": cut[:, i8 + 1],
    "matrices, 8 terms at random": drawn[:, i8],
    "LoRA, r = 8": new["LoRA, r = 8"],
    "full": new["full"],
    "full, cut to 8": recorded("cut", "full")[:, i8],
    "full, cut to 0": recorded("cut", "full")[:, 0],
}.items():
    share = (before - values.mean()) / (before - new["matrices"].mean())
    print(f"{name:<28}{values.mean():6.3f}   {values.min():.3f} to {values.max():.3f}   {share:4.0%}")

lora_8 = new["LoRA, r = 8"]
assert (energy[:, 7] < 0.6).all()  # two fifths of the energy and more are cut away,
assert 0.42 < np.mean(1 - energy[:, 7]) < 0.44
assert (gain[:, i8] > 0.86).all()  # and one seventh at most of what was learned,
assert 0.10 < np.mean(1 - gain[:, i8]) < 0.12  # one ninth in the mean
assert 0.94 < np.mean(before - lora_8) / np.mean(before - new["matrices"]) < 0.96
assert (drawn[:, i8] - cut[:, i8] > 0.5).all()  # the control: it must be these eight,
assert 0.14 < np.mean(before - drawn[:, i8]) / np.mean(before - new["matrices"]) < 0.18  # others keep a sixth
assert (np.diff(cut.mean(axis=0)) < 0).all()  # every doubling of the rank helps
assert (cut[:, i8] > lora_8).all()  # trained at rank 8 is better than cut to it,
assert 0.02 < np.mean(cut[:, i8] - lora_8) < 0.08  # by a little
close = cut[:, i8 + 1] - lora_8
assert abs(close.mean()) < 0.03  # cut to 16: no difference to speak of,
assert close.min() < 0 < close.max()  # and the seeds do not agree
tied = recorded("cut", "full")[:, i8] - lora_8
assert tied.min() < 0 < tied.max()  # with the embedding and the norms tuned as well: a tie
assert (before - recorded("cut", "full")[:, 0] > 0.2).all()  # which are worth this much without any ΔW

# %% [markdown]
# The second half of the claim: at rank 8, 43 % of the energy is gone, but only a ninth of what was learned. **Energy
# is not loss.** Nor would any eight directions do: eight terms drawn at random keep a sixth of the gain.
#
# And LoRA? Trained at rank 8 it ends lower than the cut, by about 0.05 bit and in all five seeds: 95 % of the gain and
# not 89 %. Training at rank 8 finds a better $\Delta W$ of rank 8 than cutting does; against a cut to 16 the seeds do
# not agree. The verdict depends on what is compared. If the embedding and the norms are tuned as well and keep what
# they learned, the cut to 8 *ties* with LoRA; but without any $\Delta W$ ("full, cut to 0") they are already worth
# 0.2 bit, which LoRA of the matrices cannot have.
#
# So "fine-tuning is of low rank" is the wrong sentence. The right one: some update of low rank is nearly as good. In
# practice both ways end in an adapter of the same size; training at rank 8 holds gradients and optimizer states of the
# adapter alone, cutting needs full fine-tuning first.

# %% [markdown] tags=["notes"]
# 18 min. Before the figure is shown ask for a guess of the loss at r = 8, given that 43 % of the energy is thrown away.
# Then the control: "Are 8 terms enough, or must it be these 8?" The usual wrong conclusion is "so fine-tuning is of low
# rank"; the left panel says it is not. The second trap is the comparison itself: ask what "full, cut to 8" may keep
# that LoRA cannot have (the embedding and the norms), and show how the verdict changes with it. Short break here.

# %% [markdown]
# ## 4. The same directions?
#
# If there were one right **subspace** (子空间) for this task, two runs with other batches would find it twice. Hu et
# al. (2021, equation 4) compare the first $i$ directions of one update with the first $j$ of another:
#
# $$\varphi(i, j) = \frac{\lVert V_i^\top V_j' \rVert^2}{\min(i, j)} \in [0, 1],
# \qquad V_i \;(in, i), \; V_j' \;(in, j)$$
#
# 1 where the smaller subspace lies inside the larger, 0 where they are orthogonal. (Likewise with $U$, for directions
# of the output.) What does chance give? A random unit vector $v$ in $d$ dimensions has $E\,v v^\top = I/d$, so each of
# the $i j$ squares in $\lVert V_i^\top V_j' \rVert^2$ is $1/d$ on average:
#
# $$E\,\varphi(i, j) = \frac{i j / d}{\min(i, j)} = \frac{\max(i, j)}{d}$$
#
# A picture of $\varphi$ without that number means nothing. Below it is drawn, and random pairs are *measured* as well.


# %%
def random_phi(d):
    """φ(i, i), i = 1 to 8, of two random subspaces of d dimensions."""
    one, other = (np.linalg.qr(rng.standard_normal((d, 8)))[0] for _ in range(2))
    return np.diagonal(spectrum.subspace_similarity(one, other))


shapes = np.array([base[path].weight.data.shape for path in paths])
random_pairs = {
    side: np.array([np.mean([random_phi(d) for d in sizes], axis=0) for _ in range(5)])  # five pairs of models
    for side, sizes in (("output", shapes[:, 0]), ("input", shapes[:, 1]))
}
formula = {side: np.mean([8 / d for d in sizes]) for side, sizes in (("output", shapes[:, 0]), ("input", shapes[:, 1]))}

PAIRS = {  # seeds 0 and 1, 1 and 2, ..., 4 and 0
    "two seeds of full": ("full", "full", "#1F5FA8"),
    "two seeds of LoRA, r = 8": ("LoRA, r = 8", "LoRA, r = 8", "#D9621D"),
    "LoRA, r = 8, against full": ("LoRA, r = 8", "full", "#CC79A7"),
}
phi = {
    name: {side: record.pick(everything, side, method=one, against=other) for side in formula}
    for name, (one, other, _) in PAIRS.items()
}
figure, axes = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True)
twice = {name: found["input"][:, 7].mean() for name, found in phi.items()}
figure.suptitle(
    f"Of 8 input directions two full runs share half (φ = {twice['two seeds of full']:.2f}), two LoRA runs few "
    f"({twice['two seeds of LoRA, r = 8']:.2f}; by chance {random_pairs['input'][:, 7].mean():.2f})",
    fontsize=18, weight="bold",
)  # fmt: skip
i = np.arange(1, 9)
for ax, side in zip(axes, ("input", "output"), strict=True):
    for name, (_, _, color) in PAIRS.items():
        values = phi[name][side]
        ax.errorbar(i, values.mean(0), spread(values), fmt="o-", color=color, label=name)
    ax.errorbar(i, random_pairs[side].mean(0), spread(random_pairs[side]), fmt="o--", color="#8A8A8A", label="random")
    ax.set(title=f"Directions of the {side}; 5 pairs, min to max", xlabel="i", xticks=i, ylim=(0, 0.75))
axes[0].set_ylabel("φ(i, i), mean of 35 matrices")
axes[0].legend()
plt.show()

for side, chance in formula.items():
    measured = random_pairs[side][:, 7]
    print(f"{side:<7} random {measured.mean():.3f}, by the formula {chance:.3f};", end="")
    print("".join(f"   {name} {found[side][:, 7].mean():.2f}" for name, found in phi.items()))
    assert abs(measured.mean() - chance) < 0.01 * chance + 0.002

near = recorded("near the start", "LoRA, r = 8")
print(f"LoRA's input directions at the end, and the rows of its own A at the start: {near.mean():.2f}")
for side in formula:
    full_twice, lora_twice, crossed = (found[side][:, 7] for found in phi.values())
    assert (full_twice > 0.3).all()
    assert (lora_twice < 0.25).all()
    assert (lora_twice > random_pairs[side][:, 7].max()).all()  # but more than chance
    assert (crossed > random_pairs[side][:, 7].max()).all()
assert np.allclose(list(twice.values()), [0.49, 0.09, 0.14], atol=0.01)
assert abs(phi["two seeds of LoRA, r = 8"]["output"][:, 7].mean() - 0.17) < 0.01
assert (near > 0.4).all()
assert abs(near.mean() - 0.47) < 0.01
losses_of_lora = recorded("new", "LoRA, r = 8")
assert np.ptp(losses_of_lora) < 0.07

# %% [markdown]
# With other batches full fine-tuning finds about half of its first eight input directions again ($\varphi \approx 0.5$,
# by chance 0.06). Two LoRA runs, with other batches and another random $A$, share 0.09: little more than chance. Yet
# all five losses lie within 0.07 bit. **A low loss does not need one particular subspace**: many will do.
#
# Why so different? The rows of $s B A$ are combinations of the rows of $A$, which starts random. Training moves $A$,
# but not far: about half of the input directions at the end lie in the span of the *starting* $A$ ($\varphi = 0.47$),
# and another seed has another start. $B$ starts at 0, with no random directions to stay near: the output directions
# agree better, 0.17. Full fine-tuning starts both runs from the same $W_0$ and draws no directions at random.

# %% [markdown] tags=["notes"]
# 15 min. Derive the value by chance before the picture: the class should be able to do it from E vvᵀ = I/d. Ask: "φ =
# 0.02: is that little?" and answer with d. The usual wrong conclusion from the orange line: "LoRA has not learned the
# right directions." Its loss is as low; so there are many right ones. Ask why the input side is nearer to chance than
# the output side (A starts random, B starts at 0).

# %% [markdown]
# ## 5. Where in $W_0$ does it act?
#
# If $\Delta W$ strengthened what $W_0$ does most, its directions would be the first of $W_0$. So project $W_0$ on the
# first $r$ directions of $\Delta W$: $\lVert U_r^\top W_0 V_r \rVert$ is large if so. Beside it stand the most there
# can be, $W_0$'s own first $r$ directions, and the control, random directions, for which
# $E\,U_r U_r^\top = (r / out)\, I$ gives the root mean square $\lVert W_0 \rVert \, r / \sqrt{out \cdot in}$. The ratio
# $\lVert \Delta W \rVert / \lVert U_r^\top W_0 V_r \rVert$ is the paper's **amplification factor** (Hu et al., 2021,
# section 7.3 and table 7).

# %%
print("LoRA, r = 8, mean of the 35 matrices: ‖UᵀW₀V‖ with U, V of")
print(f"{'seed':<8}{'ΔW':>10}{'W₀':>10}{'random':>10}{'amplification':>18}")
projected = recorded("projected", "LoRA, r = 8")
for seed, (own, most, chance, amplified) in enumerate(projected):
    print(f"{seed:<8}{own:>10.2f}{most:>10.2f}{chance:>10.2f}{amplified:>18.1f}")
path = paths[0]  # one of them again, live
W0, layer = base[path].weight.data, lora[path]
change = spectrum.lora_svd(layer.lora_A.data, layer.lora_B.data, layer.scaling)
norms = [spectrum.projected_norm(W0, own, 8) for own in (change, spectrum.svd(W0))]
assert norms[0] < norms[1]
own, most, chance, amplified = projected.T
assert (own < 0.2 * most).all()  # not what W₀ does most,
assert (own > 1.4 * chance).all()  # and more than directions at random
assert abs(np.mean(own / most) - 0.13) < 0.01
assert abs(np.mean(own / chance) - 1.7) < 0.1
assert abs(np.mean(most / chance) - 13) < 0.5
assert ((amplified > 3) & (amplified < 8)).all()
assert abs(amplified.mean() - 5) < 0.2  # the paper: 21.5 for GPT-3 at r = 4

# %% [markdown]
# The order of the paper's table 7 holds in all five seeds: in the directions of $\Delta W$, $W_0$ has 13 % of what it
# has in its own leading directions, and still more than chance. (GPT-3, $r = 4$: 0.32, 21.67 and 0.02 for $W_q$.) The
# sizes do not: in the paper $\Delta W$'s directions hold 16 times what random ones do, here 1.7 times, and the
# amplification is 5 and not 21.5. A small matrix leaves less room: from chance to the most there can be is a factor of
# 13 here, of about 1000 in the paper.
#
# Singular vectors of the tuned $W$ that resemble none of $W_0$'s, and what they have to do with forgetting (遗忘),
# are the subject of notebook 12.

# %% [markdown] tags=["notes"]
# 7 min. Read table 7 of the paper beside it. Ask what an amplification of 20 at rank 4 can mean if ΔW is small and the
# directions are those that W₀ hardly uses (the denominator is small). Then the command line, below.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Where does the effective rank go with training? `adapt(2e-3, seed=0, steps=T)` for $T = 1$, 5, 20.
# 2. Cut LoRA of rank 32 to rank 8 with `spectrum.lora_svd` and `spectrum.truncate`. Is it nearer to LoRA trained at
#    rank 8, or to rank 32?
# 3. Give two LoRA runs the same start of $A$ and other batches (`rng` of `attach_lora`, `seed` of `random_windows`).
#    What does $\varphi$ of the input directions become, and what of the output directions?
#
# On the command line: `minilora rank ADAPTER --plot figures.png`, or of two checkpoints `minilora rank BEFORE AFTER`;
# with `--energy 0.9 --out DIR` the cut update becomes an adapter that PEFT loads.
#
# **Not shown here:** other models and tasks: this is one model of 0.94 million parameters on bytes, 60 steps, five
# seeds, one optimizer (AdamW), each method at one rate. A larger model has more directions to spare, and a longer run
# may fill them. A cut that costs little on this text may cost more on another; and that some cut is good does not say
# that training at that rank will find one.

# %% [markdown] tags=["notes"]
# 5 min. Hand out question 1 as homework: the signs of the first step have 84, the end has 67.
