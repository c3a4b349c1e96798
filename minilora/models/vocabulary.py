"""Tokens added to a vocabulary: ids of the tokenizer, and rows of the embedding and of a head of its own.

A new row is the mean of the V old ones, so a head gives a new token the mean of the old logits, w and z being those of
the head:

    w_new = 1/V Σᵥ wᵥ           z_new = w_new · x = 1/V Σᵥ zᵥ

exp(z_new) ≤ 1/V Σᵥ exp(zᵥ) by Jensen's inequality. So n new tokens, before they have learned, raise the loss of a text
without them by log(1 + n exp(z_new) / Σᵥ exp(zᵥ)) ≤ log(1 + n/V). Rows of 0 have z_new = 0, which may be any logit.

Source: Hewitt (2021), "Initializing New Word Embeddings for Pretrained Language Models".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, get_array_module
from ..data import read_whole
from ..nn import TABLES, Parameter
from ..quantization import Quantized, format_names
from ..spelling import counted
from .subword_tokenizer import SubwordTokenizer, tokenizers
from .tokenizer import ByteTokenizer, Tokenizer
from .transformer import Transformer


def add_rows(model: Transformer, n: int, tables: Mapping[str, Array] = {}) -> None:
    """Add n tokens to the vocabulary of a model: rows of TABLES, and entries of the head's bias, all of them the mean
    of the old ones. A tied head stays tied, and what was frozen is frozen.

    `tables` is {path: W (V + n, C)}, whose last n rows are taken instead of the mean. Raises ValueError, with the model
    as it was, for a layer that is adapted already, and for one in a format whose codes take no more rows.
    """
    layers: dict[str, Any] = {path: m for path, m in model.named_modules() if path in TABLES}
    grown: dict[Parameter, Any] = {}
    for path, layer in layers.items():
        if model[path].is_adapter or model[path].is_merged:
            raise ValueError(f"{path} is adapted already: add the tokens first, and attach then")
        for name in ("weight", "bias"):
            parameter = getattr(layer, name, None)
            if parameter is not None and parameter not in grown:
                rows = tables[path][-n:] if name == "weight" and path in tables else None
                grown[parameter] = with_rows(parameter.data, n, rows)
    for parameter, data in grown.items():
        parameter.data = data
    model.config = replace(model.config, vocab_size=model.config.vocab_size + n)
    model.added_tokens += n


def with_rows(W: Array | Quantized, n: int, rows: Array | None = None) -> Array | Quantized:
    """W with n rows more: these, or the mean of all. Raises ValueError for a format whose codes take no more rows."""
    if isinstance(W, Quantized):
        if W.for_blocks or W.name not in format_names():
            raise ValueError(f"the embedding is held in {W.name}, which takes no more rows: leave --quantize out")
        whole = with_rows(W.dense(), n, rows)
        assert not isinstance(whole, Quantized)
        return type(W).of(whole)
    xp = get_array_module(W)
    if rows is None:
        mean = W.mean(axis=0, dtype=np.float64)
        rows = xp.broadcast_to(mean, (n, *W.shape[1:]))
    return xp.concatenate([W, xp.asarray(rows, dtype=W.dtype)])


def read_tokens(path: str | Path, encoding: str = "utf-8") -> list[str]:
    """The tokens in a text file, one on each line, spaces and all. Raises ValueError, with its line, for an empty one
    and for one that is there twice; and as read_whole does."""
    lines = read_whole(path, encoding).decode().removesuffix("\n").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            raise ValueError(f"{path} line {i + 1} is empty: write one token on each line")
        if line in lines[:i]:
            raise ValueError(f"{path} line {i + 1} is {line!r:.80} again: write each token once")
    return lines


def with_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> SubwordTokenizer:
    """A tokenizer with these tokens too, which are found in a text before all else, as add_tokens() of Transformers
    makes it. Their ids follow the others. The one that is given stays as it was.

    Raises ImportError where the `tokenizers` package is missing; ValueError for a text that is one token already, or
    that would not come back as it was.
    """
    package = tokenizers()
    for token in tokens:
        ids = tokenizer.encode(token, special=False)
        if len(ids) == 1:
            raise ValueError(f"{token!r:.80} is a token already, {ids[0]}: leave it out")
    old = over_bytes() if isinstance(tokenizer, ByteTokenizer) else tokenizer
    assert isinstance(old, SubwordTokenizer)
    backend = package.Tokenizer.from_str(old.backend.to_str())
    backend.add_tokens(list(tokens))
    made = SubwordTokenizer(backend, old.names, old.template, old.stop, settings=old.settings)
    for i, token in enumerate(tokens, old.vocab):
        back = made.decode([i]).strip()  # a decoder may take a space from the beginning of a text
        if made.encode(token, special=False).tolist() != [i] or back != token.strip():
            raise ValueError(f"{token!r:.80} cannot be a token: this tokenizer decodes it to another text")
    return made


def over_bytes() -> SubwordTokenizer:
    """ByteTokenizer as one of the `tokenizers` package, to which tokens can be added: a byte is its own id."""
    package, more = tokenizers(), iter(range(256, 512))
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the others are written as letters from 256 on
    letters = {chr(b if b in printed else next(more)): b for b in range(256)}
    backend = package.Tokenizer(package.models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = package.decoders.ByteLevel()
    return SubwordTokenizer(backend, {})


def say_added(n: int) -> str:
    return f"{counted(n, 'token')} {'was' if n == 1 else 'were'} added to its vocabulary"
