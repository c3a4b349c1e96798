"""27 · Cache and swap

A model that writes text reads its own last token, many times over. The keys
and values of the tokens before do not change, and are kept: the KV cache. Here
the model is one head of attention, with LoRA on its keys and values:

    x = E[ids]     q = x W_qᵀ     k = x W_kᵀ + s (x A_kᵀ) B_kᵀ     v likewise
    logits = (x + W_o attention(rope(q), rope(k), v)) Eᵀ             s = α/r

    ids (n,)    E (vocabulary, width)    W_q, W_k, W_v (D, width)
    W_o (width, D)    A_k, A_v (r, width)    B_k, B_v (D, r)

forward, in this file, is the whole model for a whole text, whose first token
has position 0; its parts, linear, rope and attention, are yours to use.

Write decode(ids, cache, adapter, model). ids are the next tokens of a text,
one or more; cache is None before the first, and later what decode returned
last. Return the logits (n, vocabulary) of these n tokens, the same that

    forward(the whole text so far, adapter, model)[-n:]

has, and the new cache. What a cache holds is for you to choose. Tokens that
are in it are not computed again, as long as the adapter is the same object as
in the call before (`is`). If it is another, or none, the whole text is to be
seen with that one. Leave the given cache as it was: a prompt may be continued
more than once.

The check reads a text in seven calls, and its report names them:

    prompt  several tokens      swap   one token, with another adapter
    token   one                 after  one more
    chunk   several             base   several, without an adapter (None)
                                back   one, with the first adapter again

By hand: E = W_v = W_o = unit, of width 2; W_q = 0, so that a token sees itself
and all before it alike. Token 0, then token 1: o is the mean of (1, 0) and
(0, 1); the logits of token 1 are (0, 1) + (½, ½) = (½, 3/2). Token 1 again,
with an adapter of α = 2, r = 1, A_v = (1, 0), B_v = (0, 1)ᵀ: token 0 now has
v = (1, 2), o = ((1, 2) + (0, 1) + (0, 1))/3, and the logits are (1/3, 7/3).
"""

import numpy as np


def linear(x, name, adapter, model):
    """The layer q, k or v; with the adapter's two factors, where it has them."""
    y = x @ model[f"W_{name}"].T
    if adapter and f"A_{name}" in adapter:
        A, B = adapter[f"A_{name}"], adapter[f"B_{name}"]
        y += adapter["alpha"] / len(A) * x @ A.T @ B.T
    return y


def rope(x, positions, model):
    """x (n, D), each row turned by its position: entry i of the first half with entry i of the second."""
    half = x.shape[1] // 2
    angles = np.outer(positions, model["theta"] ** (-np.arange(half) / half))
    a, b = x[:, :half], x[:, half:]
    return np.hstack([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])


def attention(q, k, v, visible):
    """q (n, D), k and v (m, D). visible (n, m) is true, or 1, where a query sees a key."""
    S = np.where(visible, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    P = np.exp(S - S.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True) @ v


def forward(ids, adapter, model):
    """The logits (n, vocabulary) of a whole text."""
    x, n = model["E"][ids], len(ids)
    q, k, v = (linear(x, name, adapter, model) for name in "qkv")
    q, k = rope(q, np.arange(n), model), rope(k, np.arange(n), model)
    return (x + attention(q, k, v, np.tri(n)) @ model["W_o"].T) @ model["E"].T


def decode(ids, cache, adapter, model):
    """Return logits, cache.

    >>> I, zero = np.eye(2), np.zeros((2, 2))
    >>> model = {"E": I, "W_q": zero, "W_k": I, "W_v": I, "W_o": I, "theta": 10.0}
    >>> logits, cache = decode(np.array([0]), None, None, model)
    >>> logits, cache = decode(np.array([1]), cache, None, model)
    >>> logits
    array([[0.5, 1.5]])
    >>> adapter = {"A_k": zero[:1], "B_k": zero[:, :1], "A_v": I[:1], "B_v": I[:, 1:], "alpha": 2.0}
    >>> logits, cache = decode(np.array([1]), cache, adapter, model)
    >>> logits.round(3)
    array([[0.333, 2.333]])
    """
    raise NotImplementedError
