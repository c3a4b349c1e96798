"""Text from a language model, one token id at a time, with a KV cache."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import Rng, generator, to_numpy
from ..nn import Inputs, KVCache, Pass
from ..ops import DynamicScaling
from ..process import blas_threads
from .encoder_decoder import EncoderDecoder
from .tokenizer import ByteTokenizer, Tokenizer, check_matches
from .transformer import Transformer

CHUNK = 64  # tokens of a prompt that are read at a time, unless frequencies depend on the length of what is read


class Sampling(NamedTuple):
    """How the next id is chosen: the options of generate()."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    rng: Rng | None = None

    def choose(self, logits: np.ndarray) -> int:
        """One id for logits (V,): the most probable, or a draw from softmax(logits / temperature).

        The draw is argmax of the logits and Gumbel noise.
        """
        temperature, top_k, top_p, rng = self
        if temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # by a tiny temperature, to -inf: the most probable is at 0
            z = (logits.astype(np.float64) - logits.max()) / temperature
        if 0 < top_k < len(z):
            z[z < np.partition(z, -top_k)[-top_k]] = -np.inf
        if top_p < 1:
            order = np.argsort(-z, kind="stable")
            P = np.exp(z[order]) / np.exp(z).sum()
            z[order[np.cumsum(P) - P >= top_p]] = -np.inf
        assert isinstance(rng, np.random.Generator)  # a seed would draw the same numbers for each id
        return int((z + rng.gumbel(size=len(z))).argmax())


@blas_threads()
def generate(
    model: Transformer,
    prompt: str,
    tokens: int = 200,
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: Rng | None = None,
    adapter: str | None = None,
) -> str:
    """`prompt` and its continuation: up to `tokens` ids more, fewer when the model ends the text. Of an EncoderDecoder,
    which reads the prompt as its source, what it writes alone.

    Temperature 0 takes the most probable id each time. Otherwise ids are drawn with `rng` from
    softmax(logits / temperature), of the `top_k` most probable (0: all), and of the fewest that together have the
    probability `top_p` (Holtzman et al., 2019). Without a tokenizer the ids are bytes. The model reads only the last
    config.max_length ids. `adapter` is one of a model with several (adapters/many.py); None: the model as it is.

    Raises ValueError for an empty prompt, a missing rng, a tokenizer of another vocabulary, a model that does not
    continue texts, and an adapter that it does not have.
    """
    tokenizer = tokenizer or ByteTokenizer()
    ids = tokenizer.encode(prompt)
    new = continuation(model, ids, tokens, tokenizer, Sampling(temperature, top_k, top_p, rng), adapter)
    return tokenizer.decode([*([] if model.reads_source else ids.tolist()), *new])


def stream(
    model: Transformer,
    prompt: str,
    tokens: int = 200,
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: Rng | None = None,
    special: bool = True,
    adapter: str | None = None,
) -> Iterator[str]:
    """What `generate` adds to the prompt, piece by piece.

    `special`: whether the tokenizer adds special tokens around the prompt. The text of Tokenizer.chat has its own.
    """
    tokenizer = tokenizer or ByteTokenizer()
    ids = tokenizer.encode(prompt, special)
    sampling = Sampling(temperature, top_k, top_p, rng)
    return tokenizer.pieces(continuation(model, ids, tokens, tokenizer, sampling, adapter))


def answer(
    model: Transformer,
    messages: Sequence[Mapping[str, Any]],
    tokens: int = 200,
    *,
    tokenizer: Tokenizer,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: Rng | None = None,
    adapter: str | None = None,
) -> Iterator[str]:
    """An instruct model's answer to a conversation (Tokenizer.chat), piece by piece; options and errors as generate.

    The conversation and the answer have config.max_length tokens at most. Raises ValueError also for a conversation
    that leaves no room for an answer.
    """
    ids = tokenizer.encode(tokenizer.chat(messages), special=False)
    room = model.config.max_length - len(ids)
    if room < 1:
        raise ValueError(
            f"the conversation is {len(ids)} tokens long, and the model reads {model.config.max_length}: "
            "say it in fewer words, or start a new one"
        )
    sampling = Sampling(temperature, top_k, top_p, rng)
    return tokenizer.pieces(continuation(model, ids, min(tokens, room), tokenizer, sampling, adapter))


def continuation(
    model: Transformer,
    ids: np.ndarray,
    tokens: int,
    tokenizer: Tokenizer,
    sampling: Sampling,
    adapter: str | None = None,
) -> Iterator[int]:
    """next_ids(), with all arguments checked. Raises as generate does."""
    temperature, top_k, top_p, rng = sampling
    check_continues(model, tokenizer)
    if not len(ids):
        raise ValueError("the prompt is empty: give at least one character")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} is below 0, or no number")
    if temperature > 0:
        sampling = sampling._replace(rng=generator(rng))
    if top_k < 0:
        raise ValueError(f"top_k = {top_k} is below 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p} is not a probability above 0")
    return next_ids(model, ids, tokens, tokenizer.stop, sampling, adapter)


def check_continues(model: Transformer, tokenizer: Tokenizer) -> None:
    """Raise ValueError for a model that does not continue texts, or not those of this tokenizer."""
    vocab_size = model.config.vocab_size
    if isinstance(tokenizer, ByteTokenizer) and vocab_size != 256:
        raise ValueError(f"text is read as bytes, which need a vocabulary of 256: this model's is {vocab_size}")
    check_matches(tokenizer, model.config.vocab_size)
    if not (model.causal or model.reads_source) or model.config.head != "lm":
        raise ValueError(f"a {model.family} with the head {model.config.head!r} does not continue texts")


def next_ids(
    model: Transformer,
    ids: np.ndarray,
    tokens: int,
    stop: Collection[int] = (),
    sampling: Sampling = Sampling(),
    adapter: str | None = None,
) -> Iterator[int]:
    """Up to `tokens` ids after `ids` (N,), one at a time, until one of `stop`, which is not yielded.

    An EncoderDecoder reads `ids` as the source, and the ids that it writes follow on config.decoder_start.
    """
    own = Inputs(adapters=None if adapter is None else [adapter])
    if isinstance(model, EncoderDecoder):
        own, ids = own._replace(memory=model.encode(ids[None])), np.array([model.config.decoder_start])
    context, seen = model.config.max_length, ids.tolist()
    chunk = context if isinstance(model.config.rope_scaling, DynamicScaling) else CHUNK
    new, kv_cache = ids[-context:], KVCache(min(context, len(ids) + tokens))
    for _ in range(tokens):
        if kv_cache.length + len(new) > context:  # the first ids no longer fit, so all positions move
            new, kv_cache = np.array(seen[-context:]), KVCache(context)
        inputs = own if kv_cache.length else own._replace(text=new[None])
        for start in range(0, len(new), chunk):  # so that the logits of a long prompt are not all in memory
            logits, _ = model.forward(new[None, start : start + chunk], inputs, Pass(kv_cache=kv_cache))
        i = sampling.choose(to_numpy(logits[0, -1]))
        if i in stop:
            return
        yield i
        seen.append(i)
        new = np.array([i])
