"""Text from a language model, one token id at a time, with a KV cache; of many prompts as one batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..backend import Rng, generator, to_numpy
from ..data.batches import by_length
from ..nn import Inputs, KVCache, Pass
from ..nn.inputs import sort_rows
from ..ops import DynamicScaling
from ..process import blas_threads
from .encoder_decoder import EncoderDecoder
from .tokenizer import ByteTokenizer, Tokenizer, check_matches
from .transformer import Transformer, check_adapters

CHUNK = 64  # tokens of a prompt that are read at a time, unless frequencies depend on the length of what is read
Prompt = TypeVar("Prompt", str, list[str])
BATCH = 16  # prompts that are continued at a time


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
    prompt: Prompt,
    tokens: int = 200,
    *,
    tokenizer: Tokenizer | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: Rng | None = None,
    adapter: str | Sequence[str | None] | None = None,
    batch: int = BATCH,
) -> Prompt:
    """`prompt` and its continuation: up to `tokens` ids more, fewer when the model ends the text. An EncoderDecoder
    reads the prompt as its source, and only what it writes is returned. For a list of prompts a list, each as if alone.

    Temperature 0 takes the most probable id each time. Otherwise ids are drawn with `rng` from
    softmax(logits / temperature), from the `top_k` most probable (0: all), and from the fewest that together have the
    probability `top_p` (Holtzman et al., 2019). Without a tokenizer the ids are bytes. The model reads only the last
    config.max_length ids. `adapter` is one of a model with several (adapters/many.py); None: the model as it is. It may
    be a list, a name or None for each prompt.

    Of several prompts `batch` are read at a time, those of similar length: they share the products with the weights,
    and each has keys and values in memory. Each draws from a generator of its own, the first from `rng`, as it would
    alone, the others from rng.spawn(): what is drawn for a prompt depends on `rng` and its place in the list, not on
    the other prompts, nor on `batch`.

    Raises ValueError for an empty prompt, a missing rng, a tokenizer of another vocabulary, a model that does not
    continue texts, an adapter that it does not have, and a list of them of another length.
    """
    tokenizer = tokenizer or ByteTokenizer()
    prompts: Sequence[str] = [prompt] if isinstance(prompt, str) else prompt
    ids = [tokenizer.encode(text) for text in prompts]
    sampling = for_each(Sampling(temperature, top_k, top_p, rng), len(ids))
    new = dict(continuations(model, ids, tokens, tokenizer, sampling, adapter, batch))
    known = [[] if model.reads_source else own.tolist() for own in ids]
    texts = [tokenizer.decode(known[row] + new[row]) for row in range(len(ids))]
    return texts[0] if isinstance(prompt, str) else texts


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
    check_continues(model, tokenizer)
    check_prompts(model, [ids])
    (sampling,) = for_each(sampling, 1)
    return next_ids(model, ids, tokens, tokenizer.stop, sampling, adapter)


def continuations(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    tokens: int,
    tokenizer: Tokenizer,
    samplings: Sequence[Sampling],
    adapter: str | Sequence[str | None] | None = None,
    batch: int = BATCH,
) -> Iterator[tuple[int, list[int]]]:
    """(i, the ids after prompts[i]) for each of the `prompts`, `batch` of similar length at a time: see generate().
    All arguments are checked at once. Raises as generate does."""
    check_continues(model, tokenizer)
    check_prompts(model, prompts)
    adapters = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else [*adapter]
    if adapter is not None and not model.reads_source:
        check_adapters(adapters, model.adapter_names, len(prompts))
    if batch < 1:
        raise ValueError(f"batch = {batch} is not a number of prompts to read at a time: at least 1")
    lengths = np.array([len(ids) for ids in prompts], np.int64)

    def one_batch(rows: list[int]) -> Iterator[tuple[int, list[int]]]:
        new: dict[int, list[int]] = {row: [] for row in rows}
        own = [prompts[row] for row in rows], tokens, tokenizer.stop, [samplings[row] for row in rows]
        names = None if adapter is None else [adapters[row] for row in rows]
        for place, i in next_ids_of_each(model, *own, names):
            new[rows[place]].append(i)
        yield from new.items()

    groups = by_length(np.arange(len(prompts)), lengths, batch)
    return chain.from_iterable(one_batch(rows.tolist()) for rows in groups)


def for_each(sampling: Sampling, n: int) -> list[Sampling]:
    """The same sampling for each of n prompts, each with a generator of its own: the first with that of `sampling`.
    Raises ValueError for options out of range, and if ids are to be drawn without an rng."""
    temperature, top_k, top_p, rng = sampling
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} is not a finite number from 0 up")
    if top_k < 0:
        raise ValueError(f"top_k = {top_k} is below 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p} is not a probability above 0")
    if temperature == 0:
        return [sampling] * n
    first = generator(rng)
    return [sampling._replace(rng=rng) for rng in (first, *first.spawn(max(0, n - 1)))][:n]


def check_prompts(model: Transformer, prompts: Sequence[np.ndarray]) -> None:
    """Raise ValueError for a prompt that is empty, or that an encoder cannot read whole; of several it is named."""
    most = model.config.max_length
    for number, ids in enumerate(prompts, 1):
        which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not len(ids):
            raise ValueError(f"{which} is empty: give at least one character")
        if model.reads_source and len(ids) > most:
            raise ValueError(f"{which} has {len(ids)} tokens, more than the model's {most} positions: cut it")


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
    adapters = None if adapter is None else [adapter]
    return (i for _, i in next_ids_of_each(model, [ids], tokens, stop, [sampling], adapters))


def next_ids_of_each(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    tokens: int,
    stop: Collection[int],
    samplings: Sequence[Sampling],
    adapters: Sequence[str | None] | None = None,
) -> Iterator[tuple[int, int]]:
    """(row, the next id of prompts[row]), for each row the ids that next_ids() alone gives. The rows are read as one
    batch, padded on the left, and leave it when they end.

    A row also leaves it when it has more ids than the model has positions: the positions then shift, and it must be
    read again for each id. Such rows wait until the others have ended, and continue together.
    """
    context, memory, seen = model.config.max_length, None, [ids.tolist() for ids in prompts]
    if isinstance(model, EncoderDecoder):
        source, real = side_by_side(seen, left=False)
        memory, seen = model.encode(source, real), [[model.config.decoder_start] for _ in prompts]
    chunk = context if isinstance(model.config.rope_scaling, DynamicScaling) else CHUNK
    ends = [len(ids) + tokens for ids in seen]
    going = [*range(len(seen))] if adapters is None else sort_rows(adapters)[2].tolist()  # as the forward sorts them
    going, waiting, kv_cache = going if tokens > 0 else [], list[int](), None
    while going:
        if kv_cache is None:
            new, real = side_by_side([seen[row][-context:] for row in going], left=True)
            text = new if real is None else np.where(real, new, -1)
            room = max(min(context - len(seen[row]), ends[row] - len(seen[row])) for row in going)
            kv_cache, its_memory = KVCache(new.shape[1] + max(room, 0)), memory and memory.take(going)
        else:
            new, real, text = np.array([seen[row][-1:] for row in going]), None, None
        names = None if adapters is None else tuple(adapters[row] for row in going)
        inputs = Inputs(adapters=names, text=text, memory=its_memory)
        logits = last_logits(model, new, real, inputs, kv_cache, chunk)
        stay = []
        for place, row in enumerate(going):
            i = samplings[row].choose(logits[place])
            if i in stop:
                continue
            yield row, i
            seen[row].append(i)
            if len(seen[row]) == ends[row]:
                continue
            if len(seen[row]) > context:
                waiting.append(row)
            else:
                stay.append(place)
        if not stay:
            going, waiting, kv_cache = waiting, [], None
        elif len(stay) < len(going):
            going = [going[place] for place in stay]
            kv_cache = kv_cache.take(stay, kv_cache.layers, names and tuple(names[place] for place in stay))
            if its_memory is not None:  # in place: the KV cache knows it by identity
                kept = its_memory.take(stay)
                its_memory.data, its_memory.padding = kept.data, kept.padding


def last_logits(
    model: Transformer, ids: np.ndarray, real: np.ndarray | None, inputs: Inputs, kv_cache: KVCache, chunk: int
) -> np.ndarray:
    """(B, V), on the host: the logits behind the last of `ids` (B, T), which are read `chunk` at a time, so that those
    of a long prompt are not all in memory. Of several rows only the last position of a chunk gets logits."""
    B, T = ids.shape
    for start in range(0, T, chunk):
        part = slice(start, start + chunk)
        if B > 1 and T > 1:
            last = np.full(B, min(chunk, T - start) - 1)
            inputs = inputs._replace(labelled=(np.arange(B), last), padding=None if real is None else real[:, part])
        logits, _ = model.forward(ids[:, part], inputs, Pass(kv_cache=kv_cache))
    return to_numpy(logits[:, -1] if inputs.labelled is None else logits)


def side_by_side(rows: Sequence[list[int]], left: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """(the ids as (B, T), padded with 0 on one side; which are real, None where all are)"""
    lengths = np.array([len(row) for row in rows])
    T = lengths.max()
    real = np.arange(T) >= T - lengths[:, None] if left else np.arange(T) < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = np.concatenate(rows)
    return ids, None if real.all() else real
