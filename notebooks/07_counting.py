# %% [markdown]
# # Counting: what exactly does LoRA save?
#
# **The trained parameters, the bytes and the FLOPs of a training step fall by three different factors.** For Llama 2 7B
# with LoRA of rank 8 on every matrix of its blocks they are 337, 2.8 and 1.5. The LoRA paper (Hu et al., 2021) says of
# GPT-3: 10,000 times fewer trained parameters, a third of the memory, 25% faster. Each of these can be counted, with
# pen and paper, before anything is run. Here every formula stands beside a number that was counted in a live model, and
# an `assert` holds them together.
#
# | letter | what it is |
# |---|---|
# | $B, T$ | sequences in a batch, tokens in a sequence; $N = BT$ |
# | $C, F, V$ | width, hidden width, vocabulary |
# | $r$ | rank of the adapter |
# | $W \; (out, in)$, $A \; (r, in)$, $B \; (out, r)$ | a frozen matrix and its low-rank path |

# %% [markdown] tags=["notes"]
# 3 min. Write three numbers on the board, hidden: 337, 2.8, 1.5. Ask for guesses of the three factors, for a 7B model
# at rank 8, and keep them until section 4.
#
# Usual wrong answer: one factor for all three, or "activations shrink too, since so little is trained".

# %% [markdown]
# ## 1. Parameters
#
# A matrix has $in \cdot out$ of them, the low-rank path (低秩支路) beside it
# $r \cdot in + out \cdot r = r \, (in + out)$. So
#
# $$\text{share} = \frac{r \, (in + out)}{in \cdot out} \qquad \text{for } in = out = C: \quad \frac{2r}{C}$$
#
# The wider the model, the smaller the share: the same rank is expensive in a small model, and costs nearly nothing in a
# large one.

# %% [markdown]
# ### Your turn: count a decoder
#
# All its weights are these; `config` is a dict with the keys in quotation marks:
#
# - the embedding, "vocab_size" rows of "d_model" numbers, and "max_length" rows more where "positions" is True;
# - "n_layers" blocks: a norm, attention (注意力) with q_proj, k_proj, v_proj and o_proj, a norm, an MLP. Queries have
#   "n_heads" heads, keys and values "n_kv_heads"; every head is d_model / n_heads wide. Where "fused" is True, one
#   matrix qkv_proj holds the rows of the first three;
# - the MLP: up_proj to "d_ff", down_proj back, and where "gated" is True a gate_proj of the shape of up_proj;
# - one more norm, and the head, d_model to vocab_size without a bias. Where "tied" is True it is the embedding's
#   matrix.
#
# A norm has a gain of d_model numbers. "biases" is "none"; or "qkv", for q_proj, k_proj and v_proj; or "all", for every
# linear layer of the blocks and every norm. LoRA is put on the layers in `targets`, in every block: $A$ $(r, in)$ and
# $B$ $(out, r)$ each. In a fused model "qkv_proj" means the whole matrix, and "q_proj" a part with an $A$ and a $B$ of
# its own. $A$ and $B$ are trained, in float32 whatever the model's "dtype".
#
# Return the model's parameters without LoRA, those that are trained, and the bytes of the tensors of the adapter
# (适配器).

# %% tags=["exercise"] exercise="07"
def count(config, targets, r):
    """Return {"total": ..., "trained": ..., "file_bytes": ...}.

    >>> sizes = {"vocab_size": 10, "n_layers": 1, "d_model": 4, "n_heads": 2, "n_kv_heads": 2, "d_ff": 6}
    >>> kind = {"max_length": 8, "positions": False, "fused": False, "gated": True, "tied": False}
    >>> count(sizes | kind | {"biases": "none", "dtype": "bfloat16"}, ["q_proj", "v_proj"], 2)
    {'total': 228, 'trained': 32, 'file_bytes': 128}
    """
    raise NotImplementedError


# %% [markdown] tags=["notes"]
# 14 min. First a table on paper: the name of each matrix and its (out, in). Then the code.
#
# The check names the mistake of a wrong number: norms left out, a tied head counted twice, k and v as wide as q.
#
# Usual wrong answer: 2 · r · d_model for every target. Ask who adapted down_proj with it.

# %%
from minilora.practice import check

check("07", count)

# %% [markdown]
# And in a live model:

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora import accounting, ops

plt.style.use("minilora.display.projector")
orange, blue, light, grey = "#D9621D", "#1F5FA8", "#56B4E9", "#8A8A8A"

rng = np.random.default_rng(0)
model = minilora.load_pretrained("builtin")
adapted = minilora.attach_lora(model, targets=["q_proj", "v_proj"], r=8, rng=rng)

by_hand = sum(8 * sum(model[path].base.weight.data.shape) for path in adapted)
counted = accounting.count_parameters(model)
print(f"{by_hand:,} by the formula, {counted['trainable']:,} in the model, {counted['total']:,} in its base")
assert by_hand == counted["trainable"] == accounting.count("builtin", "lora", r=8).trainable

# %% [markdown]
# The same formula needs no model at all. Four sizes, LoRA of rank 8 on `q_proj` and `v_proj`; the last column is the
# file that PEFT would write, to the byte: a header with the names, then four bytes a number.

# %%
shares = []
for name in ("builtin", "smollm2-135m", "llama-2-7b", "gpt3-175b"):
    account = accounting.count(name, "lora", targets=["q_proj", "v_proj"], r=8)
    shares.append(account.share)
    print(f"{name:<14}{account.total:>16,}{account.trainable:>13,}  {account.share:8.4%}{account.adapter_bytes:>14,} B")
assert shares == sorted(shares, reverse=True)  # the wider the model, the smaller the share

# %% [markdown] tags=["notes"]
# 4 min. Ask: why is the share of the smallest model the largest? (2 r / C, and C is 128 there.)
#
# Usual wrong answer: "LoRA trains 0.1%." Of what? At rank 8 the share runs from 2% to 0.02% here.

# %% [markdown]
# ### Six near misses
#
# Six formulas that are easily written, and wrong. The first four count what is trained, the last two the whole model.
# Two sizes of Qwen2.5 have grouped queries, biases and a tied head. Beside them, as a control, the same six on q and v
# of Llama 2 7B, which has none of that: **there four of the six are right**. One model is not enough to test a count.

# %%
qwen = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
qwen |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
small = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}
large = {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960}
MODELS = {
    "Qwen2.5 0.5B": (qwen | small, ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "Qwen2.5 1.5B": (qwen | large, ["q_proj", "k_proj", "v_proj", "down_proj"]),
    "Llama 2 7B": (accounting.NAMED["llama-2-7b"], ["q_proj", "v_proj"]),
}


def near_misses(config, targets, r=8):
    """{formula: (what it gives, the truth)}"""

    def lora(**other):
        return accounting.count(config | other, "lora", targets=targets, r=r)

    right, width = lora(), config["hidden_size"]
    bases = [layer.base for _, layer in right.model.named_modules() if isinstance(layer, minilora.LoRALinear)]
    shapes = [base.weight.data.shape for base in bases]
    biases = sum(base.bias.data.size for base in bases if base.bias is not None)
    trained = {
        "r · in · out": sum(r * n_out * n_in for n_out, n_in in shapes),
        "2 r d_model for each": 2 * r * width * len(shapes),
        "k, v as wide as q": lora(num_key_value_heads=config["num_attention_heads"]).trainable,
        "biases trained too": right.trainable + biases,
    }
    total = {
        "a tied head twice": lora(tie_word_embeddings=False).total,
        "no embedding": right.total - config["vocab_size"] * width,
    }
    found = {name: (value, right.trainable) for name, value in trained.items()}
    return found | {name: (value, right.total) for name, value in total.items()}


table = {name: near_misses(*how) for name, how in MODELS.items()}
print(f"{'':<22}" + "".join(f"{name:>24}" for name in table))
for i, what in ((0, "trained, truth"), (5, "total, truth")):
    print(f"{what:<22}" + "".join(f"{list(found.values())[i][1]:>24,}" for found in table.values()))
for formula in table["Llama 2 7B"]:
    cells = (found[formula] for found in table.values())
    print(
        f"{formula:<22}"
        + "".join(
            f"{value:>15,} " + (f"{'= truth':>8}" if value == true else f"{value / true:>7.2f}x")
            for value, true in cells
        )
    )

for name in ("Qwen2.5 0.5B", "Qwen2.5 1.5B"):
    for value, true in table[name].values():
        assert value != true
    assert len({value for value, _ in table[name].values()}) == 6  # so that a value tells which formula it was
assert sum(value == true for value, true in table["Llama 2 7B"].values()) == 4
assert table["Qwen2.5 0.5B"]["no embedding"][1] == 494_032_768
assert table["Qwen2.5 1.5B"]["no embedding"][1] == 1_543_714_304

# %% [markdown] tags=["notes"]
# 6 min. Cover the names of the rows, show the numbers for 0.5B, and let the class say which mistake made which number.
#
# Ask: why do four of the six agree for Llama 2 7B? (Square q and v, one head of k and v for each of q, no biases, no
# tie.)
#
# Usual wrong answer: "my formula gave the number that the paper prints, so it is right." It was one configuration.

# %% [markdown]
# For GPT-3 the LoRA paper prints another total, 175,255.8M, and says that its checkpoint is 10,000 times smaller at
# $r = 4$. The ratio can be computed:

# %%
gpt3 = accounting.count("gpt3-175b", "lora", targets=["q_proj", "v_proj"], r=4)
print(f"{gpt3.total:,} / {gpt3.trainable:,} = {gpt3.total / gpt3.trainable:,.0f}")
assert round(gpt3.total / gpt3.trainable) == 9_251

# %% [markdown] tags=["notes"]
# 3 min. The most quoted number of LoRA, recomputed: 9,251. Ask: what does it not say? (Anything about memory or time.)
#
# Usual wrong answer: "10,000 times less memory." That is sections 2 and 4.

# %% [markdown]
# ## 2. Bytes
#
# A training step holds five things: the **weights**; a **gradient** for each parameter that learns; two numbers of
# **optimizer state** for each of them (Adam's $m$ and $v$); the **activations** (激活值), which forward (前向传播) has
# kept for backward (反向传播); and, for a moment, whatever is being computed. LoRA shrinks the second and the third to
# nearly nothing. The fourth it hardly touches:
#
# $$dW = dy^\top x \qquad dA = dh^\top x \qquad \text{with } h = x A^\top \; (N, r)$$
#
# both need the layer's input $x$ $(N, in)$. Frozen (冻结) or adapted, the softmax keeps its $(T, T)$ weights, a norm
# its $\hat x$, the nonlinearity its slope. Only what is *neither trained nor adapted* drops its input, and with $A$
# frozen as well (LoRA-FA, Zhang et al., 2023) only $h$, $r$ numbers a token, is kept for $dB$.
#
# The **ledger** lists those arrays, one by one, with the reason for each. Here it is for one step of the model above.

# %%
ids = rng.integers(0, 256, (4, 64))
logits, cache = model.forward(ids)
kept = accounting.ledger(model, batch=4, tokens=64, loss=False)
for row in accounting.report.grouped(kept)[:8]:
    print(f"{row.layer:<26} {row.what:<11} {row.count} x {row.shape!s:<18} {row.nbytes / 1024:>7,.0f} KiB   {row.why}")
assert accounting.nbytes(cache) == sum(array.nbytes for array in kept)

# %% [markdown]
# The sum of the ledger is the size of the cache, to the byte: the assert above compared them. So the formula can be
# trusted for a model that does not fit into this machine. A step of Llama 2 7B in 16 bits, 2048 tokens:


# %%
def llama(method, **how):
    return accounting.count("llama-2-7b", method, tokens=2048, **how)


half = {"dtype": "bfloat16"}
ways = {
    "full": llama("full", **half),
    "LoRA": llama("lora", targets="all-linear", **half),
    "LoRA-FA": llama("lora-fa", targets="all-linear", **half),
    "LoRA, recomputed": llama("lora", targets="all-linear", recompute=True, **half),
    "QLoRA, recomputed": llama("qlora", recompute=True),
}
memory = {name: account.memory() for name, account in ways.items()}
trained_gib = {name: (m["gradients"] + m["optimizer"]) / 2**30 for name, m in memory.items()}

parts = {"weights": grey, "gradients": blue, "optimizer": light, "activations": orange}
figure, ax = plt.subplots(figsize=(11, 4.8))
left = np.zeros(len(ways))
for part, color in parts.items():
    gib = np.array([m[part] for m in memory.values()]) / 2**30
    bars = ax.barh(list(ways), gib, left=left, color=color, label=part)
    left += gib
ax.bar_label(bars, [f" {total:.1f}" for total in left])
ax.invert_yaxis()
ax.set_title(
    f"LoRA takes gradients and optimizer state\n"
    f"from {trained_gib['full']:.0f} to {trained_gib['LoRA']:.1f} GiB; the rest stays"
)
ax.set(xlabel="GiB of a step: Llama 2 7B, 2048 tokens")
ax.margins(x=0.1)
ax.legend(loc="lower right")
plt.show()

# %% [markdown] tags=["notes"]
# 7 min. The ledger first: ask which rows vanish if q_proj is frozen without an adapter. (Its x, unless another needs
# it.)
#
# Ask: LoRA trains a 337th of the parameters. Why does the orange part not shrink? (dA = dhᵀ x needs the same x as dW.)
#
# Usual wrong answer: "LoRA saves activation memory, because fewer gradients are computed."

# %% [markdown]
# Three savings, each of a different part: LoRA for gradients and optimizer state, four bits for the weights,
# recomputation (重计算) for the activations (each block keeps its input and is run again before its backward: this
# costs the FLOPs of one more forward, and saves about nine tenths of the cache).

# %%
assert memory["LoRA"]["weights"] > memory["full"]["weights"]  # A and B are added
assert memory["LoRA"]["optimizer"] < 0.01 * memory["full"]["optimizer"]
assert memory["LoRA"]["activations"] > 0.99 * memory["full"]["activations"]
assert memory["LoRA-FA"]["activations"] < 0.9 * memory["LoRA"]["activations"]
assert memory["LoRA, recomputed"]["activations"] < 0.11 * memory["LoRA"]["activations"]
assert memory["QLoRA, recomputed"]["weights"] < 0.3 * memory["LoRA"]["weights"]

# %% [markdown]
# ### Four bits, counted exactly
#
# NF4 (QLoRA, Dettmers et al., 2023) stores a weight in 4 bits, and a scale (缩放因子) for every 64 weights. A float32
# scale adds $32/64 = 0.5$ bits; quantising the scales too (8 bits each, a float32 for every 256 of them) leaves
# $8/64 + 32/(64 \cdot 256) = 0.127$:

# %%
n = 4096 * 4096
for double in (False, True):
    print(f"double quantisation {double!s:<6} {accounting.nf4_bits(n, double) / n:.5f} bits a weight")
saved = (accounting.nf4_bits(n, False) - accounting.nf4_bits(n, True)) / n * 6.5e9 / 8 / 2**30
print(f"for 6.5 billion weights double quantisation saves {saved:.1f} GiB")
assert round(saved, 1) == 0.3
assert accounting.nf4_bits(n, False) == 4.5 * n
assert accounting.nf4_bits(n, True) == 4 * n + 8 * n // 64 + 32 * n // (64 * 256) + 32  # and one mean for the tensor

# %% [markdown]
# And live: a step of QLoRA. The matrices of the blocks are held in four bits, the embedding in bfloat16, which is two
# bytes a number; norms stay in float32, and LoRA is attached as to any model. The codes are all that is held: a product
# decodes some rows of $\hat W$, uses them, and lets them go, in the forward and once more in the backward.

# %%
four = minilora.load_pretrained("builtin", quantize="nf4-dq")
minilora.attach_lora(four, "all-linear", r=8, rng=0)
account = accounting.count(four, targets="all-linear", r=8, batch=4, tokens=64)
labels = np.random.default_rng(1).integers(0, 256, ids.shape)
logits, cache = four.forward(ids)
_, of_loss = ops.cross_entropy_forward(logits, labels)
grads, optimizer = minilora.Gradients(), minilora.AdamW(four.trainable_parameters(), lr=1e-3)
four.backward(ops.cross_entropy_backward(1.0, of_loss), cache, grads)
optimizer.step(grads)
held = accounting.memory(four, [cache, of_loss], grads, optimizer)

for kind, array in account.weights().items():
    print(f"{kind:<26}{array.nbytes:>12,} B   {8 * array.nbytes / array.weights:7.4f} bits of a weight")
for part in ("gradients", "optimizer", "cache"):
    print(f"{part:<26}{held[part]:>12,} B")
print(f"{'one W at a time':<26}{account.decoded:>12,} B   decoded for a product, and let go")

counted = account.memory()
assert held == {"cache": counted.pop("activations"), **counted}  # to the byte
shapes = [m.base.weight.data.shape for _, m in four.named_modules() if isinstance(m, minilora.LoRALinear)]
blocks = [-(-n_out * n_in // 64) for n_out, n_in in shapes]
by_formula = {
    "codes": sum(n_out * n_in // 2 for n_out, n_in in shapes),
    "absmax": sum(blocks),
    "nested_absmax": sum(4 * -(-n // 256) for n in blocks),
    "offset": 4 * len(shapes),
}
assert by_formula == {name: account.weights()[f"{name} of nf4-dq"].nbytes for name in by_formula}
in_float32 = accounting.count("builtin", "lora", targets="all-linear", r=8, batch=4, tokens=64).memory()
print(
    f"weights: {held['weights'] / in_float32['weights']:.2f} of float32's; a step: "
    f"{sum(held.values()) / sum(in_float32.values()):.2f}"
)
assert held["cache"] == in_float32["activations"]  # four bits save weights, and nothing else

# %% [markdown] tags=["notes"]
# 6 min. Four bits are not four: 4.5, or 4.127 with quantised scales. Ask: how far apart are they for a 7B model? (0.3
# GiB.)
#
# Then the live ledger: which of its rows would a smaller batch shrink? (The cache.) Which rows train? (None of the
# codes: their gradients do not exist.)
#
# Usual wrong answer: "QLoRA trains 4-bit weights." It trains A and B, in float32, beside weights that are constant.

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
# Two thirds and a little more, and not a tenth, because $dx$ must flow through every frozen layer. At
# $r = \frac{in \cdot out}{3 (in + out)}$, for a square matrix $C/6$, nothing is saved at all.
#
# Is that what is executed? Here every product of one step is counted while it runs:

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

# %% [markdown]
# For whole models, with all matrices of the blocks adapted and without attention's own products, the curve begins below
# two thirds, by at most 0.004: nothing learns below the first adapted layers, so they make no $dx$, which full
# fine-tuning (全量微调) needs for the embedding.

# %%
ranks = np.unique(np.geomspace(1, 1024, 40).astype(int))
figure, ax = plt.subplots(figsize=(9.5, 4.4))
ratios = {}
for name, color in (("gpt2", grey), ("llama-2-7b", blue), ("llama-2-70b", orange)):
    account = accounting.count(name, "full", tokens=64)
    full = sum(part.linear for part in account.flops())
    linears = (layer for _, layer in account.model.named_modules() if isinstance(layer, minilora.Linear))
    most = min(min(layer.weight.data.shape) for layer in linears)
    shown = [r for r in map(int, ranks) if r <= most]
    steps = (accounting.count(name, "lora", targets="all-linear", r=r, tokens=64).flops() for r in shown)
    ratios[name] = {r: sum(p.linear + p.adapter for p in step) / full for r, step in zip(shown, steps, strict=True)}
    ax.plot(ratios[name].keys(), ratios[name].values(), color=color, label=name)
for height, words in ((2 / 3, "2/3"), (1, "full fine-tuning")):
    ax.axhline(height, ls=":", color="black", lw=1.5)
    ax.text(1.3, height + 0.01, words, size=13)
ax.set(xscale="log", xlabel="rank", ylabel="FLOPs of linear layers\nLoRA / full", ylim=(0.6, 1.3))
ax.set_title(f"In linear layers LoRA costs {ratios['llama-2-7b'][8]:.3f} of full fine-tuning\n(Llama 2 7B, rank 8)")
ax.legend(loc="upper left")
plt.show()
assert all(2 / 3 - 0.004 < found[1] < 2 / 3 for found in ratios.values())
assert round(ratios["llama-2-7b"][8], 3) == 0.667
assert round(accounting.break_even_rank(4096, 4096)) == round(4096 / 6)
assert ratios["llama-2-7b"][1024] > 1  # far above the break-even rank LoRA costs more than full fine-tuning

# %% [markdown] tags=["notes"]
# 6 min. Three products of a linear layer on the board: y, dx, dW. Cross out the one that freezing spares.
#
# Ask: at which rank does LoRA cost as much as full fine-tuning? (C/6 for a square matrix: 683 at width 4096.)
#
# Usual wrong answer: "only a hundredth is trained, so the backward is a hundred times cheaper."

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
    assert [round(flops / dense, 3) for flops in pair.values()] == [0.004, 1.016]

# %% [markdown] tags=["notes"]
# 2 min. The same four products, both ways: 0.004 or 1.016 of a dense one. Ask: which way does autograd take? (That of
# the forward. Whoever writes x (B A)ᵀ pays for three dense products, y, dx and the gradient of B A, as full fine-tuning
# does.)

# %% [markdown]
# ## 4. Three factors
#
# Now all three for one model and one method: full fine-tuning divided by LoRA of rank 8 on every matrix.
# Llama 2 7B is counted from its shapes alone, for one sequence of 2048 tokens in 16 bits. The control is the built-in
# model, for which the same factors are *measured*: one step of AdamW is run, in full and by LoRA, and the bytes of its
# arrays and the FLOPs of its products are counted.


# %%
NAMES = "trained\nparameters", "bytes\nof a step", "FLOPs\nof a step"


def factors(full, lora):
    """How many times less LoRA has of each."""
    return {name: full[name] / lora[name] for name in full}


def by_formula(source, method, **how):
    targets = "all-linear" if method == "lora" else None
    account = accounting.count(source, method, targets=targets, **how)
    flops = sum(part.products for part in account.flops())
    return dict(zip(NAMES, (account.trainable, sum(account.memory().values()), flops), strict=True))


def live(method, batch=4, tokens=64):
    """The same three, of a step that is run."""
    model = minilora.load_pretrained("builtin")
    if method == "lora":
        minilora.attach_lora(model, "all-linear", r=8, rng=0)
    ids, labels = (np.random.default_rng(seed).integers(0, 256, (batch, tokens)) for seed in (0, 1))
    grads, optimizer, cache = minilora.Gradients(), minilora.AdamW(model.trainable_parameters(), lr=1e-3), []

    def forward_and_backward():
        logits, of_model = model.forward(ids)
        _, of_loss = ops.cross_entropy_forward(logits, labels)
        model.backward(ops.cross_entropy_backward(1.0, of_loss), of_model, grads)
        cache.extend([of_model, of_loss])

    flops = accounting.executed_flops(model, forward_and_backward)["products"]
    optimizer.step(grads)
    held = accounting.memory(model, cache, grads, optimizer)
    return dict(zip(NAMES, (accounting.count_parameters(model)["trainable"], sum(held.values()), flops), strict=True))


llama_7b = factors(*(by_formula("llama-2-7b", method, tokens=2048, dtype="bfloat16") for method in ("full", "lora")))
formula = {method: by_formula("builtin", method, batch=4, tokens=64) for method in ("full", "lora")}
measured = {method: live(method) for method in ("full", "lora")}
assert measured == formula  # parameters, bytes and FLOPs, to the last one
control = factors(measured["full"], measured["lora"])
for name, value in llama_7b.items():
    print(f"{' '.join(name.split()):<20} Llama 2 7B {value:7.2f}   built-in {control[name]:6.2f}")

p, b, f = llama_7b.values()
assert round(p) == 337
assert round(b, 1) == 2.8
assert round(f, 1) == 1.5

# %%
figure, ax = plt.subplots(figsize=(11.5, 6))
index = np.arange(3)
for found, shift, color, label in [
    (llama_7b, -0.19, orange, "Llama 2 7B, by the formulas"),
    (control, 0.19, grey, "the built-in model, measured"),
]:
    bars = ax.bar(index + shift, [value - 1 for value in found.values()], 0.36, bottom=1, color=color, label=label)
    ax.bar_label(bars, [f"{value:.3g}" for value in found.values()], padding=4, weight="bold")
ax.axhline(1, color="black", lw=1.5)
ax.set_xticks(index, list(llama_7b))
ax.set(yscale="log", ylabel="full fine-tuning / LoRA (log scale)", ylim=(1, 900))
ax.set_yticks([1, 3, 10, 30, 100, 300], ["1: nothing saved", "3", "10", "30", "100", "300"])
ax.minorticks_off()
ax.set_title(
    f"Llama 2 7B, LoRA of rank 8: {p:.0f} times fewer trained parameters,\n"
    f"{b:.1f} times fewer bytes, {f:.1f} times fewer FLOPs"
)
ax.legend()
plt.show()

# %% [markdown] tags=["notes"]
# 6 min. Compare with the guesses of the beginning. Read the bars from left to right: what is trained, what it weighs,
# what it costs.
#
# Ask: which of the three grow with the width of the model? (Parameters with it, bytes a little; FLOPs end near 3/2.)
#
# Usual wrong answer: "337 times fewer parameters, so 337 times faster." The FLOPs cannot fall much below two thirds.

# %% [markdown]
# The three factors have three reasons. Parameters: $r\,(in + out)$ against $in \cdot out$, which grows with the width.
# Bytes: only gradients and optimizer state go, while weights and activations stay. FLOPs: one product of three goes,
# and about $3/2$ is the limit, because $dx$ must flow through every frozen layer. The paper's third of
# the memory belongs to the second, and its quarter of the time to the third; FLOPs alone would save a third.

# %%
assert f < 1.5
assert control["trained\nparameters"] < p
assert 2.5 < b < 3.5

# %% [markdown]
# ## 5. The papers, audited
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

# %% [markdown] tags=["notes"]
# 3 min. Half of fifty printed numbers follow from the paper's own formulas, four of them at a fitted r. Five are cut
# off where they should be rounded, twenty differ. Ask: which one would you not have believed? (4.7M for DeBERTa is
# twice the count.)

# %% [markdown]
# ## Try it
#
# Say what you expect, then run it.
# 1. `accounting.count("llama-3.1-8b", "dora", r=16)`: is more trained than by LoRA of the same rank, and by how much?
# 2. A batch twice as large: which of the four parts of memory does it double? Try `batch=2` in `llama`.
# 3. Which factor of section 4 changes most from `r=8` to `r=64`, and which hardly at all? (`minilora count --compare
#    full,lora,vera --plot costs.png` draws others.)
#
# **Not shown here:** seconds (FLOPs are no time: benchmarks measure that), memory that an allocator holds beside the
# arrays, mixed precision with float32 copies of the weights (it makes the factor of the bytes larger), several devices;
# and Llama 2 7B itself, which is counted from its shapes and not run.
