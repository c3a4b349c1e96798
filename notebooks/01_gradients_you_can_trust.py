# %% [markdown]
# # Gradients you can trust
#
# A wrong gradient does not crash. Often it even trains, a little worse, and nobody looks. Here one that was written by
# hand is tested against numbers it had no part in: how far such a test can be trusted, how it is fooled, and what can
# be said of a gradient that fails it. Every `assert` is a claim that has just been tested.
#
# | letter | shape | here | what it is |
# |---|---|---|---|
# | $x$ | $(N, C)$ | $3 \times 6$ | inputs, one example a row |
# | $g, b$ | $(C,)$ | $6$ | gain and bias |
# | $y$ | $(N, C)$ | $3 \times 6$ | outputs |
# | $dy$ | $(N, C)$ | $3 \times 6$ | upstream gradient, $\partial L / \partial y$ |
# | $u$ | $(N, C)$ | $3 \times 6$ | a direction in which $x$ moves |

# %% [markdown]
# ## 1. A gradient written by hand
#
# Layer norm gives each row of $x$ the mean 0 and the variance 1, then a gain and a bias (Ba, Kiros, Hinton, 2016):
#
# $$\hat x = \frac{x - \mu}{\sigma} \;(N, C), \qquad y = g \circ \hat x + b \;(N, C), \qquad
# \mu, \sigma \text{ per row: } (N, 1)$$
#
# With pen and paper, where $d\hat x = dy \circ g$ and the means are over a row,
#
# $$dx = \frac{1}{\sigma} \left( d\hat x - \operatorname{mean}(d\hat x)
# - \hat x \circ \operatorname{mean}(d\hat x \circ \hat x) \right) \;(N, C), \qquad
# dg = \sum_n dy \circ \hat x \;(C,), \qquad db = \sum_n dy \;(C,)$$
#
# Is it right? ($\sigma^2$ holds a small constant, `eps`. It has nothing to do with the step $\varepsilon$ below.)

# %%
import numpy as np


def row_mean(a):
    return a.mean(axis=-1, keepdims=True)


def standardise(x, eps):
    sigma = np.sqrt(row_mean((x - row_mean(x)) ** 2) + eps)
    return (x - row_mean(x)) / sigma, sigma


def layer_norm(x, g, b, eps=1e-5):
    return g * standardise(x, eps)[0] + b


def layer_norm_gradients(dy, x, g, b, eps=1e-5):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    dx = (dxhat - row_mean(dxhat) - xhat * row_mean(dxhat * xhat)) / sigma
    rows = tuple(range(x.ndim - 1))  # every axis but the last
    return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)


# %% [markdown]
# To ask the question of numbers, $y$ becomes one number, and $x$ moves along one line:
#
# $$L(x) = \sum_{n,c} dy \circ y(x) \;\text{(a scalar)}, \qquad
# \left.\frac{d}{dt} L(x + t u)\right|_{t=0} = \sum_{n,c} dx \circ u \;\text{(a scalar)}$$
#
# The gradient of this $L$ is what a backward must return for the upstream gradient $dy$. The right side is its
# **directional derivative** along $u$: all $NC$ entries of $dx$ in one number. The left side can be measured without
# knowing $dx$, by a central difference:
#
# $$\frac{L(x + \varepsilon u) - L(x - \varepsilon u)}{2 \varepsilon}
# = \sum dx \circ u + O(\varepsilon^2)$$
#
# Let $u$ be drawn from the standard normal distribution. If $dx$ is wrong by $\delta$ $(N, C)$, the two sides differ by
# $\sum \delta \circ u$, a normal number of deviation $\lVert \delta \rVert$: one direction is enough, unless we are
# very unlucky. The right side has the deviation $\lVert dx \rVert$ itself, so errors are given relative to that.

# %%
rng = np.random.default_rng(0)
N, C = 3, 6
dy, x, u = (rng.standard_normal((N, C)) for _ in range(3))
g, b = rng.standard_normal(C), rng.standard_normal(C)
dx, dg, db = layer_norm_gradients(dy, x, g, b)


def L(x):
    return (dy * layer_norm(x, g, b)).sum()


measured, claimed = (L(x + 1e-5 * u) - L(x - 1e-5 * u)) / 2e-5, (dx * u).sum()
print(f"measured {measured:.12f}\nclaimed  {claimed:.12f}")
assert np.isclose(measured, claimed, rtol=1e-8)

# %% [markdown]
# ## 2. How small a step?
#
# Nine digits agree. Why not all sixteen, and why $\varepsilon = 10^{-5}$? Two errors pull in opposite directions:
#
# $$\underbrace{\tfrac{1}{6} \varepsilon^2 L'''}_{\text{truncation}} \quad + \quad
# \underbrace{\frac{\eta}{\varepsilon} \sum |dy \circ y|}_{\text{rounding}} \qquad
# \eta \approx 6 \cdot 10^{-8} \text{ in float32}, \; 10^{-16} \text{ in float64}$$
#
# $L$ is known to about $\eta$ times the size of its terms, and the difference is divided by $\varepsilon$. The sum is
# least near $\varepsilon \approx \eta^{1/3}$: $4 \cdot 10^{-3}$ in float32, $5 \cdot 10^{-6}$ in float64. Two ways out:
#
# - **Five points** (the middle one weighs 0). Let $D(\varepsilon) = L(x + \varepsilon u) - L(x - \varepsilon u)$
#   and take $(8 D(\varepsilon) - D(2\varepsilon)) / 12\varepsilon$: the terms in $\varepsilon^2$ cancel,
#   $O(\varepsilon^4)$ is left.
# - **The complex step** (Squire and Trapp, 1998): $L(x + i \varepsilon u)$ has the imaginary part
#   $\varepsilon L' + O(\varepsilon^3)$. Divided by $\varepsilon$ that is $L' + O(\varepsilon^2)$, and as nothing was
#   subtracted, nothing is rounded away. It needs an analytic $L$: no `abs`, no `max`, and not NumPy's `var`, which
#   takes an absolute value.


# %%
def two_points(L, x, u, step):
    return (L(x + step * u) - L(x - step * u)) / (2 * step)


def five_points(L, x, u, step):
    return (4 * two_points(L, x, u, step) - two_points(L, x, u, 2 * step)) / 3  # the same formula, rearranged


def complex_step(L, x, u, step):
    return L(x + 1j * step * u).imag / step


def two_points_float32(L, x, u, step):
    dy32, x32, u32, g32, b32 = (a.astype(np.float32) for a in (dy, x, u, g, b))
    return two_points(lambda x: (dy32 * layer_norm(x, g32, b32)).sum(), x32, u32, step)


# %% [markdown]
# For every method and step: the root mean square, over 40 random directions, of the error relative to
# $\lVert dx \rVert$. The control is a $dx$ that lacks its mean term.

# %%
us = rng.standard_normal((40, N, C))
steps = 10.0 ** -np.arange(1, 12.01, 0.125)


def errors(method, claim, L=L, x=x):
    """One number for each step. A step must be a Python float: a np.float64 would make float32 arrays float64."""
    off = [[method(L, x, u, step) - (claim * u).sum() for u in us] for step in steps.tolist()]
    return np.sqrt(np.mean(np.square(off), axis=1)) / np.linalg.norm(claim)


without_mean = dx + row_mean(dy * g) / standardise(x, 1e-5)[1]
float32 = errors(two_points_float32, dx)
float64 = errors(two_points, dx)
five = errors(five_points, dx)
exact = errors(complex_step, dx)
wrong = errors(two_points, without_mean)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
for error, color, width, words, where in [
    (wrong, "#999999", 2.2, "the control: a wrong gradient", (2e-12, 0.12)),
    (exact, "#8cc7dc", 6, "complex step, float64", (2e-12, 2e-15)),
    (float32, "#d99a00", 2.2, "two points, float32", (1.6e-4, 6e-3)),
    (five, "#7a3fa0", 2.2, "five points, float64", (3e-11, 1e-8)),
    (float64, "#d9621d", 2.2, "two points, float64", (1e-10, 3e-5)),
]:
    axes.loglog(steps, error, color=color, lw=width)
    axes.text(*where, words, color="#1f7a99" if error is exact else color, fontsize=11, weight="bold")
for error, color in [(float32, "#d99a00"), (five, "#7a3fa0"), (float64, "#d9621d")]:
    axes.plot(steps[error.argmin()], error.min(), "o", color=color, ms=9, mec="white", zorder=3)
axes.axvline(2e-5, color="#666666", ls=":", lw=1.2, zorder=0)
axes.text(1.6e-5, 3e-17, "the library begins here: five points, ε = 2e-5", color="#666666", ha="right")
for *at, words, side in [
    (6e-9, 7e-7, "rounding ∝ 1/ε", "left"),
    (3e-5, 3e-8, "truncation ∝ ε²", "right"),
    (1.5e-3, 2e-11, "truncation ∝ ε⁴", "left"),
]:
    axes.text(*at, words, color="#333333", ha=side, style="italic")
axes.set(
    title="The error of a measured derivative; dots: the least error",
    xlabel="step ε",
    ylabel="error, relative to ‖dx‖",
    xlim=(1e-12, 0.1),
    ylim=(1e-17, 30),
)
plt.show()

# %% [markdown]
# **Right of the dots** the error is the truncation, a straight line of slope 2, or 4. Two points and the complex step
# have the same one. **Left of them** it is the rounding, of slope $-1$: below $\varepsilon = 10^{-8}$ a step in float32
# does not even change $x$, the difference is 0 and the error 100%. The complex step has no left side.
#
# The curves go *down*, and with the slopes that theory gives: that is what shows $dx$ to be right. **The control** does
# not: measure as well as you like, its error stays 49%. But in float32 even the best step leaves $4 \cdot 10^{-5}$,
# where a small mistake could hide. Hence float64.


# %%
def slope(error, low, high):
    inside = (low <= steps) & (steps <= high)
    return np.polyfit(np.log(steps[inside]), np.log(error[inside]), 1)[0]


best = {name: steps[error.argmin()] for name, error in [("float32", float32), ("float64", float64), ("five", five)]}
print({name: f"{step:.1e}" for name, step in best.items()})
assert 1e-3 < best["float32"] < 1e-2
assert 2e-6 < best["float64"] < 2e-5
assert 1e-4 < best["five"] < 1e-3
assert abs(slope(float64, 1e-4, 1e-2) - 2) < 0.05
assert abs(slope(five, 3e-3, 3e-2) - 4) < 0.05
assert abs(slope(float64, 1e-12, 1e-7) + 1) < 0.05
assert abs(slope(float32, 1e-7, 1e-4) + 1) < 0.05
assert exact[steps < 1e-8].max() < 1e-15  # machine precision for every small step
assert float32.min() > 1e-5
assert np.allclose(float32[steps < 1e-9], 1, atol=0.1)  # the step is lost
assert np.allclose(wrong[steps < 1e-3], wrong[-1], rtol=1e-3)

# %% [markdown]
# **Why five points at $\varepsilon = 2 \cdot 10^{-5}$?** For this $x$ the dot is at $2 \cdot 10^{-4}$. A step too small
# by 10 costs one digit, a step too large by 10 costs four: one stays on the left. And the dot moves: when $x$ is 10
# times smaller, so is $\sigma$, and $L$ bends 10 times as sharply. The library lets an error of $10^{-7}$ pass, so it
# must measure better than that: for $x / 10$ it still does at $10^{-4}$, and no longer at $10^{-3}$. No step is right
# for every $L$ (think of $\log x$ at $x = 10^{-5}$). So $2 \cdot 10^{-5}$ is where the library begins, with room to
# spare: it measures how far off it may be, and divides the step by 4 until that is less than $10^{-7}$. If rounding
# does not let it, it says so.

# %%
sharp = errors(five_points, layer_norm_gradients(dy, x / 10, g, b)[0], x=x / 10)
for step in (1e-3, 1e-4, 1e-5):
    i = np.abs(np.log(steps / step)).argmin()
    print(f"five points, ε = {step:.0e}: {five[i]:.0e} for x, {sharp[i]:.0e} for x / 10")
at_1e3, at_1e4 = (np.abs(np.log(steps / step)).argmin() for step in (1e-3, 1e-4))
assert five[at_1e4] < 1e-11
assert sharp[at_1e4] < 1e-9
assert sharp[at_1e3] > 1e-7

# %% [markdown]
# ## 3. How a check is fooled
#
# Measuring well is not enough: one can measure something that is zero anyway. Here is a plain checker, and wrong
# backwards that pass it: three that return **zeros**, and one that forgets a scale.
#
# - **Softmax**, $dy = 1$: a row of $p$ sums to 1, so $L = N$, whatever $x$ is, and $dx = 0$.
# - **Layer norm** with $g = 1$, $dy = 1$: a row of $\hat x$ sums to 0, so $L = N \sum_c b_c$, and $dx = 0$.
# - **The low-rank path** $y = s\, x A^\top B^\top$ at $B = 0$, where training starts: $dA = s\,(dy\,B)^\top x = 0$,
#   whatever $s$, $dy$ and $x$ are.
# - The same at $\alpha = r$, with the scale $s = \alpha / r$ forgotten: $s = 1$.
#
# `f.sum().backward()` in a test is the first two: $dy = 1$.


# %%
def check(f, claim, x, dy):
    """The largest error of the claimed gradient, against a difference for every entry."""
    units = np.eye(x.size).reshape(-1, *x.shape)
    slopes = [five_points(lambda x: (dy * f(x)).sum(), x, unit, 1e-4) for unit in units]
    return np.abs(claim - np.reshape(slopes, x.shape)).max()


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def low_rank(x, A, B, alpha, r):
    return alpha / r * x @ A.T @ B.T


def scale_forgotten(dy, x, A, B, alpha, r):
    return dy @ B @ A, (dy @ B).T @ x, dy.T @ (x @ A.T)


r, ones, nothing = 2, np.ones((N, C)), np.zeros((N, C))
A, B = rng.standard_normal((r, C)), rng.standard_normal((C, r))


def check_A(claim, B, alpha):
    return check(lambda A: low_rank(x, A, B, alpha, r), claim, A, dy)


rows = [
    ("softmax, zeros returned", "dy = 1", check(softmax, nothing, x, ones), check(softmax, nothing, x, dy)),
    (
        "layer norm (g = 1), zeros returned",
        "dy = 1",
        check(lambda x: layer_norm(x, 1, b), nothing, x, ones),
        check(lambda x: layer_norm(x, 1, b), nothing, x, dy),
    ),
    ("low-rank dA, zeros returned", "B = 0", check_A(0 * A, 0 * B, 6), check_A(0 * A, B, 6)),
    (
        "low-rank dA, scale forgotten",
        "alpha = r",
        check_A(scale_forgotten(dy, x, A, B, 2, 2)[1], B, 2),
        check_A(scale_forgotten(dy, x, A, B, 6, 2)[1], B, 6),
    ),
]
print(f"{'a wrong backward':<36}{'blind spot':<12}{'error there':<14}error elsewhere")
for what, blind, there, elsewhere in rows:
    print(f"{what:<36}{blind:<12}{there:<14.0e}{elsewhere:.2f}")
    assert there < 1e-10 < 0.1 < elsewhere

# %% [markdown]
# All four pass at the blind spot and fail away from it. The rule: **random $dy$, random gain, trained $B$,
# $\alpha \neq r$**. `check_gradient` draws $dy$ itself, and refuses what would make it worthless. The last line below
# is the low-rank path at $B = 0$ again, hidden under another name: it is found out all the same, because the measured
# and the claimed gradient are both zero.

# %%
from minilora.verify import check_gradient


def refusal(f, grad, inputs, **words):
    try:
        check_gradient(f, grad, inputs, **words)
    except ValueError as error:
        return str(error)


def returns_zeros(dy, *arrays, **constants):
    return [np.zeros_like(a) for a in arrays]


low = {"x": x, "A": A, "B": B}
messages = [
    refusal(softmax, returns_zeros, {"x": x}, dy=ones),
    refusal(low_rank, scale_forgotten, low | {"B": 0 * B}, constants={"alpha": 6, "r": 2}),
    refusal(low_rank, scale_forgotten, low, constants={"alpha": 2, "r": 2}),
    refusal(softmax, returns_zeros, {"x": x.astype(np.float32)}),
    refusal(lambda P: x @ P.T @ (0 * B).T, returns_zeros, {"P": A}),
]
print(*messages, sep="\n")
starts = "dy is the same", "B = 0", "alpha = r", "x is float32", "the gradient of P is zero"
assert all(message.startswith(start) for message, start in zip(messages, starts, strict=True))
assert refusal(softmax, returns_zeros, {"x": x}) is None  # a random dy: nothing to refuse, a wrong gradient to report

# %% [markdown]
# ## 4. A check
#
# It takes $f$ and its gradients, one per input, in order. Each tensor gets a row. One of up to 24 numbers is checked
# entry by entry, a larger one along three random directions. The error is the largest, relative to the root mean square
# of the gradient, or to its norm. It passes if it is no larger than what the method itself may be off by: $10^{-7}$ for
# the central difference, $10^{-11}$ for the complex step, and the rounding of $L$. The gradients of section 1:

# %%
ours = {"x": x, "g": g, "b": b}
report = check_gradient(layer_norm, layer_norm_gradients, ours)
assert report.ok
assert report.worst("complex") < 1e-14
print(report)

# %% [markdown]
# Someone else's, with the mean term missing. The other two tensors are right, and the report says so.


# %%
def mean_forgotten(dy, x, g, b, eps=1e-5):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    dx = (dxhat - xhat * row_mean(dxhat * xhat)) / sigma
    return dx, *layer_norm_gradients(dy, x, g, b, eps)[1:]


report = check_gradient(layer_norm, mean_forgotten, ours)
assert [row.ok for row in report.rows] == [False, True, True]
print(report)

# %% [markdown]
# **Worst at** names the entry with the largest error. Sometimes that is the whole answer. An embedding looks up rows,
# $y = E[\text{ids}]$, and its gradient adds each $dy_n$ to the row it came from. Here it is written with `+=`, which
# NumPy runs once for each *different* id: of the two $dy_n$ for id 2, one is lost (`np.add.at` loses none).


# %%
def embedding(E, ids):
    return E[ids]


def embedding_gradient(dy, E, ids):
    dE = np.zeros_like(E)
    dE[ids] += dy
    return [dE]


E, ids = rng.standard_normal((5, 4)), np.array([0, 2, 3, 2])
report = check_gradient(embedding, embedding_gradient, {"E": E}, constants={"ids": ids})
assert not report.ok
assert report.rows[0].where[0] == 2  # the id that occurs twice
print(report)

# %% [markdown]
# ## 5. A diagnosis
#
# *That* a gradient is wrong is half the answer. `diagnose` compares a wrong tensor, on several cases in which all
# constants differ, with mistakes people make, with the true gradient times a product of constants, clipped or with
# weight decay, with its terms, with small edits of the textbook. A name is given only if it explains the tensor **on
# every case, to 1e-7**; what the cases cannot tell apart is all given. Then it says what is wrong and asks a question
# back, in English or Chinese.

# %%
from minilora.verify import Case, diagnose

diagnosis = diagnose(mean_forgotten, "layer_norm")
print(diagnosis.text("en"), diagnosis.text("zh"), sep="\n\n")
assert diagnosis.names() == ["no_mean_term"]
assert [finding.kind for finding in diagnosis.findings] == ["fault", "right", "right"]
assert diagnose(layer_norm_gradients, "layer_norm").ok

# %% [markdown]
# **A function of one's own** has no bank of mistakes. Its truth is measured, on cases one brings along: a `Case` is
# $dy$, the inputs, the constants of $f$, and the sizes of which a wrong scale may be made. Attention scores:
#
# $$S = q k^\top / \sqrt d \;(n, m), \qquad dq = dS\, k / \sqrt d \;(n, d), \qquad dk = dS^\top q / \sqrt d \;(m, d)$$
#
# with two mistakes, one in each tensor.


# %%
def scores(q, k):
    return q @ k.T / np.sqrt(q.shape[-1])


def case(n, m, d):
    inputs = {"q": rng.standard_normal((n, d)), "k": rng.standard_normal((m, d))}
    return Case(rng.standard_normal((n, m)), inputs, {}, {"n": n, "m": m, "d": d})


cases = [case(3, 4, 2), case(4, 2, 5), case(2, 5, 3)]


def two_mistakes(dS, q, k):
    d = q.shape[-1]
    return dS @ k, q.T @ dS / np.sqrt(d)


diagnosis = diagnose(two_mistakes, scores, cases)
print(diagnosis.text("en"), diagnosis.text("zh"), sep="\n\n")
assert [finding.kind for finding in diagnosis.findings] == ["scale", "shape"]
assert "√d times" in diagnosis.text()
assert "transposed" in diagnosis.text()

# %% [markdown]
# **A fault without a name.** Here $dq$ is squashed by a tanh inside the backward. That is no scale and no transpose:
# the answer is "unknown", with facts and no guess, which could send you the wrong way. The facts are a start: no ratio
# to the true gradient is above 1. So is the next step: every gradient is linear in $dy$, and this one does not double
# with it.


# %%
def squashed(dS, q, k):
    d = q.shape[-1]
    return np.tanh(dS @ k / np.sqrt(d)), dS.T @ q / np.sqrt(d)


diagnosis = diagnose(squashed, scores, cases)
print(diagnosis.text("en"), diagnosis.text("zh"), sep="\n\n")
assert [finding.kind for finding in diagnosis.findings] == ["unknown", "right"]
assert diagnosis.names() == []
assert "ratios from" in diagnosis.text()
assert "Double dy" in diagnosis.text()

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Break $dg$ or $db$ in `layer_norm_gradients`, in a way that you once did or nearly did. Does `check_gradient` see
#    it, and does `diagnose` find a name?
# 2. In `standardise`, let `sigma = np.sqrt(x.var(axis=-1, keepdims=True) + eps)`: the same number. What does the column
#    "complex" of section 4 say now, and why?
# 3. Let `two_mistakes` make both in $dq$: transposed, and $\sqrt d$ forgotten. What is found, and what would you mend
#    first?
#
# **Not shown here:** a whole model against its loss (`check_model`), PyTorch as a third opinion (`torch=`), functions
# with a kink, and whether a right gradient trains anything well.
