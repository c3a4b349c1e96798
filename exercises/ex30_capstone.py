"""30 · Capstone

LoRA from the embedding to the file, in NumPy, with every gradient by hand.
Five functions are asked for, at the end of this file; how you write the rest
is up to you. The base is a Llama of one block, in float64:

    x = E[ids]     h1 = norm(x, g1)     q, k, v = q(h1), k(h1), v(h1)
    x1 = x + o(attention(rope(q), rope(k), v))      causal, scores / √D
    h2 = norm(x1, g2)    x2 = x1 + down(silu(gate(h2)) ∘ up(h2))
    logits = norm(x2, g3) Eᵀ      silu(z) = z / (1 + e⁻ᶻ)

    norm(x, g) = g ∘ x / √(mean(x²) + 1e-5), the mean over the last axis
    q k v o gate up down:  y = x Wᵀ + s (x Aᵀ) Bᵀ,  s = α/r, without biases

Heads lie side by side, each of width D. At position t, from 0 on, rope turns
each pair (a, b) = (x_i, x_{i+D/2}) of a head by φ = t θ^(-2i/D), i < D/2, to
(a cos φ - b sin φ, b cos φ + a sin φ).

base     a dict: E (vocabulary, width), g1, g2, g3, W_q, ..., W_down, each
         (out, in), and the numbers heads and theta. It is frozen.
adapter  a dict of 14: A_q (r, in), B_q (out, r), ..., A_down, B_down
ids      (batch, tokens), integers

logits(ids, base, adapter, alpha)     logits (batch, tokens, vocabulary)
gradients(ids, base, adapter, alpha)  loss and a dict: dA_q, dB_q, ... The loss
    is the mean cross-entropy of each next token, batch · (tokens - 1) of them.
train(texts, base, r, alpha)          an adapter for all seven layers; start,
    optimizer (AdamW, say) and number of steps are free. texts (n, tokens) are
    those of a task. On other texts of it, its loss may be 1 % above that of
    the reference, in 60 s of CPU; base stays as it is, to the last bit.
merge(base, adapter, alpha)           a base without need of an adapter
save(folder, adapter, alpha)          PEFT's adapter_config.json and
    adapter_model.safetensors, in float64 or float32, into a folder that is
    there. PEFT knows the block as model.layers.0 of base_model.model, with
    self_attn.q_proj to o_proj, mlp.gate_proj to down_proj; a tensor's name
    ends in .lora_A.weight or .lora_B.weight. It is a LORA for CAUSAL_LM.

task(seed) makes a task to practise on: a base, texts, other texts. The check
draws its own. By hand: where all 8 logits are equal, the loss is ln 8 = 2.079.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS = "q", "k", "v", "o", "gate", "up", "down"


def task(seed):
    """A base and two sets of texts (512, 16) for practice: most tokens follow from the one before the last."""
    rng = np.random.default_rng([seed, 30])
    vocabulary, width, hidden = 8, 24, 32
    sizes = dict.fromkeys("qkvo", (width, width)) | dict.fromkeys(["gate", "up"], (hidden, width))
    sizes["down"] = width, hidden
    base = {f"W_{name}": rng.standard_normal(shape) / np.sqrt(shape[1]) for name, shape in sizes.items()}
    base |= {"E": rng.standard_normal((vocabulary, width)) / np.sqrt(width), "heads": 2, "theta": 10.0}
    base |= {f"g{i}": np.ones(width) for i in (1, 2, 3)}
    texts, follows = rng.integers(vocabulary, size=(1024, 16)), rng.permutation(vocabulary)
    for t in range(2, 16):
        texts[:, t] = np.where(rng.random(1024) < 0.9, follows[texts[:, t - 2]], texts[:, t])
    return base, texts[:512], texts[512:]


# Your own functions come here, as many as you like.


def logits(ids, base, adapter, alpha):
    """Return the logits."""
    raise NotImplementedError


def gradients(ids, base, adapter, alpha):
    """Return loss, grads.

    >>> base, texts, _ = task(0)
    >>> adapter = {f"A_{name}": np.ones((2, base[f"W_{name}"].shape[1])) for name in LAYERS}
    >>> adapter |= {f"B_{name}": np.zeros((len(base[f"W_{name}"]), 2)) for name in LAYERS}
    >>> loss, grads = gradients(texts[:5], {**base, "E": np.ones((8, 24))}, adapter, 3.0)
    >>> float(loss.round(3)), grads["dA_q"].shape, float(abs(grads["dA_q"]).max())
    (2.079, (2, 24), 0.0)
    """
    raise NotImplementedError


def train(texts, base, r, alpha):
    """Return the trained adapter."""
    raise NotImplementedError


def merge(base, adapter, alpha):
    """Return another base, with W + s B A instead of each W.

    >>> base, adapter = {}, {}
    >>> for name in LAYERS:
    ...     base[f"W_{name}"] = np.diag([3.0])
    ...     adapter |= {f"A_{name}": np.diag([5.0]), f"B_{name}": np.diag([7.0])}
    >>> merge(base, adapter, 4.0)["W_q"]
    array([[143.]])
    """
    raise NotImplementedError


def save(folder, adapter, alpha):
    """Write the two files into the folder."""
    raise NotImplementedError
