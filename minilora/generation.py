"""Sampling text from a language model over bytes."""

from __future__ import annotations

import math

import numpy as np

from .backend import to_numpy
from .text import check_vocabulary, decode, encode
from .transformer import Transformer


def generate(
    model: Transformer,
    prompt: str,
    tokens: int = 200,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    rng: np.random.Generator | None = None,
    description: str | None = None,
) -> str:
    """`prompt` and `tokens` more bytes. Temperature 0 takes the most probable byte each time.

    Otherwise bytes are drawn with `rng` from softmax(logits / temperature), of the `top_k` most probable if given.
    Only the last config.context bytes are looked at. `description` labels a progress bar; None shows none.
    Raises ValueError for an empty prompt, a missing rng, or a model that is not over bytes.
    """
    from tqdm import trange

    check_vocabulary(model.config)
    if not prompt:
        raise ValueError("the prompt is empty: give at least one character")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} is below 0, or no number")
    if temperature > 0 and rng is None:
        raise ValueError(f"temperature {temperature} needs a generator: rng=numpy.random.default_rng(seed)")
    if top_k < 0:
        raise ValueError(f"top_k = {top_k} is below 0")
    ids = encode(prompt)
    for _ in trange(tokens, desc=description, disable=None if description else True, unit="byte", leave=False):
        logits, _ = model.forward(ids[None, -model.config.context :])
        ids = np.append(ids, choose(to_numpy(logits[0, -1]), temperature, top_k, rng))
    return decode(ids)


def choose(logits: np.ndarray, temperature: float, top_k: int, rng: np.random.Generator | None) -> int:
    """One id: the most probable, or (by adding Gumbel noise) a draw from the softmax."""
    if temperature == 0 or rng is None:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # by the least of temperatures, to -inf: the most probable is at 0
        z = (logits.astype(np.float64) - logits.max()) / temperature
    if 0 < top_k < len(z):
        z[z < np.partition(z, -top_k)[-top_k]] = -np.inf
    return int((z + rng.gumbel(size=len(z))).argmax())
