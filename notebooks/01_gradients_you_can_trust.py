# %% [markdown]
# # Gradients you can trust
#
# **A check sees only what its inputs let it see.** A wrong gradient does not crash. Often it even trains, a little
# worse, and nobody looks. Here a gradient that was written by hand is tested against slopes measured without it: how
# far such a test can be trusted, which mistakes it cannot see, and what can be said of a gradient that fails it. Every
# `assert` is a claim that has just been tested.
#
# | letter | shape | here | what it is |
# |---|---|---|---|
# | $x$ | $(N, C)$ | $3 \times 6$ | inputs, one example a row |
# | $g, b$ | $(C,)$ | $6$ | gain and bias |
# | $y$ | $(N, C)$ | $3 \times 6$ | outputs |
# | $dy$ | $(N, C)$ | $3 \times 6$ | upstream gradient, $\partial L / \partial y$ |
# | $u$ | $(N, C)$ | $3 \times 6$ | a direction in which $x$ moves |
# | $A, B$ | $(r, \text{in}), (\text{out}, r)$ | $2 \times 6, 6 \times 2$ | a low-rank path, $s = \alpha / r$ |

# %% [markdown] tags=["notes"]
# 3 min. Read the claim. Say that today a test is tested, not a model.
#
# Ask: who has trained with a wrong gradient? How did you find out? (Collect two answers; they come back in section 6.)
#
# Usual wrong answer: "autograd does this for me." It does not for a fused kernel, a custom backward, or a detached
# tensor.

# %% [markdown]
# ## 1. A gradient written by hand
#
# Layer norm (层归一化) gives each row of $x$ the mean 0 and the variance 1, then a gain and a bias (Ba, Kiros, Hinton,
# 2016):
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
# The gradient of this $L$ is what a backward (反向传播) must return for the upstream gradient (上游梯度) $dy$. The
# right side is its **directional derivative** along $u$: all $NC$ entries of $dx$ in one number. The left side can be
# measured without knowing $dx$, by a central difference (中心差分):
#
# $$\frac{L(x + \varepsilon u) - L(x - \varepsilon u)}{2 \varepsilon}
# = \sum dx \circ u + O(\varepsilon^2)$$
#
# Let $u$ be drawn from the standard normal distribution. If $dx$ is wrong by $\delta$ $(N, C)$, the two sides differ by
# $\sum \delta \circ u$, a number normally distributed with standard deviation $\lVert \delta \rVert$: one direction is
# enough, unless we are very unlucky. The right side has the standard deviation $\lVert dx \rVert$ itself, so errors are
# given relative to that.

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
assert np.isclose(measured, claimed, rtol=1e-9)

# %% [markdown] tags=["notes"]
# 8 min. The class derives nothing here: they check. Write L as one number on the board, then the line x + t u.
#
# Ask: why is one random direction enough? (An error δ shows as Σ δ ∘ u, normally distributed with standard deviation
# ‖δ‖. It is rarely near 0.)
#
# Usual wrong answer: "one must test every entry." That finds *which* entry is wrong; one direction finds *that* one is.

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
# - **The complex step** (复步法) (Squire and Trapp, 1998): $L(x + i \varepsilon u)$ has the imaginary part
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

plt.style.use("minilora.display.projector")
orange, blue, green, grey = "#D9621D", "#1F5FA8", "#009E73", "#8A8A8A"

figure, axes = plt.subplots(figsize=(12, 6.8))
for error, color, width, words, where in [
    (wrong, grey, 2.5, f"the control, a wrong gradient: {wrong[-1]:.0%}", (2e-12, 0.06)),
    (exact, "#8CC7DC", 8, "complex step", (2e-12, 3e-15)),
    (float32, green, 2.5, "two points, float32", (3e-5, 2.5e-2)),
    (five, blue, 2.5, "five points", (3e-11, 3e-9)),
    (float64, orange, 2.5, "two points", (1e-10, 5e-5)),
]:
    axes.loglog(steps, error, color=color, lw=width)
    axes.text(*where, words, color="#1F7A99" if error is exact else color, weight="bold")
for error, color in [(float32, green), (five, blue), (float64, orange)]:
    axes.plot(steps[error.argmin()], error.min(), "o", color=color, ms=11, mec="white", zorder=3)
for *at, words, side in [
    (6e-9, 4e-7, "rounding ∝ 1/ε", "left"),
    (1.5e-5, 3e-8, "truncation ∝ ε²", "right"),
    (2e-3, 1e-11, "truncation ∝ ε⁴", "left"),
]:
    axes.text(*at, words, color="#333333", ha=side, style="italic", size=13)
axes.axvline(2e-5, color="#666666", ls=":", lw=1.5, zorder=0)
axes.text(1.6e-5, 3e-17, "the library begins here: five points, ε = 2e-5", color="#555555", ha="right", size=13)
axes.set_title(f"Two points measure a right dx to {float64.min():.0e} in float64, to {float32.min():.0e} in float32")
axes.set(xlabel="step ε", ylabel="error, relative to ‖dx‖", xlim=(1e-12, 0.1), ylim=(1e-17, 30))
plt.show()

# %% [markdown] tags=["notes"]
# 7 min. Hide the figure, and let the class sketch error against ε before it is shown.
#
# Ask: which curve has no left side, and why? (The complex step: nothing is subtracted.)
#
# Usual wrong answer: "the smaller the step, the better." Left of the dots the error grows, and at 1e-9 a float32 x does
# not move at all.

# %% [markdown]
# **Right of the dots** the error is the truncation, a straight line of slope 2, or 4. Two points and the complex step
# have the same one. **Left of them** it is the rounding, of slope $-1$: below $\varepsilon = 10^{-9}$ a step in float32
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
assert 1e-5 < float32.min() < 1e-4
assert round(wrong[-1], 2) == 0.49
assert np.allclose(float32[steps < 1e-9], 1, atol=0.1)  # the step is lost
assert np.allclose(wrong[steps < 1e-3], wrong[-1], rtol=1e-3)

# %% [markdown]
# **Why five points at $\varepsilon = 2 \cdot 10^{-5}$?** For this $x$ the dot is at $2 \cdot 10^{-4}$. A step too small
# by 10 costs one digit, a step too large by 10 costs four, so it is safer to err on the left. And the dot moves: when
# $x$ is 10 times smaller, so is $\sigma$, and $L$ bends 10 times as sharply. The library wants to know each slope to
# $10^{-7}$: for $x / 10$ five points still give that at $10^{-4}$, and no longer at $10^{-3}$. No step is right for
# every $L$ (think of $\log x$ at $x = 10^{-5}$). So $2 \cdot 10^{-5}$ is where the library begins, with room to spare:
# it estimates its own error, and divides the step by 4 until that is below $10^{-7}$. Where rounding prevents this, the
# estimate is added to the tolerance; where rounding would hide a mistake, the check says so.

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
# ## Your turn: write the check
#
# `accepts` is given a forward (前向传播), a backward and their inputs, and says True or False. It will meet 12 right
# functions and 68 wrong gradients.
#
#     y = forward(**inputs, **constants)
#     gradients = backward(dy, **inputs, **constants)      # {"dx": ..., ...}
#
# `inputs` and `constants` are dicts; the backward returns a gradient for each input, called `d` and its name, for
# $L = \sum dy \circ y$. $dy$, of the shape of $y$, is your choice; the inputs are float64 arrays, and must stay as they
# are. A wrong gradient is off by 1% or more of the norm of a tensor. Gradients may be as small as $10^{-10}$, with
# entries of 0 (but not 0 as a whole), and $y$ a million times larger than they are. A right function may have a kink,
# but none nearer to the inputs than $10^{-4}$.


# %% tags=["exercise"] exercise="05"
def accepts(forward, backward, inputs, constants):
    """Return True where backward is the gradient of forward.

    >>> x = {"x": np.array([3.0, -2.0])}
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * 2 * x}, x, {})
    True
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * x}, x, {})
    False
    """
    raise NotImplementedError


# %% [markdown] tags=["notes"]
# 12 min. Everyone writes. The check tells how many right gradients are accepted and how many wrong ones rejected; a
# blind spot that it recognises gets a name and a question.
#
# Usual mistakes, in this order: dy of ones; an absolute tolerance; a step of 1e-8 or smaller; only the first input or
# one entry compared; the inputs changed in place. Whoever is not done takes it home: 40 minutes with `minilora ex 05`.

# %%
import minilora.practice as practice

practice.check("05", accepts)

# %% [markdown]
# ## 3. How a check is fooled
#
# Measuring well is not enough: one can measure something that is zero anyway. Here are wrong backwards, measured as in
# section 2: three that return **zeros**, and one that forgets a scale (缩放因子).
#
# - **Softmax**, $y = p$, with $dy = 1$: a row of $p$ sums to 1, so $L = N$, whatever $x$ is, and $dx = 0$.
# - **Layer norm** with $g = 1$, $dy = 1$: a row of $\hat x$ sums to 0, so $L = N \sum_c b_c$, and $dx = 0$.
# - **The low-rank path** (低秩支路) $y = s\, x A^\top B^\top$ at $B = 0$, where training starts:
#   $dA = s\,(dy\,B)^\top x = 0$, whatever $s$, $dy$ and $x$ are.
# - The same at $\alpha = r$, with the scale $s = \alpha / r$ forgotten: $s = 1$.
#
# `f.sum().backward()` in a test is the first two: $dy = 1$.


# %%
def largest_error(f, claim, x, dy):
    """Of the claimed gradient, along twenty random directions."""

    def L(x):
        return (dy * f(x)).sum()

    return max(abs(five_points(L, x, u, 1e-4) - (claim * u).sum()) for u in rng.standard_normal((20, *x.shape)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def low_rank(x, A, B, alpha, r):
    return alpha / r * x @ A.T @ B.T


def scale_forgotten(dy, x, A, B, alpha, r):
    return dy @ B @ A, (dy @ B).T @ x, dy.T @ (x @ A.T)


r, ones, nothing = 2, np.ones((N, C)), np.zeros((N, C))
A, B = rng.standard_normal((r, C)), rng.standard_normal((C, r))


def error_in_A(claim, B, alpha):
    return largest_error(lambda A: low_rank(x, A, B, alpha, r), claim, A, dy)


def normed(x):
    return layer_norm(x, 1, b)


rows = [
    (
        "softmax, zeros returned",
        "dy = 1",
        largest_error(softmax, nothing, x, ones),
        largest_error(softmax, nothing, x, dy),
    ),
    (
        "layer norm (g = 1), zeros returned",
        "dy = 1",
        largest_error(normed, nothing, x, ones),
        largest_error(normed, nothing, x, dy),
    ),
    ("low-rank dA, zeros returned", "B = 0", error_in_A(0 * A, 0 * B, 6), error_in_A(0 * A, B, 6)),
    (
        "low-rank dA, scale forgotten",
        "alpha = r",
        error_in_A(scale_forgotten(dy, x, A, B, 2, 2)[1], B, 2),
        error_in_A(scale_forgotten(dy, x, A, B, 6, 2)[1], B, 6),
    ),
]
print(f"{'a wrong backward':<36}{'blind spot':<12}{'error there':<14}error elsewhere")
for what, blind, there, elsewhere in rows:
    print(f"{what:<36}{blind:<12}{there:<14.0e}{elsewhere:.2f}")
    assert there < 1e-10 < 0.1 < elsewhere

# %% [markdown] tags=["notes"]
# 4 min. Take softmax: the rows of p sum to 1, so the sum of all p cannot change.
#
# Ask: which of these four does your own `accepts` see? Which does your last unit test see?
#
# Usual wrong answer: "B = 0 is the realistic start, so test there." It is the one point where dA is zero for any
# backward.

# %% [markdown]
# All four pass at the blind spot and fail away from it.
#
# ### Your turn: inputs that hide nothing
#
# With dropout (随机失活) of probability $p$ a LoRA layer is
#
# $$y = x W^\top + \frac{\alpha}{r}\,(x \circ \text{keep})\, A^\top B^\top \;(\text{batch}, \text{tokens}, \text{out})$$
#
# where `keep` (batch, tokens, in) is 0 where $x$ is dropped and $1/(1-p)$ elsewhere, $W$ is $(\text{out}, \text{in})$,
# $A$ $(r, \text{in})$ and $B$ $(\text{out}, r)$. Choose sizes (at most 10) and values at which *every* known mistake in
# its backward changes some number. Return two dicts, the inputs `x, A, B` and the constants `W, keep, alpha, r, p`, in
# this order. The check draws $dy$ itself.


# %% tags=["exercise"] exercise="05"
def lora_case(rng):
    """Return inputs, constants.

    >>> inputs, constants = lora_case(np.random.default_rng(0))
    >>> list(inputs), list(constants)
    (['x', 'A', 'B'], ['W', 'keep', 'alpha', 'r', 'p'])
    """
    raise NotImplementedError


# %% [markdown] tags=["notes"]
# 7 min. In pairs: one writes a case, the other looks for a mistake that it hides.
#
# Usual mistakes: alpha = r; p = 0 "to keep it simple"; one sample; B = 0, copied from the start of training; equal
# widths.

# %%
practice.check("05", lora_case)

# %% [markdown]
# ### How much is hidden
#
# The bank of `minilora.verify` holds mistakes that people make in LoRA's backward, each as a function. A mistake is
# *hidden* by inputs if it returns the true gradient there: then no check whatever can see it. Six cases are drawn, in
# six shapes, and changed in one way each. The control is the cases as they were drawn: random $dy$, $B \ne 0$,
# $\alpha \ne r$, $p > 0$, several samples. Beside it, layer norm and RMS norm (均方根归一化), with the gain that a new
# model has, $g = 1$ (and $b = 0$).


# %%
from minilora.verify.problems import problems

bank = problems()


def hidden(problem, changes, seed=0):
    """The mistakes that change no gradient in any of six cases, once these arguments are changed."""
    left = set(problem.faults)
    for case in problem.cases(seed):
        given = {"dy": case.dy, **case.inputs, **case.constants}
        for change in changes:
            given |= change(given)
        true = problem.backward(**given)
        left -= {name for name in left if not same(problem.faults[name].wrong(*given.values()), true)}
    return left


def same(wrong, true):
    return all(wrong[d].shape == true[d].shape and np.allclose(wrong[d], true[d], 1e-9, 1e-9) for d in wrong)


def all_ones(given):
    return {"dy": np.ones_like(given["dy"])}


def new_gain(given):
    return {name: np.full_like(given[name], value) for name, value in [("g", 1), ("b", 0)] if name in given}


SPOTS = {
    "dy = 1": all_ones,
    "one sample": lambda given: {name: given[name][:1] for name in ("dy", "x", "keep")},
    "no dropout, p = 0": lambda given: {"keep": np.ones_like(given["keep"]), "p": 0.0},
    "α = r": lambda given: {"alpha": float(given["r"])},
    "B = 0": lambda given: {"B": 0 * given["B"]},
}
lora = {"good inputs": hidden(bank["low_rank"], [])}
lora |= {name: hidden(bank["low_rank"], [change]) for name, change in SPOTS.items()}
lora["all five"] = hidden(bank["low_rank"], SPOTS.values())
norms = {
    name: [hidden(bank[name], changes) for changes in ([], [all_ones], [new_gain], [all_ones, new_gain])]
    for name in ("layer_norm", "rms_norm")
}
total = {name: len(bank[name].faults) for name in ("low_rank", "layer_norm", "rms_norm")}
for spot, names in lora.items():
    print(f"{spot:<18} hides {len(names):2} of {total['low_rank']}: {', '.join(sorted(names)) or '-'}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), width_ratios=(3, 2))
figure.suptitle(
    f"Of {total['low_rank']} mistakes in LoRA's backward, good inputs hide {len(lora['good inputs'])};\n"
    f"five common habits of tests together hide {len(lora['all five'])}",
    weight="bold",
)
counts = [len(names) for names in lora.values()]
bars = left.barh(list(lora), counts, color=[grey, *[blue] * len(SPOTS), orange])
left.bar_label(bars, padding=5)
left.invert_yaxis()
left.set(xlabel=f"hidden mistakes, of {total['low_rank']}", xlim=(0, total["low_rank"]))
left.set_title("the LoRA layer", size=14, weight="normal")
labels = ["good inputs", "dy = 1", "g = 1, b = 0", "both"]
for (name, found), shift, color in zip(norms.items(), (-0.2, 0.2), (blue, orange), strict=True):
    words = f"{name.replace('_', ' ').replace('rms', 'RMS')}, of {total[name]}"
    right.bar_label(
        right.barh(np.arange(4) + shift, [len(names) for names in found], 0.38, color=color, label=words), padding=5
    )
right.set_yticks(range(4), labels)
right.invert_yaxis()
right.set(xlabel="hidden mistakes", xlim=(0, 16))
right.set_title("norms, as in a new model", size=14, weight="normal")
right.legend(loc="upper right")
plt.show()

# %% [markdown] tags=["notes"]
# 6 min. Ask before the figure: a test starts from a fresh adapter, α = r, no dropout, batch of one, and calls
# `y.sum().backward()`. How many of 31 mistakes does it miss? Let them write a number down.
#
# Usual wrong answer: three or four. The bars do not add up: some mistakes are hidden twice.
#
# Point at the right side: for layer norm, both habits together hide far more than each alone, because then dx = 0.

# %% [markdown]
# Each of these habits is common. PEFT once merged the bias of an adapter (适配器) without the scale, unseen, because
# its tests had `r` and `lora_alpha` of 8 (pull request 2489, 2025). For layer norm $dy = 1$ hides 1 mistake and $g = 1$
# hides 2, but both together 12 of 32, because then $dx = 0$. RMS norm has no mean to take away: its $dx$ is not 0, and
# both together hide 5 of 31, the 1 and the 4 that each hides by itself.

# %%
assert total == {"low_rank": 31, "layer_norm": 32, "rms_norm": 31}
assert [len(names) for names in lora.values()] == [0, 1, 1, 6, 6, 8, 18]
assert [len(names) for names in norms["layer_norm"]] == [0, 1, 2, 12]
assert [len(names) for names in norms["rms_norm"]] == [0, 1, 4, 5]
assert lora["all five"] == set().union(*(lora[spot] for spot in SPOTS))
assert norms["rms_norm"][3] == norms["rms_norm"][1] | norms["rms_norm"][2]
for seed in (1, 2):  # other numbers, in other shapes
    assert not hidden(bank["low_rank"], [], seed)
    assert hidden(bank["low_rank"], SPOTS.values(), seed) == lora["all five"]
    assert hidden(bank["layer_norm"], [all_ones, new_gain], seed) == norms["layer_norm"][3]
    assert hidden(bank["rms_norm"], [all_ones, new_gain], seed) == norms["rms_norm"][3]

# %% [markdown]
# The rule: **random $dy$, random gain, trained $B$, $\alpha \neq r$, dropout on, several samples**. `check_gradient`
# draws $dy$ itself, and refuses what would make it worthless. The last line below is the low-rank path at $B = 0$
# again, hidden under another name: it is found out all the same, because the measured and the claimed gradient are both
# zero.

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

# %% [markdown] tags=["notes"]
# 2 min. Read the five refusals aloud. Each is a blind spot that the function can recognise without knowing the answer.
#
# Ask: which of the five habits of the figure can it not recognise? (No dropout: it cannot know what f could have. And
# one sample, if it has several tokens; a batch of a single row it refuses as well.)

# %% [markdown]
# ## 4. A check
#
# It takes $f$ and its gradients, one per input, in order. Each tensor gets a row in the report. A tensor of up to 24
# numbers is checked entry by entry, a larger one along three random directions. The error shown is the largest,
# relative to the entry (for a very small entry, to a thousandth of the root mean square), or to the norm of the
# gradient. It passes if it is no larger than $10^{-8}$ for the central difference, $10^{-11}$ for the complex step,
# plus what the method estimates to be its own error. The gradients of section 1:

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

# %% [markdown] tags=["notes"]
# 3 min. The report has a row for each tensor: two of three are right. Ask: what would a single pass or fail have said?

# %% [markdown]
# ## 5. A diagnosis
#
# *That* a gradient is wrong is half the answer. `diagnose` compares a wrong tensor, on several cases in which all
# constants differ, with known mistakes, with the true gradient times a product of constants, clipped, or with weight
# decay added, with its single terms, and with small edits of the textbook formula. A name is given only if it explains
# the tensor **on every case, to 1e-7**; what the cases cannot tell apart is all given. Then it says what is wrong and
# asks a question back, in English or Chinese.

# %%
from minilora.verify import Case, diagnose

diagnosis = diagnose(mean_forgotten, "layer_norm")
print(diagnosis.text("en"), diagnosis.text("zh"), sep="\n\n")
assert diagnosis.names() == ["no_mean_term"]
assert [finding.kind for finding in diagnosis.findings] == ["fault", "right", "right"]
assert diagnose(layer_norm_gradients, "layer_norm").ok

# %% [markdown]
# **For a function of your own** there is no bank of mistakes. Its true gradient is measured, on cases that you bring: a
# `Case` is $dy$, the inputs, the constants of $f$, and the sizes that a wrong scale may be made of, such as $d$.
# Attention (注意力) scores:
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

# %% [markdown] tags=["notes"]
# 3 min. Ask for a mistake that no bank can hold. Usual wrong answer: "then the tool should guess." A wrong name costs
# more time than none.

# %% [markdown]
# ## 6. Break it: what the loss cannot see
#
# Is training itself a check? A layer $y = \text{layer norm}(x W^\top)$, $W$ $(8, 8)$, is trained towards another one,
# with plain gradient descent. The right $dx$ is compared with two named mistakes, each from the same five starts:
# without its mean term, and without its variance term.
#
# The outcome of the first can be predicted. The missing term adds a number $m_n$ to every column of row $n$ of $dh$
# $(N, C)$. So $dW$ gets a term $\mathbf 1 v^\top$ with $v = \sum_n m_n x_n$, and each row of $h = x W^\top$ is shifted
# as a whole. Layer norm takes the mean away again: neither $y$ nor any later gradient notices.


# %%
def variance_forgotten(dy, x, g, b, eps=1e-5):
    dxhat, sigma = dy * g, standardise(x, eps)[1]
    return (dxhat - row_mean(dxhat)) / sigma, *layer_norm_gradients(dy, x, g, b, eps)[1:]


def train(gradients, seed, steps=400, lr=0.3):
    """The losses of a layer y = layer_norm(x Wᵀ; g, b) that learns to do as another one does."""
    rng = np.random.default_rng(seed)
    x, W_true, W = rng.standard_normal((256, 8)), rng.standard_normal((8, 8)), rng.standard_normal((8, 8))
    t = layer_norm(x @ W_true.T, 1 + rng.standard_normal(8) / 2, rng.standard_normal(8) / 2)
    g, b, losses = np.ones(8), np.zeros(8), []
    for _ in range(steps):
        h = x @ W.T
        y = layer_norm(h, g, b)
        losses.append(np.sum((y - t) ** 2) / (2 * len(x)))
        dh, dg, db = gradients((y - t) / len(x), h, g, b)
        W, g, b = W - lr * dh.T @ x, g - lr * dg, b - lr * db
    return losses


right, no_mean, no_variance = (
    np.array([train(gradients, seed) for seed in range(5)])
    for gradients in (layer_norm_gradients, mean_forgotten, variance_forgotten)
)
off = []
for gradients, losses in [(mean_forgotten, no_mean), (variance_forgotten, no_variance)]:
    off.append(np.linalg.norm(gradients(dy, x, g, b)[0] - dx) / np.linalg.norm(dx))
    share = (losses[:, 0] - losses[:, -1]) / (right[:, 0] - right[:, -1])
    print(diagnose(gradients, "layer_norm").findings[0].text("en"))
    print(f"    the dx of section 1 is off by {off[-1]:.0%}")
    print(f"    the loss falls by {share.min():.1%} to {share.max():.1%} of the right fall")
    print(f"    and ends at {(losses[:, -1] / right[:, -1]).round(2)} times the right loss\n")

assert round(off[0], 2) == 0.52
assert np.allclose(no_mean, right, rtol=1e-9, atol=0)  # the same curve, at every step of all five
assert (no_variance[:, -1] > 1.1 * right[:, -1]).all()
assert (no_variance[:, -1] < 0.05 * no_variance[:, 0]).all()
assert (no_variance[:, 199] < right[:, 199]).any()  # half way the wrong one leads in some start

# %%
figure, axes = plt.subplots(figsize=(11, 5))
for losses, color, ls, width, words in [
    (right, grey, "-", 6, "right"),
    (no_mean, blue, "--", 2.5, "no mean term"),
    (no_variance, orange, "-", 2.5, "no variance term"),
]:
    axes.plot(np.median(losses, axis=0), color=color, ls=ls, lw=width, label=words)
    if losses is not no_mean:
        axes.fill_between(range(400), losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.2, lw=0)
higher = no_variance[:, -1] / right[:, -1]
axes.set_title(
    f"No mean term, dx off by {off[0]:.0%}: the same loss at every step.\n"
    f"No variance term, dx off by {off[1]:.0%}: it ends {higher.min():.1f} to {higher.max():.1f} times as high"
)
axes.set(xlabel="step", ylabel="loss (log scale)", yscale="log", xlim=(0, 400))
axes.legend(loc="upper right", title="five starts: median, min to max")
plt.show()

# %% [markdown] tags=["notes"]
# 5 min. Ask first: dx is off by half. How much worse does it train? Vote, then run.
#
# Usual wrong answers: "half as fast", "it diverges". The loss has a blind spot as well: what layer norm takes away.
#
# Say what is not said: Adam divides each entry of dW by its own size. The shift is then not the same in every column,
# and the argument of the text fails.

# %% [markdown]
# So the loss has blind spots too. It cannot see the first mistake, to $10^{-9}$ of its value at any step. The second
# costs little enough to go unnoticed: the loss still falls by more than 95% from every start, and half way, after 200
# steps, the wrong gradient is even ahead from at least one of them.

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Break $dg$ or $db$ in `layer_norm_gradients`, in a way that you once did or nearly did. Does `check_gradient` see
#    it, and does `diagnose` find a name?
# 2. In `standardise`, let `sigma = np.sqrt(x.var(axis=-1, keepdims=True) + eps)`: the same number. What does the column
#    "complex" of section 4 say now, and why?
# 3. In `train`, let each entry of $dW$ be replaced by its sign (a step of Adam's size). Is the first mistake of section
#    6 still unseen?
#
# **Not shown here:** mistakes that the bank does not hold (31, 32 and 31 are those collected so far, so the shares say
# nothing about how often a mistake is made); a whole model against its loss (`check_model`); PyTorch as a third opinion
# (`torch=`); functions with a kink; training of anything larger than an 8 by 8 layer on data drawn at random.
