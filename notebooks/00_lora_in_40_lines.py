# %% [markdown]
# # LoRA in 40 lines
#
# A trained matrix is adapted to a new task by learning a *low-rank* change and leaving the matrix itself alone.
# The forty lines need NumPy and nothing else: base, adapter, both gradients by hand, training, merging.
# Every `assert` is a claim that has just been tested.
#
# | letter | shape | here | what it is |
# |---|---|---|---|
# | $x$ | $(N, \text{in})$ | $500 \times 64$ | inputs, one example a row |
# | $W_0$ | $(\text{out}, \text{in})$ | $48 \times 64$ | the trained weight, frozen |
# | $A$ | $(r, \text{in})$ | $4 \times 64$ | learned, starts random |
# | $B$ | $(\text{out}, r)$ | $48 \times 4$ | learned, starts at 0 |
# | $s = \alpha / r$ | | $8 / 4 = 2$ | a fixed scale |

# %% [markdown]
# ## 1. A base, and a task it was not made for
#
# The **old task** is $t = x\,W_\text{old}^\top + \text{noise}$, and the base $W_0$ is its least-squares fit.
# The **new task** has the weight $W_\text{old} + \Delta$, where $\Delta$ (`change`) is a product of a $(48, 2)$ and a
# $(2, 64)$ matrix: of rank 2. That a change of low rank is enough is LoRA's assumption. Here we build it in, so that we
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

# %% [markdown]
# ## 2. The adapter
#
# $$W_0 + \Delta W, \qquad \Delta W = s\,B A, \qquad s = \alpha / r$$
#
# A product of $(\text{out}, r)$ and $(r, \text{in})$ has rank at most $r$, and $r\,(\text{in} + \text{out})$ numbers
# instead of $\text{in} \cdot \text{out}$. One factor starts at zero, so that training starts exactly at the base. The
# other must not: with $A = 0$ and $B = 0$ both gradients of section 4 are zero, and nothing would ever move.
# (Hu et al. draw $A$ from a Gaussian; we draw it uniformly within $\pm 1/\sqrt{\text{in}}$, as PEFT does.)

# %%
r, alpha = 4, 8
s = alpha / r
A = rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)
B = np.zeros((n_out, r))
print(f"learned: r (in + out) = {A.size + B.size} numbers, frozen: in · out = {W0.size}")

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

# %% [markdown]
# ## 4. Backward
#
# Let $L = \frac{1}{2N} \sum_n \lVert y_n - t_n \rVert^2$, so $dy = \partial L / \partial y = (y - t) / N$, of shape
# $(N, \text{out})$. For any product $u = v M^\top$ the gradients are $dM = du^\top v$ and $dv = du\,M$. Used on
# $y = (s h) B^\top$, and then on $h = x A^\top$:
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

# %% [markdown]
# ## 6. Merging
#
# $x W_0^\top + s\,(x A^\top) B^\top = x\,(W_0 + s\,B A)^\top$: one matrix of the old shape, no extra work at inference.
# Equal up to rounding, because floating-point sums depend on their order.

# %%
W = W0 + s * B @ A
assert np.allclose(x @ W.T, forward(x, A, B)[0], rtol=0, atol=1e-12)

# %% [markdown]
# Those were the forty lines.
#
# ## What was learned
#
# **Left**: the loss falls in two stairs, one for each direction of the change. The control is the same training, with
# the same $s$, at $r = 1$: it stops on the first stair. The best a matrix of rank 1 can do is to take $\sigma_1$ and
# leave $\sigma_2$ (Eckart and Young, 1936), which for inputs of unit variance costs $\frac12 \sigma_2^2$: the dotted
# line, drawn without training anything. The dashed one is the noise alone.
#
# **Right**: with $r = 4$ the two singular values of the true change are found, and the two directions that are left
# over stay near zero: they fit a little noise.

# %%
import matplotlib.pyplot as plt

_, _, losses_1 = train(rng.uniform(-1, 1, (1, n_in)) / np.sqrt(n_in), np.zeros((n_out, 1)))
floor = np.sum((x @ (W_old + change).T - t) ** 2) / (2 * len(x))
true, learned = (np.linalg.svd(M, compute_uv=False)[:8] for M in (change, s * B @ A))

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
left.plot(losses_1, color="#eeb48f", lw=2.5, label="r = 1, the control")
left.plot(losses, color="#d9621d", lw=2.5, label=f"r = {r}")
left.axhline(floor + true[1] ** 2 / 2, color="#666666", ls=":", lw=1.2, label="predicted for rank 1: noise + ½ σ₂²")
left.axhline(floor, color="#666666", ls="--", lw=1.2, label="the noise alone")
left.set(
    title="Learning the new task", xlabel="step", ylabel="training loss (log scale)", yscale="log", ylim=(0.17, 14)
)
left.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
left.minorticks_off()
left.legend(frameon=False)
index = np.arange(1, 9)
right.bar(index, true, 0.7, color="#d5d5d5", label="the true change, rank 2")
right.plot(index, learned, "o", color="#d9621d", ms=7, label=f"learned, ΔW = s B A, r = {r}")
for i, sigma in zip(index, learned, strict=True):
    right.annotate(f"{sigma:.2f}" if i <= r else "0", (i, sigma), (0, 8), textcoords="offset points", ha="center")
right.set(title="Singular values of the change", xlabel="i", ylabel="σᵢ", xticks=index, ylim=(0, 1.15 * true[0]))
right.legend(frameon=False)
plt.show()

print(f"loss: {losses[0]:.2f} with the base alone, {losses[-1]:.2f} at the end, {floor:.2f} from noise alone")
assert losses[-1] < 1.05 * floor
assert np.isclose(losses_1[-1], floor + true[1] ** 2 / 2, rtol=0.1)
assert np.linalg.norm(s * B @ A - change) < 0.05 * np.linalg.norm(change)

# %% [markdown]
# ## The same with the library
#
# Are the two lines of section 4 right? First without trusting anyone: $f = \sum dy \circ y$ is a quadratic along any
# straight line in $(A, B)$, so a central difference has no error but rounding. Then against `minilora`: the functions,
# and the layer. Here `dy` is random, because at the end of training the real one gives gradients close to zero.

# %%
import minilora
from minilora import ops

dy, VA, VB = (rng.standard_normal(shape) for shape in (y.shape, A.shape, B.shape))
y, h = forward(x, A, B)
dA, dB = gradients(dy, x, h, B)


def f(e):
    return np.sum(dy * forward(x, A + e * VA, B + e * VB)[0])


assert np.isclose(f(0.5) - f(-0.5), np.sum(dA * VA) + np.sum(dB * VB), rtol=1e-9)

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

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. Start with $B$ random too. Which `assert` fails first, and why would that matter for a base that is good already?
# 2. Start with $A = 0$ as well as $B = 0$. Where does the loss go?
# 3. Let $r = 2$, then $r = 16$, each with $\alpha = 2r$. What do the additional directions fit?
#
# **Not shown here:** a layer below that needs $dx$, dropout, minibatches and Adam, held-out data, full fine-tuning
# beside it, and any model or data that we did not make ourselves.
