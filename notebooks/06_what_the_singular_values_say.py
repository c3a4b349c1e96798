# %% [markdown]
# # What the singular values say
#
# LoRA bets that the update of a layer, $\Delta W = W - W_0$, is nearly of low rank. Here the bet is looked at: a model
# is fine-tuned in full and by LoRA, and the singular values and vectors of both updates answer five questions:
#
# 1. How is $BA$ decomposed without ever being formed?
# 2. What rank is enough?
# 3. Can LoRA be had afterwards, by truncating what full fine-tuning has learned?
# 4. Do two runs, or two ranks, learn the same directions?
# 5. Where in $W_0$ does the update act?
#
# | letter | shape | what it is |
# |---|---|---|
# | $\Delta W = U \Sigma V^\top$ | $(out, in)$ | the update, and its singular value decomposition |
# | $\sigma_1 \ge \sigma_2 \ge \dots$ | | the singular values: $\Delta W = \sum_i \sigma_i u_i v_i^\top$ |
# | $A$, $B$, $s$ | $(r, in)$, $(out, r)$ | an adapter: $\Delta W = s B A$ |
# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.adapters import spectrum
from minilora.data import all_windows, bits, excerpts, python_source, random_windows

RATES = {"full": 4e-3, "lora": 1.6e-2}
source = python_source()
held_out = excerpts(source.validation, 4096)


def adapt(rank=None, seed=0, steps=40):
    """The built-in model after some steps on Python source: by LoRA of a rank, or in full."""
    model = minilora.load_pretrained("builtin")
    if rank:
        minilora.attach_lora(model, "all-linear", r=rank, alpha=16, rng=np.random.default_rng(seed))
    batches = random_windows(source.train, batch=16, length=128, seed=seed)
    schedule = minilora.cosine_schedule(steps, warmup=5)
    lr = RATES["lora" if rank else "full"]
    minilora.fit(model, batches, steps, lr=lr, schedule=schedule, shards=2, seed=seed, description=None)
    return model


def loss(model):
    """Bits per byte of Python source that it has not seen."""
    return bits(minilora.evaluate(model, all_windows(held_out, 16, 128), shards=2))


base = minilora.load_pretrained("builtin")
full, lora, lora_again, lora_32 = adapt(), adapt(rank=8), adapt(rank=8, seed=1), adapt(rank=32)
paths = [path for path, module in lora.named_modules() if isinstance(module, minilora.LoRALinear)]
for name, model in {"base": base, "full": full, "LoRA, r = 8": lora, "LoRA, r = 32": lora_32}.items():
    print(f"{name:<13} {loss(model):.3f} bits per byte")

# %% [markdown]
# ## 1. The decomposition of a product, without the product
#
# $\Delta W$ of an adapter is $(out, in)$, but it passes through $r$ numbers. With $B = Q_B R_B$ and $A^\top = Q_A R_A$,
#
# $$\Delta W = Q_B \; \underbrace{s \, R_B R_A^\top}_{(r, r)} \; Q_A^\top$$
#
# and the columns of $Q_B$ and $Q_A$ are orthonormal, so the decomposition of the little core is that of the whole.

# %%
adapter = lora[paths[0]]
small = spectrum.lora_svd(adapter.lora_A.data, adapter.lora_B.data, adapter.scaling)
dense = spectrum.svd(adapter.delta())
print("core ", *(f"{s:.4f}" for s in small.sigma), "\ndense", *(f"{s:.4f}" for s in dense.sigma[:9]), "...")
assert np.allclose(small.sigma, dense.sigma[:8], rtol=0, atol=1e-5 * dense.sigma[0])
assert dense.sigma[8] < 1e-5 * dense.sigma[0]  # rank 8 and not more, to float32's digits

# %% [markdown]
# ## 2. What rank is enough?
#
# By the theorem of Eckart and Young (1936) no matrix of rank $r$ is nearer to $\Delta W$ than the first $r$ terms of
# its decomposition, and what is left has the squared norm $\sum_{i>r} \sigma_i^2$. The share that is kept is the
# **energy** $\sum_{i \le r} \sigma_i^2 / \sum_i \sigma_i^2$. Three single numbers are in use, and say different things:
#
# - **numerical rank**: how many $\sigma_i$ are more than rounding. Nearly always full; it says nothing here.
# - **effective rank**, $\exp(-\sum p_i \log p_i)$ with $p_i = \sigma_i / \sum \sigma$: $n$ for $n$ equal values.
# - **stable rank**, $\sum \sigma_i^2 / \sigma_1^2$: how many values as large as the first the energy would make.


# %%
def update(model, path):
    """The decomposition of a layer's ΔW."""
    layer = model[path]
    if isinstance(layer, minilora.LoRALinear):
        return spectrum.lora_svd(layer.lora_A.data, layer.lora_B.data, layer.scaling)
    return spectrum.svd(layer.weight.data - base[path].weight.data)


figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
runs = {"full": (full, "#1f5fa8"), "LoRA, r = 32": (lora_32, "#e8a07a"), "LoRA, r = 8": (lora, "#d9621d")}
for name, (model, color) in runs.items():
    sigmas = [update(model, path).sigma for path in paths]
    shortest = min(map(len, sigmas))
    ratio = np.mean([sigma[:shortest] / sigma[0] for sigma in sigmas], axis=0)
    left.semilogy(range(1, shortest + 1), ratio, lw=2.5, color=color, label=name)
    kept = spectrum.mean_energy(sigmas)
    right.plot(range(1, len(kept) + 1), kept, lw=2.5, color=color, label=name)
    stable, effective = (np.mean([f(s) for s in sigmas]) for f in (spectrum.stable_rank, spectrum.effective_rank))
    enough = np.mean([spectrum.rank_for(sigma, 0.9) for sigma in sigmas])
    print(f"{name:<13} stable {stable:5.1f}   effective {effective:5.1f}   for 90% of the energy {enough:5.1f}")
left.set(title="Singular values of ΔW, mean over the layers", xlabel="i", ylabel="σᵢ / σ₁", xlim=(0, 64))
left.set_ylim(1e-2, 1.2)
right.set(title="Energy kept by the best rank r", xlabel="r", ylabel="share", xlim=(0, 64), ylim=(0, 1.02))
left.legend(frameon=False)
right.legend(frameon=False)
plt.show()

# %% [markdown]
# Full fine-tuning's spectrum falls slowly: there is no rank at which it ends. LoRA of rank 8 nevertheless came close to
# its loss above. So "the update is of low rank" is the wrong sentence; the right one is that *some* update of low rank
# is nearly as good. Is such an update a part of the full one, though its spectrum does not show it? Truncating tells.
#
# ## 3. LoRA afterwards: truncating what full fine-tuning learned
#
# For each $r$ the matrices' $\Delta W$ is replaced by its best approximation, $B = U_r \sqrt{\Sigma_r}$ and
# $A = \sqrt{\Sigma_r} V_r^\top$; embeddings and norms keep what they learned. No step of training is taken.


# %%
def truncated(r):
    """The fully fine-tuned model, each matrix's update cut to rank r; and ‖ΔW - B A‖ beside its bound, for each."""
    model, errors = minilora.load_pretrained("builtin"), []
    for path, parameter in full.named_parameters().items():
        model.named_parameters()[path].data = parameter.data
    for path in paths:
        W0, decomposed = base[path].weight.data, update(full, path)
        B, A = spectrum.truncate(decomposed, r)
        model[path].weight.data = W0 + B @ A
        distance = np.linalg.norm(full[path].weight.data - W0 - B @ A)
        errors.append((distance, spectrum.truncation_error(decomposed.sigma, r)[0]))
    return model, np.array(errors)


ranks, cut = [1, 2, 4, 8, 16, 32, 64], []
for r in ranks:
    model, errors = truncated(r)
    assert np.allclose(errors[:, 0], errors[:, 1], rtol=1e-3, atol=1e-5)  # the bound is attained
    cut.append(loss(model))

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.semilogx(ranks, cut, "o-", lw=2.5, base=2, color="#1f5fa8", label="full fine-tuning, cut to rank r")
ax.plot([8, 32], [loss(lora), loss(lora_32)], "s", ms=9, color="#d9621d", label="LoRA, trained at rank r")
ax.axhline(loss(full), ls="--", color="#1f5fa8", lw=1, label="full fine-tuning")
ax.set(xlabel="r", ylabel="bits per byte, not seen", title="To cut afterwards and to train at a low rank")
ax.xaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
plt.show()
print(f"rank 8: cut to it {cut[3]:.3f}, trained at it {loss(lora):.3f}; full rank {loss(full):.3f} bits per byte")
gain = (loss(base) - cut[3]) / (loss(base) - loss(full))
print(f"rank 8 of ΔW keeps {gain:.0%} of what full fine-tuning gained")
assert cut[0] > cut[3] > cut[-1]
assert abs(cut[3] - loss(lora)) < 0.1 * (loss(base) - loss(lora))  # no difference to speak of

# %% [markdown]
# It is. Cut to rank 8, full fine-tuning is as good as LoRA that was trained at rank 8, though the energy figure above
# shows how much of $\lVert \Delta W \rVert^2$ that leaves out: energy is not loss. What is cut away is most of the
# update's size and little of its use. Both ways lead to an adapter of the same quality; training at rank 8 needs the
# memory of the adapter alone, cutting needs full fine-tuning first.

# %% [markdown]
# ## 4. The same directions?
#
# $$\varphi(i, j) = \frac{\lVert U_i^\top V_j \rVert^2}{\min(i, j)} \in [0, 1]$$
#
# compares the first $i$ directions of one update with the first $j$ of another (Hu et al., 2021, equation 4): 1 where
# the smaller subspace lies inside the larger. Random subspaces of $d$ dimensions have $\max(i, j)/d$ on average, and a
# picture without that number means nothing. Right singular vectors (of the input) below; two seeds, then two ranks.

# %%
path, d = "block_2.mlp.down_proj", base["block_2.mlp.down_proj"].weight.data.shape[1]
pairs = {"r = 8, two seeds": (lora, lora_again), "r = 8 and r = 32": (lora, lora_32), "r = 8 and full": (lora, full)}
figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
for ax, (name, (one, other)) in zip(axes, pairs.items(), strict=False):
    phi = spectrum.subspace_similarity(update(one, path).Vt[:8].T, update(other, path).Vt[:8].T)
    image = ax.imshow(phi, vmin=0, vmax=1, cmap="magma", extent=(0.5, 8.5, 8.5, 0.5))
    ax.set(title=name, xlabel="j", ylabel="i")
    print(f"{name:<28} φ(1, 1) = {phi[0, 0]:.2f}   φ(8, 8) = {phi[-1, -1]:.2f}   at random {8 / d:.3f}")
axes[3].imshow(spectrum.random_similarity(8, 8, d), vmin=0, vmax=1, cmap="magma", extent=(0.5, 8.5, 8.5, 0.5))
axes[3].set(title="random", xlabel="j", ylabel="i")
figure.colorbar(image, ax=axes, label="φ(i, j)")
plt.show()

# %% [markdown]
# ## 5. Where in $W_0$ does it act?
#
# If $\Delta W$ strengthened what $W_0$ does most, its directions $U, V$ would be the first of $W_0$. Project $W_0$ on
# them: $\lVert U_r^\top W_0 V_r \rVert$ is large if so, and small if they are directions that $W_0$ hardly uses. The
# ratio $\lVert \Delta W \rVert / \lVert U_r^\top W_0 V_r \rVert$ is the paper's **amplification factor** (section 7.3).
#
# An **intruder** (Shuttleworth et al., 2024) is a leading singular vector of the tuned $W$ that resembles none of
# $W_0$'s: its largest $|\cos|$ to any of them is below one half.

# %%
print(f"{'':<24}{'‖ΔW‖':>6} {'‖UᵀW₀V‖, U, V of':^34}{'amplifi-':>9} {'intruders of 10':>16}")
print(f"{'':<24}{'':>6} {'ΔW':>10}{'W₀':>11}{'random':>11}  {'cation':>8} {'left, right':>16}")
for layer in ("block_0.attention.q_proj", "block_2.attention.v_proj", "block_4.mlp.up_proj"):
    W0 = base[layer].weight.data
    before, change = spectrum.svd(W0), update(lora, layer)
    norms = [spectrum.projected_norm(W0, own, 8) for own in (change, before)]
    found = spectrum.intruders(before, spectrum.svd(W0 + lora[layer].delta()))
    norms.append(spectrum.random_projected_norm(W0, 8))
    print(f"{layer:<24}{np.linalg.norm(change.sigma):6.2f} {norms[0]:10.2f}{norms[1]:11.2f}{norms[2]:11.2f}", end="")
    print(f"{spectrum.amplification(W0, change, 8):10.1f}{len(found[0]):>9},{len(found[1]):>5}")
    assert norms[0] < norms[1]  # not what W₀ does most

# %% [markdown]
# Compare with table 7 of the paper (GPT-3, $r = 4$: 0.32 for the directions of $\Delta W_q$, 21.67 for $W_q$'s own,
# 0.02 at random; amplification 21.5). Which of its conclusions hold for so small a model, and which do not?
#
# From the command line: `minilora rank ADAPTER --plot figures.png`, or of two checkpoints of any family
# `minilora rank BEFORE AFTER`; with `--energy 0.9 --out DIR` the truncated update becomes an adapter that PEFT loads.
# A grid of ranks and seeds, trained and judged, is `minilora sweep`.
