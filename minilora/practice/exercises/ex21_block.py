"""21 · A block

The transformer block of GPT-2, with LoRA on three of its matrices:

    h1 = norm(x)     q, k, v = q(h1), k(h1), v(h1)     o = attention(q, k, v)
    x1 = x + W_o o
    h2 = norm(x1)    u = up(h2)                        a = gelu(u)
    y  = x1 + W_down a

    q, v and up are LoRA layers: h Wᵀ + s (h Aᵀ) Bᵀ, s = α/r, with one α and r.
    k, W_o and W_down are plain linear layers, without biases.

Only the A and B are trained. Every W, g and b is frozen.

    dy, dx, x, x1, h1, h2, o    (batch, tokens, width)
    q, k, v                     (batch, heads, tokens, width/heads)
    u, a                        (batch, tokens, hidden)

block_forward, in this file, is the whole forward. Its cache holds all of these
values by name, and params the weights, with alpha and heads. Every part has
its backward in this file, too. Write how they are joined: from dy, which is
∂L/∂y, return dx = ∂L/∂x and grads, a dict of the gradients of what is trained:

    dA_q  dB_q  dA_v  dB_v  dA_up  dB_up

Each has the shape of what it is the gradient of. There are no other keys.

By hand, with one token, one head, width 2 and ε so small that it is left out:
x = (3, 1) is normalised to h1 = (1, -1). One token attends to itself alone, so
that o = v. With W_o the unit matrix and W_down = 0, y = x + v, and for
dy = (5, 7) dv = (5, 7). With α = 3, r = 1, A_v = (2, 1), B_v = (1, 0)ᵀ:
A_v h1 = 1, dB_v = 3 · (5, 7)ᵀ = (15, 21)ᵀ and dA_v = 3 · 5 · h1 = (15, -15).
"""

import numpy as np


def norm(x, g, b):
    return g * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + b


def norm_backward(dy, x, g):
    sigma = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    n, dn = (x - x.mean(-1, keepdims=True)) / sigma, dy * g
    return (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True)) / sigma


def linear(x, W):
    return x @ W.T


def linear_backward(dy, W):
    return dy @ W


def lora(x, W, A, B, s):
    return x @ W.T + s * x @ A.T @ B.T


def lora_backward(dy, x, W, A, B, s):
    dh = s * dy @ B
    dA = np.einsum("btr,bti->ri", dh, x)
    dB = s * np.einsum("bto,btr->or", dy, x @ A.T)
    return dy @ W + dh @ A, dA, dB


def weights(q, k):
    """Softmax of the scores, causal."""
    S = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    P = np.exp(np.where(np.tri(S.shape[-1]), S - S.max(-1, keepdims=True), -np.inf))
    return P / P.sum(-1, keepdims=True)


def attention(q, k, v):
    return weights(q, k) @ v


def attention_backward(do, q, k, v):
    P, dP = weights(q, k), do @ v.swapaxes(-1, -2)
    dS = P * (dP - (P * dP).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return dS @ k, dS.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ do


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def gelu_backward(dy, x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return dy * (1 + t + x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x)) / 2


def block_forward(x, params):
    """Return y, cache."""
    p, heads, s = params, params["heads"], params["alpha"] / len(params["A_q"])
    batch, tokens, width = x.shape
    h1 = norm(x, p["g1"], p["b1"])
    q = lora(h1, p["W_q"], p["A_q"], p["B_q"], s)
    k = linear(h1, p["W_k"])
    v = lora(h1, p["W_v"], p["A_v"], p["B_v"], s)
    q, k, v = (z.reshape(batch, tokens, heads, -1).swapaxes(1, 2) for z in (q, k, v))
    o = attention(q, k, v).swapaxes(1, 2).reshape(batch, tokens, width)
    x1 = x + linear(o, p["W_o"])
    h2 = norm(x1, p["g2"], p["b2"])
    u = lora(h2, p["W_up"], p["A_up"], p["B_up"], s)
    a = gelu(u)
    y = x1 + linear(a, p["W_down"])
    return y, {"x": x, "h1": h1, "q": q, "k": k, "v": v, "o": o, "x1": x1, "h2": h2, "u": u, "a": a}


def block_backward(dy, cache, params):
    """Return dx, grads.

    >>> I, zero = np.eye(2), np.zeros((2, 2))
    >>> params = {"g1": np.ones(2), "b1": np.zeros(2), "g2": np.ones(2), "b2": np.zeros(2), "alpha": 3.0, "heads": 1}
    >>> params |= {"W_q": I, "W_k": I, "W_v": I, "W_o": I, "W_up": I, "W_down": zero}
    >>> A, B = np.array([[2.0, 1.0]]), np.array([[1.0], [0.0]])
    >>> params |= {"A_q": A, "B_q": B, "A_v": A, "B_v": B, "A_up": A, "B_up": B}
    >>> y, cache = block_forward(np.array([[[3.0, 1.0]]]), params)
    >>> dx, grads = block_backward(np.array([[[5.0, 7.0]]]), cache, params)
    >>> grads["dA_v"].round(3), grads["dB_v"].round(3)
    (array([[ 15., -15.]]), array([[15.],
           [21.]]))
    """
    ### BEGIN SOLUTION
    p, c, heads, s = params, cache, params["heads"], params["alpha"] / len(params["A_q"])
    batch, tokens, width = dy.shape

    # y = x1 + W_down gelu(up(norm(x1)))
    da = linear_backward(dy, p["W_down"])
    du = gelu_backward(da, c["u"])
    dh2, dA_up, dB_up = lora_backward(du, c["h2"], p["W_up"], p["A_up"], p["B_up"], s)
    dx1 = dy + norm_backward(dh2, c["x1"], p["g2"])

    # x1 = x + W_o attention(q(h1), k(h1), v(h1)), h1 = norm(x)
    do = linear_backward(dx1, p["W_o"]).reshape(batch, tokens, heads, -1).swapaxes(1, 2)
    dq, dk, dv = attention_backward(do, c["q"], c["k"], c["v"])
    dq, dk, dv = (dz.swapaxes(1, 2).reshape(batch, tokens, width) for dz in (dq, dk, dv))
    dh_q, dA_q, dB_q = lora_backward(dq, c["h1"], p["W_q"], p["A_q"], p["B_q"], s)
    dh_k = linear_backward(dk, p["W_k"])
    dh_v, dA_v, dB_v = lora_backward(dv, c["h1"], p["W_v"], p["A_v"], p["B_v"], s)
    dx = dx1 + norm_backward(dh_q + dh_k + dh_v, c["x"], p["g1"])

    return dx, {"dA_q": dA_q, "dB_q": dB_q, "dA_v": dA_v, "dB_v": dB_v, "dA_up": dA_up, "dB_up": dB_up}
    ### END SOLUTION


### THE CHECK

from ...adapters.lora import LoRALinear
from ...nn import MLP, Attention, Gelu, Gradients, LayerNorm, Linear, Parameter, PreNormBlock
from ..edits import edited
from ..exercise import Exercise, Viva
from ..parts import ValueAndGradients

# batch, tokens, heads, width of a head, hidden, r of each case
SHAPES = [
    (3, 4, 2, 3, 7, 4),
    (2, 5, 3, 2, 8, 1),
    (4, 3, 4, 2, 5, 3),
    (1, 6, 2, 4, 9, 5),
    (5, 2, 3, 3, 9, 2),
    (2, 3, 1, 5, 4, 6),
]
TRAINED = [f"{letter}_{layer}" for layer in ("q", "v", "up") for letter in "AB"]


def draw(rng, i):
    batch, tokens, heads, D, hidden, r = SHAPES[i]
    width = heads * D

    def normal(*shape):
        return rng.standard_normal(shape)

    params = {"alpha": r + float(rng.uniform(1.5, 5)), "heads": heads}
    for n in "12":
        params |= {f"g{n}": rng.uniform(0.5, 2, width), f"b{n}": normal(width)}
    sizes = {"q": width, "k": width, "v": width, "o": width, "up": hidden}
    params |= {f"W_{layer}": normal(out, width) / np.sqrt(width) for layer, out in sizes.items()}
    params["W_down"] = normal(width, hidden) / np.sqrt(hidden)
    for layer in ("q", "v", "up"):
        params |= {f"A_{layer}": normal(r, width) / width, f"B_{layer}": normal(sizes[layer], r) / r}
    x = 2 * normal(batch, tokens, width)
    return {"dy": normal(*x.shape), "cache": block_forward(x, params)[1], "params": params}


def truth(dy, cache, params):
    """By minilora's own block."""
    p, of = params, {}

    def frozen(layer):
        return Linear(Parameter(p[f"W_{layer}"], trainable=False))

    def adapted(layer):
        tensors = {"lora_A": p[f"A_{layer}"], "lora_B": p[f"B_{layer}"]}
        adapter = LoRALinear.of(frozen(layer), tensors, r=len(p["A_q"]), alpha=p["alpha"], rslora=False, dropout=0.0)
        of.update({f"dA_{layer}": adapter.lora_A, f"dB_{layer}": adapter.lora_B})
        return adapter

    D = cache["q"].shape[-1]
    attention = Attention(adapted("q"), frozen("k"), adapted("v"), frozen("o"), D, causal=True)
    mlp = MLP(adapted("up"), Gelu(approximate=True), frozen("down"))
    block = PreNormBlock(LayerNorm(p["g1"], p["b1"]), attention, LayerNorm(p["g2"], p["b2"]), mlp)
    grads = Gradients()
    dx = block.backward(dy, block.forward(cache["x"])[1], grads)
    return dx, {name: grads[parameter] for name, parameter in of.items()}


block = ValueAndGradients(block_backward, " ".join(["dx", *(f"d{name}" for name in TRAINED)]), truth=truth, draw=draw)


SCALE = 'params["alpha"] / len(params["A_q"])\n    batch, tokens, width = dy'
MISTAKES = [
    ("no_skip_around_attention", "{it} lacks the skip path around the attention",
     "If the attention gave 0 for every x, what would x1 be, and what then is dx?",
     ("dx = dx1 + norm_backward(", "dx = norm_backward(")),
    ("no_skip_around_mlp", "{it} lacks the skip path around the MLP: of dy, only what went through the MLP arrives",
     "If W_down were 0, what would y be, and what then is the gradient of x1?",
     ("dx1 = dy + norm_backward(", "dx1 = norm_backward(")),
    ("skip_around_attention_twice", "{it} has the skip path around the attention twice",
     "x is added to the attention's output once: how often is dx1 in your dx?",
     ("dx = dx1 + norm_backward(", "dx = 2 * dx1 + norm_backward(")),
    ("skip_around_mlp_twice", "{it} has the skip path around the MLP twice",
     "x1 is added to the MLP's output once: how often is dy in your dx1?",
     ("dx1 = dy + norm_backward(", "dx1 = 2 * dy + norm_backward(")),
    ("no_attention_branch", "{it} is the gradient of x1: what comes back through the attention is missing",
     "By which two paths does x reach x1?",
     ('dx = dx1 + norm_backward(dh_q + dh_k + dh_v, c["x"], p["g1"])', "dx = dx1")),
    ("skip_through_norm_1", "in {it}, the skip path around the attention goes through the first norm, too",
     "Is it x or norm(x) to which the attention's output is added?",
     ("dx1 + norm_backward(dh_q", "norm_backward(dx1 + dh_q")),
    ("skip_through_norm_2", "in {it}, the skip path around the MLP goes through the second norm, too",
     "Is it x1 or norm(x1) to which the MLP's output is added?", ("dy + norm_backward(dh2", "norm_backward(dy + dh2")),
    ("dy_added_again", "{it} has dy once more than it may: dx1 brings it along already",
     "Write dx as a sum of three terms: which of them hold dy?",
     ("dx = dx1 + norm_backward(", "dx = dy + dx1 + norm_backward(")),
    ("dy_for_dx1", "the skip path around the attention carries dy in {it}, not the gradient of x1",
     "By which two paths does x1 reach y? Both lie above the attention's skip path.",
     ("dx = dx1 + norm_backward(", "dx = dy + norm_backward(")),
    ("attention_gets_dy", "the attention's branch is fed with dy in {it}, not with the gradient of x1",
     "Where does the attention's output go in the forward: to y directly, or through the MLP too?",
     ('linear_backward(dx1, p["W_o"])', 'linear_backward(dy, p["W_o"])')),
    ("through_q_alone", "in {it}, what comes back to h1 comes through q alone", "How many layers read h1?",
     ("norm_backward(dh_q + dh_k + dh_v", "norm_backward(dh_q")),
    ("through_v_alone", "in {it}, what comes back to h1 comes through v alone", "How many layers read h1?",
     ("norm_backward(dh_q + dh_k + dh_v", "norm_backward(dh_v")),
    ("nothing_through_k", "in {it}, nothing comes back to h1 through k, which is frozen",
     "Does a frozen layer stop the gradient of what it reads?", ("dh_q + dh_k + dh_v", "dh_q + dh_v")),
    ("mean_of_q_k_v", "{it} has the mean of what comes back through q, k and v, where the sum belongs",
     "If h1 moves by a little, do its effects through q, k and v add up?",
     ("dh_q + dh_k + dh_v", "(dh_q + dh_k + dh_v) / 3")),
    ("output_of_norm_1", "in {it}, the backward of the first norm is taken at its output h1, not at its input x",
     "Which of the two did the norm divide by its deviation?", ('dh_v, c["x"]', 'dh_v, c["h1"]')),
    ("output_of_norm_2", "in {it}, the backward of the second norm is taken at its output h2, not at its input x1",
     "Which of the two did the norm divide by its deviation?", ('(dh2, c["x1"]', '(dh2, c["h2"]')),
    ("input_of_norm_1", "{it} is taken with x, where the layer has read h1",
     "What does this layer multiply in the forward?", ('c["h1"], p["W_', 'c["x"], p["W_')),
    ("input_of_norm_2", "{it} is taken with x1, where the layer has read h2",
     "What does this layer multiply in the forward?", ('(du, c["h2"]', '(du, c["x1"]')),
    ("no_norm_1", "{it} lacks the backward of the first norm: the gradient of h1 is taken for that of x",
     "What stands between x and h1?", ('norm_backward(dh_q + dh_k + dh_v, c["x"], p["g1"])', "dh_q + dh_k + dh_v")),
    ("no_norm_2", "{it} lacks the backward of the second norm: the gradient of h2 is taken for that of x1",
     "What stands between x1 and h2?", ('norm_backward(dh2, c["x1"], p["g2"])', "dh2")),
    ("gelu_at_its_output", "in {it}, the slope of GELU is taken at its output a, not at its input u",
     "At which of the two values did the forward call gelu?",
     ('gelu_backward(da, c["u"])', 'gelu_backward(da, c["a"])')),
    ("heads_not_split", "in {it}, the gradient of o is cut into heads along the wrong axis: tokens and heads are mixed",
     "The forward has a reshape and a swapaxes: which of them does your split of do lack?",
     (".reshape(batch, tokens, heads, -1).swapaxes(1, 2)\n    dq", ".reshape(batch, heads, tokens, -1)\n    dq")),
    ("heads_not_merged",
     "in {it}, the heads of dq, dk and dv are merged in the wrong order: tokens and heads are mixed",
     "Of (batch, heads, tokens, D): which two axes must be neighbours before they become one?",
     ("(dz.swapaxes(1, 2).reshape(batch", "(dz.reshape(batch")),
    ("heads_never_moved",
     "in {it}, heads and tokens are mixed, both where do is split and where dq, dk and dv are merged",
     "Of (batch, heads, tokens, D): which two axes must be neighbours before they become one?",
     (".reshape(batch, tokens, heads, -1).swapaxes(1, 2)\n    dq", ".reshape(batch, heads, tokens, -1)\n    dq"),
     ("(dz.swapaxes(1, 2).reshape(batch", "(dz.reshape(batch")),
    ("heads_interleaved",
     "in {it}, the merged dq, dk and dv have a number of every head in turn, instead of one head after another",
     "In a row of q, before it is split, what comes right after the first entry of head 0?",
     ("(dz.swapaxes(1, 2).reshape(batch", "(dz.transpose(0, 2, 3, 1).reshape(batch")),
    ("no_output_projection", "{it} lacks W_o: the gradient of x1 is taken for that of o",
     "What stands between o and x1?", ('linear_backward(dx1, p["W_o"]).reshape', "dx1.reshape")),
    ("output_projection_transposed", "in {it}, W_o is transposed as in the forward",
     "Which of the two parts does dy @ W, and which x @ W.T? W_o is square, and so both fit.",
     ('linear_backward(dx1, p["W_o"])', 'linear(dx1, p["W_o"])')),
    ("key_projection_transposed", "in {it}, W_k is transposed as in the forward",
     "Which of the two parts does dy @ W, and which x @ W.T? W_k is square, and so both fit.",
     ('linear_backward(dk, p["W_k"])', 'linear(dk, p["W_k"])')),
    ("q_and_k_exchanged", "in {it}, the gradients of q and k are exchanged",
     "In which order does attention_backward return its three results?",
     ("dq, dk, dv = attention_backward", "dk, dq, dv = attention_backward")),
    ("no_scale", "{it} lacks the scale α/r", "Which scale did the forward use?",
     (SCALE, "1\n    batch, tokens, width = dy")),
    ("not_divided_by_r", "the scale in {it} is α, not divided by r", "Which scale did the forward use?",
     (SCALE, 'params["alpha"]\n    batch, tokens, width = dy')),
    ("frozen_weights_get_gradients", "{it} gives gradients to frozen weights: grads may only hold those of A and B",
     "What would an optimizer do with a gradient that it finds there?",
     ('return dx, {"dA_q"', 'return dx, {"dW_o": p["W_o"], "dA_q"')),
]  # fmt: skip
edited(block, MISTAKES)


EXERCISE = Exercise(
    title="A block",
    kind="write",
    minutes=45,
    difficulty=4,
    needs=["04", "12", "13"],
    parts=[block],
    hints=(
        "Read block_forward from its last line to its first. Each line becomes one line of yours: the gradient of its "
        "right side, from the gradient of its left. Begin with a, then u, h2 and x1.",
        "Where a value is read more than once, what comes back is added up: x1 and x are read twice, h1 three times. "
        "And where the forward has moved an axis, so must you, the other way round.",
    ),
    viva=[
        Viva(
            "Every W is frozen. Why does this backward multiply by W_k, W_o and W_down all the same?",
            "Frozen means no dW. The gradient of what the layer reads still has to pass, for dx and for every adapter "
            "below: without it, q and v would learn nothing through W_o.",
            "To keep the shapes right. A frozen layer passes dy on as it is.",
        ),
        Viva(
            "Which values of the cache could be dropped if LoRA sat on q and v alone, and which not?",
            "h2, since it was kept for dA of up alone: the layer's dx needs no more than W. Everything else stays: x, "
            "x1 and u for norms and GELU, q, k, v for the attention, h1 for dA. o and a were not needed anyway.",
            "All but h1, since a frozen layer needs no activations.",
        ),
    ],
    asks=["B3", "B4", "E2"],
    derivation="",
)
