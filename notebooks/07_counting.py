# %% [markdown]
# # Counting: what exactly does LoRA save?
#
# "LoRA saves 10,000 times the parameters, three times the memory, a quarter of the time." Each of these numbers can be
# counted, with pen and paper, before anything is run. Here every formula stands beside a number that was counted in a
# live model, and an `assert` holds them together.
#
# | letter | what it is |
# |---|---|
# | $B, T$ | sequences in a batch, tokens in a sequence; $N = BT$ |
# | $C, F, V$ | width, hidden width, vocabulary |
# | $r$ | rank of the adapter |
# | $W \; (out, in)$, $A \; (r, in)$, $B \; (out, r)$ | a frozen matrix and its low-rank path |

# %% [markdown]
# ## 1. Parameters
#
# A matrix has $in \cdot out$ of them, the path beside it $r \cdot in + out \cdot r = r \, (in + out)$. So
#
# $$\text{share} = \frac{r \, (in + out)}{in \cdot out} \qquad \text{for } in = out = C: \quad \frac{2r}{C}$$
#
# The wider the model, the smaller the share: the same rank is dear in a small model, and nearly nothing in a large one.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora import accounting
from minilora.accounting import count, ledger

rng = np.random.default_rng(0)
model = minilora.load_pretrained("builtin")
adapted = minilora.attach_lora(model, targets=["q_proj", "v_proj"], r=8, rng=rng)

by_hand = sum(8 * sum(model[path].base.weight.data.shape) for path in adapted)
counted = accounting.count_parameters(model)
print(f"{by_hand:,} by the formula, {counted['trainable']:,} in the model, {counted['total']:,} in its base")
assert by_hand == counted["trainable"] == count("builtin", "lora", r=8).trainable

# %% [markdown]
# The same formula needs no model at all. Four sizes, LoRA of rank 8 on `q_proj` and `v_proj`; the last column is the
# file that PEFT would write, to the byte: a header with the names, then four bytes a number.

# %%
for name in ("builtin", "smollm2-135m", "llama-2-7b", "gpt3-175b"):
    account = count(name, "lora", targets=["q_proj", "v_proj"], r=8)
    print(f"{name:<14}{account.total:>16,}{account.trainable:>13,}  {account.share:8.4%}{account.adapter_bytes:>14,} B")

# %% [markdown]
# For GPT-3 the LoRA paper prints another total, 175,255.8M, and says that its checkpoint is 10,000 times smaller at
# $r = 4$. The ratio can be computed:

# %%
gpt3 = count("gpt3-175b", "lora", targets=["q_proj", "v_proj"], r=4)
print(f"{gpt3.total:,} / {gpt3.trainable:,} = {gpt3.total / gpt3.trainable:,.0f}")
assert 9_000 < gpt3.total / gpt3.trainable < 10_000

# %% [markdown]
# ## 2. Bytes
#
# A training step holds five things: the **weights**; a **gradient** for each parameter that learns; two numbers of
# **optimizer state** for each of them (Adam's $m$ and $v$); what forward has **kept for backward**; and, for a moment,
# whatever is being computed. LoRA shrinks the second and the third to nearly nothing. The fourth it hardly touches:
#
# $$dW = dy^\top x \qquad dA = dh^\top x$$
#
# both need the layer's input $x$ $(N, in)$. Frozen or adapted, the softmax keeps its $(T, T)$ weights, a norm its
# $\hat x$, the nonlinearity its slope. Only what is *neither trained nor adapted* drops its input, and with $A$ frozen
# as well (LoRA-FA) only $h = x A^\top$, $r$ numbers a token, is kept for $dB$.
#
# The **ledger** lists those arrays, one by one, with the reason for each. Here it is for one step of the model above.

# %%
ids = rng.integers(0, 256, (4, 64))
logits, cache = model.forward(ids)
kept = ledger(model, batch=4, tokens=64, loss=False)
for row in accounting.report.grouped(kept)[:8]:
    print(f"{row.layer:<26} {row.what:<11} {row.count} x {row.shape!s:<18} {row.nbytes / 1024:>7,.0f} KiB   {row.why}")
assert accounting.nbytes(cache) == sum(array.nbytes for array in kept)

# %% [markdown]
# The sum of the ledger is the size of the cache, to the byte: the assert above compared them. So the formula can be
# trusted for a model that does not fit into this machine. A step of Llama 2 7B in 16 bits, 2048 tokens:

# %%
step = {"tokens": 2048}
ways = {
    "full": count("llama-2-7b", "full", dtype="bfloat16", **step),
    "lora": count("llama-2-7b", "lora", targets="all-linear", dtype="bfloat16", **step),
    "lora-fa": count("llama-2-7b", "lora-fa", targets="all-linear", dtype="bfloat16", **step),
    "lora, recomputed": count("llama-2-7b", "lora", targets="all-linear", recompute=True, dtype="bfloat16", **step),
    "qlora, recomputed": count("llama-2-7b", "qlora", recompute=True, **step),
}
parts = {"weights": "#8a8a8a", "gradients": "#1f5fa8", "optimizer": "#7fb0e0", "activations": "#d9621d"}
figure, ax = plt.subplots(figsize=(10, 3.6), layout="constrained")
left = np.zeros(len(ways))
for part, color in parts.items():
    gib = np.array([account.memory()[part] for account in ways.values()]) / 2**30
    bars = ax.barh(list(ways), gib, left=left, color=color, label=part)
    left += gib
ax.bar_label(bars, [f" {total:.1f}" for total in left])
ax.invert_yaxis()
ax.set(xlabel="GiB", title="One step of Llama 2 7B on 2048 tokens: what is where")
ax.margins(x=0.1)
ax.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# Three levers, each for another part: LoRA for gradients and optimizer state, four bits for the weights, recomputation
# for the activations (each block keeps its input and is run again when its backward comes: the FLOPs of one more
# forward for nearly all of the cache).

# %%
memory = {name: account.memory() for name, account in ways.items()}
assert memory["lora"]["optimizer"] < 0.01 * memory["full"]["optimizer"]
assert memory["lora"]["activations"] > 0.99 * memory["full"]["activations"]
assert memory["lora-fa"]["activations"] < 0.9 * memory["lora"]["activations"]
assert memory["lora, recomputed"]["activations"] < 0.11 * memory["lora"]["activations"]

# %% [markdown]
# ### Four bits to the bit
#
# NF4 stores a weight in 4 bits, and a scale for every 64 weights. A float32 scale adds $32/64 = 0.5$ bits; quantising
# the scales too (8 bits each, a float32 for every 256 of them) leaves $8/64 + 32/(64 \cdot 256) = 0.127$:

# %%
n = 4096 * 4096
for double in (False, True):
    print(f"double quantisation {double!s:<6} {accounting.nf4_bits(n, double) / n:.5f} bits a weight")
assert accounting.nf4_bits(n, True) == 4 * n + 8 * n // 64 + 32 * n // (64 * 256) + 32  # and one mean for the tensor

# %% [markdown]
# ## 3. FLOPs
#
# A product $(n, k) \times (k, m)$ costs $2nkm$. So a layer's $y = x W^\top$ costs $2 \, in \, out$ a token,
# $dx = dy \, W$ as much, $dW = dy^\top x$ as much again: $6 \, in \, out$. A frozen layer never computes $dW$; the path
# costs $2r(in + out)$ forward and twice that backward ($dh$, $dx$, $dA$, $dB$):
#
# $$\frac{\text{LoRA}}{\text{full}} = \frac{4 \, in \, out + 6 r \, (in + out)}{6 \, in \, out}
# = \frac{2}{3} + r \, \frac{in + out}{in \cdot out}$$
#
# Two thirds and a little more: it is no tenth, because $dx$ must flow through every frozen layer. At
# $r = \frac{in \cdot out}{3 (in + out)}$, for a square matrix $C/6$, nothing is saved at all.
#
# Is that what is executed? An array that counts its own products says so:

# %%
held = {}
forward = accounting.executed_flops(model, lambda: held.update(y=model.forward(ids)))
backward = accounting.executed_flops(
    model, lambda: model.backward(0.1 * held["y"][0], held["y"][1], minilora.Gradients())
)
predicted = accounting.flops(model, batch=4, tokens=64)
for name, executed, formula in zip(("forward", "backward"), (forward, backward), predicted, strict=True):
    print(f"{name:<9} executed {executed['products']:>13,}   by the formula {formula.products:>13,}")
    assert executed["products"] == formula.products

# %%
ranks = np.unique(np.geomspace(1, 1024, 40).astype(int))
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for name, color in (("gpt2", "#8a8a8a"), ("llama-2-7b", "#1f5fa8"), ("llama-2-70b", "#d9621d")):
    account = count(name, "full", tokens=64)
    full = sum(part.linear for part in account.flops())
    linears = (layer for _, layer in account.model.named_modules() if isinstance(layer, minilora.Linear))
    most = min(min(layer.weight.data.shape) for layer in linears)
    shown = [r for r in map(int, ranks) if r <= most]
    steps = (count(name, "lora", targets="all-linear", r=r, tokens=64).flops() for r in shown)
    ratio = [sum(part.linear + part.adapter for part in step) / full for step in steps]
    ax.plot(shown, ratio, lw=2.5, color=color, label=name)
ax.axhline(2 / 3, ls=":", color="black", lw=1)
ax.axhline(1, ls="--", color="black", lw=1)
ax.set(xscale="log", xlabel="rank", ylabel="LoRA's step / full fine-tuning's", ylim=(0.6, 1.3),
       title="Two thirds, and a little more: all matrices adapted, attention apart")  # fmt: skip
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ### In which order?
#
# $x A^\top B^\top$ can be multiplied from the left, two thin products, or as $x (BA)^\top$, which forms a matrix
# $(out, in)$. The same choice stands at $dx$, $dA$ and $dB$. For 512 tokens through a square matrix of 4096, in units
# of one dense product:

# %%
dense = 2 * 512 * 4096 * 4096
for name, pair in accounting.association_orders(4096, 4096, r=8, N=512).items():
    print(f"{name:<3}", "   ".join(f"{order:<11} {flops / dense:6.3f}" for order, flops in pair.items()))
    assert min(pair, key=pair.get) == next(iter(pair))  # the first is what ops/lora.py does

# %% [markdown]
# ## 4. The papers, audited
#
# The LoRA paper prints fifty such numbers in its tables and its text. How many follow from its own formulas? These do
# not (`minilora audit` shows all, with their tables and columns, and some of the QLoRA paper):

# %%
rows = [row for row in accounting.audit.rows() if row.paper == accounting.audit.LORA]
for row in rows:
    if not row.reproduced:
        value = f"{row.value:,.0f}" if row.value > 1000 else f"{row.value:.3g}"
        print(f"{row.what:<58}{row.printed:>11}{value:>17}   {row.verdict}")
print(f"\nThe LoRA paper: {accounting.audit.summary(rows)}")
assert len(rows) == 50
assert sum(row.agrees for row in rows) * 2 == len(rows)  # just half, and four of them at a fitted r

# %% [markdown]
# Try: `count("llama-3.1-8b", "dora", r=16)`; a `config.json` of your own; on the command line
# `minilora count --compare full,lora,vera --plot costs.png`. And with pen and paper: which of the four parts of memory
# does a batch twice as large double?
