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
    ### BEGIN SOLUTION
    text, new, K, V = ids, ids, [], []
    if cache:
        text = np.concatenate([cache["text"], ids])
        if cache["adapter"] is adapter:
            K, V = [cache["K"]], [cache["V"]]
        else:  # the earlier keys and values are another adapter's
            new = text
    n, m = len(new), len(text)
    x, positions = model["E"][new], np.arange(m - n, m)
    q, k, v = (linear(x, name, adapter, model) for name in "qkv")
    K = np.vstack([*K, rope(k, positions, model)])
    V = np.vstack([*V, v])
    o = attention(rope(q, positions, model), K, V, np.tri(n, m, m - n))
    logits = (x + o @ model["W_o"].T) @ model["E"].T
    return logits[-len(ids) :], {"text": text, "adapter": adapter, "K": K, "V": V}
    ### END SOLUTION


### THE CHECK

from ... import ops
from ...verify.language import words
from ..edits import edited
from ..exercise import Exercise, Viva
from ..parts import Refused, Value

CALLS = "prompt token chunk swap after base back"
# tokens of the prompt, of the chunk and of the call without an adapter; vocabulary, width, D, r of the two adapters
SHAPES = [
    (4, 3, 2, 9, 5, 4, 2, 3),
    (3, 2, 4, 7, 3, 6, 1, 2),
    (6, 4, 3, 11, 4, 2, 3, 1),
    (2, 5, 2, 8, 7, 8, 4, 2),
    (5, 2, 3, 6, 6, 4, 2, 5),
    (7, 3, 5, 10, 2, 6, 1, 4),
]


def draw(rng, i):
    prompt, chunk, last, vocabulary, width, D, *ranks = SHAPES[i]

    def normal(*shape):
        return rng.standard_normal(shape)

    model = {"E": normal(vocabulary, width), "theta": float(rng.uniform(5, 50))}
    model |= {f"W_{name}": normal(D, width) for name in "qkv"} | {"W_o": normal(width, D)}
    one, other = (
        {"alpha": r + float(rng.uniform(0.5, 3))}
        | {f"A_{name}": normal(r, width) for name in "kv"}
        | {f"B_{name}": normal(D, r) / r for name in "kv"}
        for r in ranks
    )
    lengths, adapters = [prompt, 1, chunk, 1, 1, last, 1], [one, one, one, other, other, None, one]
    texts = [rng.integers(vocabulary, size=n) for n in lengths]
    return {"calls": dict(zip(CALLS.split(), zip(texts, adapters, strict=True), strict=True)), "model": model}


def whole(ids, adapter, model):
    """The logits of a whole text, by the library."""
    x = model["E"][ids][None]

    def projected(name):
        y = ops.linear_forward(x, model[f"W_{name}"])[0]
        if adapter and name in "kv":
            A, B = adapter[f"A_{name}"], adapter[f"B_{name}"]
            y = y + ops.lora_forward(x, A, B, adapter["alpha"] / len(A))[0]
        return y

    n, D = len(ids), len(model["W_q"])
    tables = ops.rope_tables(np, n, ops.rope_frequencies(np, D, model["theta"]), float)
    q, k = (ops.rope_forward(projected(name), *tables) for name in "qk")
    o, _ = ops.attention_forward(q, k, projected("v"), ops.attention_mask(np, n, True, None, float), D)
    return ((x + o @ model["W_o"].T) @ model["E"].T)[0]


def truth(calls, model):
    text, logits = np.zeros(0, int), {}
    for name, (ids, adapter) in calls.items():
        text = np.concatenate([text, ids])
        logits[name] = whole(text, adapter, model)[-len(ids) :]
    return logits


class Conversation(Value):
    """A function that is called several times, each time with the cache that it returned before."""

    def run(self, function, arguments):
        cache, logits = None, {}
        for name, (ids, adapter) in arguments["calls"].items():
            call = {"ids": ids, "cache": cache, "adapter": adapter, "model": arguments["model"]}
            logits[name], cache = super().run(function, call).values()
        return logits

    def by_name(self, result):
        if isinstance(result, tuple | list) and len(result) == 2:
            return {"logits": result[0], "cache": result[1]}
        raise Refused("shape", words("{it} must return logits and cache", it=self.name))

    def truths(self, cases):
        return [self.truth(**case) for case in cases]


decoding = Conversation(decode, CALLS, truth=truth, draw=draw)


KEYS = "K = np.vstack([*K, rope(k, positions, model)])"
VALUES = "V = np.vstack([*V, v])"
MISTAKES = [
    ("cache_kept_after_a_swap",
     "{it} reads keys and values that another adapter has computed: the cache is kept after a swap",
     "Which matrices made the entries of the cache, and which of them has the swap changed?",
     ('if cache["adapter"] is adapter:', "if True:")),
    ("keys_kept_after_a_swap", "{it} reads new values, but keys that another adapter has computed",
     "Which layers does the adapter sit on?",
     (KEYS, KEYS + '\n    if cache:\n        K[: -len(ids)] = cache["K"]')),
    ("values_kept_after_a_swap", "{it} reads new keys, but values that another adapter has computed",
     "Which layers does the adapter sit on?",
     (VALUES, VALUES + '\n    if cache:\n        V[: -len(ids)] = cache["V"]')),
    ("text_forgotten_after_a_swap",
     "in {it}, the text before the swap is forgotten: the cache was thrown away, and nothing put in its place",
     "What do you need, besides keys and values, to compute them again?",
     ("            new = text\n", "            text = ids\n")),
    ("adapter_of_the_cache_not_updated",
     "{it} takes the keys and values for those of the first adapter: the cache still names it after a swap",
     "After a swap, which adapter has made what is in the cache, and where does your cache say so?",
     ('"adapter": adapter,', '"adapter": cache["adapter"] if cache else adapter,')),
    ("positions_restart", "in {it}, the positions of the new tokens start at 0 again",
     "How many tokens stand before the first of ids?", ("np.arange(m - n, m)", "np.arange(n)")),
    ("keys_cached_before_rope", "{it} reads cached keys that were never rotated",
     "Do you put k into the cache before or after rope, and what do you do when you take it out?",
     (KEYS, KEYS.replace("K =", "seen =") + "\n    K = np.vstack([*K, k])"),
     ("model), K, V, np", "model), seen, V, np")),
    ("cached_keys_rotated_again", "{it} rotates keys from the cache that had been rotated when they were put there",
     "How often has the first key been turned when the third call is over?",
     (KEYS, "K = rope(np.vstack([*K, k]), np.arange(m), model)")),
    ("query_not_rotated", "{it} has a query that is not rotated, with keys that are",
     "What must rope do to q and k, so that their product depends on the distance of the two tokens alone?",
     ("attention(rope(q, positions, model),", "attention(q,")),
    ("mask_of_the_full_pass",
     "{it} uses the mask of a full pass: its first row sees the first key alone, though it belongs to a later token",
     "Of n new tokens after m - n others: how many keys does the first of them see?",
     ("np.tri(n, m, m - n)", "np.tri(n, m)")),
    ("no_mask", "{it} has no mask: of several tokens in one call, each sees those that come after it",
     "Which tokens does the first of several new ones see?", ("np.tri(n, m, m - n)", "np.ones((n, m))")),
    ("cache_not_extended", "{it} does not see what came after the prompt: the cache has not grown since",
     "Where do the new keys and values go, once the logits are there?",
     ("return logits[-len(ids) :], {", "return logits[-len(ids) :], cache or {")),
    ("cache_overwritten",
     "{it} sees the call before alone: its keys and values have replaced the older ones in the cache",
     "How many rows has your cache of keys after the third call?",
     ('{"text": text,', '{"text": ids,'), ('"K": K, "V": V', '"K": K[-len(ids) :], "V": V[-len(ids) :]')),
    ("adapter_left_out", "{it} is computed without the adapter: keys and values are the base's",
     "Where does your function read A_k and A_v?", ("linear(x, name, adapter, model)", "linear(x, name, None, model)")),
    ("logits_of_the_whole_text", "after a swap, {it} returns the logits of the whole text, not of ids alone",
     "How many rows must the logits have, and how many did you compute?",
     ("return logits[-len(ids) :]", "return logits")),
]  # fmt: skip
edited(decoding, MISTAKES)


def prompted(function):
    """A model, the tokens of a prompt, and the cache after them."""
    model = draw(np.random.default_rng(7), 0)["model"]
    prompt = np.array([0, 1, 2, 0])
    return model, prompt, function(prompt, None, None, model)[1]


def changes_the_cache(function):
    model, prompt, cache = prompted(function)
    for token in (3, 4):
        logits, _ = function(np.array([token]), cache, None, model)
        if not np.allclose(logits, whole(np.append(prompt, token), None, model)[-1:]):
            return True
    return False


def computes_again(function):
    """Does it look up the tokens of the prompt again? Their embeddings are made useless before the next call."""
    model, prompt, cache = prompted(function)
    model["E"][prompt] = np.nan
    logits, _ = function(np.array([3]), cache, None, model)
    return bool(np.isnan(logits[:, 3:]).any())


@decoding.rule(
    "{it} changes the cache that it is given: a second continuation of the same prompt goes wrong",
    "Which of your lines write into an array, a list or a dict that came with the cache?",
    changes_the_cache,
)
def cache_changed(ids, cache, adapter, model):
    logits, new = decode(ids, cache, adapter, model)
    return logits, new if cache is None else cache.update(new) or cache


@decoding.rule(
    "{it} computes the earlier tokens again in every call: the numbers are right, but nothing is saved",
    "For one new token, how many rows does your x have?",
    computes_again,
)
def nothing_cached(ids, cache, adapter, model):
    text = ids if cache is None else np.concatenate([cache, ids])
    return forward(text, adapter, model)[-len(ids) :], text


EXERCISE = Exercise(
    title="Cache and swap",
    kind="write",
    minutes=30,
    difficulty=3,
    needs=["12"],
    parts=[decoding],
    hints=(
        "Take forward and ask of each line: for which tokens is it needed now, for the new ones or for all? Only one "
        "line needs all. Write the call without a swap first.",
        "Let m be the tokens of the whole text and n those that you compute: positions, mask and the rows that you "
        "return all follow from these two. After a swap n is m, so the cache must hold what the tokens were.",
    ),
    viva=[
        Viva(
            "With an adapter on q alone, in a model of one block: must the cache be thrown away at a swap? And in a "
            "model of two blocks?",
            "Not in one: keys and values come from x alone, which the swap leaves as it is. In two the second block "
            "reads what the first has put out, which q changes: its keys and values are stale.",
            "Always, since the model is another one.",
        ),
        Viva(
            "A server holds one base, a long system prompt, and a hundred adapters. What can they share of the cache?",
            "Nothing of the adapted layers' keys and values, and in deeper blocks nothing at all, since what they read "
            "differs. What can be shared is a prompt read with the base, if each adapter is trained to come after it.",
            "All of it: the adapters are small, so the keys hardly differ.",
        ),
    ],
    asks=["G7", "G8"],
)
