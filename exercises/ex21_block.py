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
    raise NotImplementedError
